"""Base class of the data modules of Gaussian concepts."""

from abc import abstractmethod

from sae_lightning.data.datamodule import SPLIT_SEEDS, Split
from sae_lightning.data.loading import ActivationDataset
from sae_lightning.data.seeding import seeded_generator
from sae_lightning.data.streaming import BatchSampler, StreamingDataModule
from sae_lightning.data.synthetic.gaussian import GaussianConcepts


class GaussianDataModule(StreamingDataModule):
    """Base of data modules of Gaussian concepts, with endless training batches and balanced held-out splits.

    Subclasses implement `concepts`.

    Args:
        d_in: Number of features.
        concept_names: Names of the concepts, in the order of their labels.
        variance: Variance of a concept, positive.
        variance_floor: Variance that is added along every axis.
        n_per_concept: Nominal number of points per concept; it sets the length of an epoch and the number of held-out
            points.
        train_fraction: Fraction of `n_per_concept` for training, between 0 and 1.
        n_val_per_concept: Held-out points of each concept for validation.
        n_test_per_concept: Held-out points of each concept for test and prediction.
        batch_size: Training samples per step and process, at least 1.
        eval_batch_size: Samples per step and process in validation, test and prediction, at least 1.
        num_workers: Worker processes that draw training batches ahead; 0 draws them in the training process.
        seed: Seed of the points; None takes the global seed.

    Raises:
        ValueError: If an argument is out of range, or `train_fraction` leaves too few held-out points.
    """

    def __init__(
        self,
        d_in: int,
        concept_names: list[str],
        variance: float,
        variance_floor: float,
        n_per_concept: int,
        train_fraction: float,
        n_val_per_concept: int,
        n_test_per_concept: int,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int | None,
    ) -> None:
        for name, value in {
            "n_per_concept": n_per_concept,
            "n_val_per_concept": n_val_per_concept,
            "n_test_per_concept": n_test_per_concept,
        }.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        if not 0 < variance < float("inf") or not 0 <= variance_floor < float("inf"):
            raise ValueError(
                f"variance must be positive and its floor at least 0, both finite, but are {variance}, {variance_floor}"
            )
        if not 0 < train_fraction < 1:
            raise ValueError(f"train_fraction must lie between 0 and 1, but is {train_fraction}")
        n_train = int(n_per_concept * train_fraction)
        held_out = n_per_concept - n_train
        if n_train < 1 or n_val_per_concept + n_test_per_concept > held_out:
            raise ValueError(
                f"n_val_per_concept + n_test_per_concept must be at most the {held_out} of {n_per_concept} points per "
                f"concept that train_fraction = {train_fraction} holds out (and leave one for training), "
                f"but is {n_val_per_concept} + {n_test_per_concept}"
            )
        n_epoch = len(concept_names) * n_train
        super().__init__(d_in, concept_names, n_epoch, batch_size, eval_batch_size, num_workers, seed)
        self._n_per_concept: dict[Split, int] = {"val": n_val_per_concept, "test": n_test_per_concept}

    @abstractmethod
    def concepts(self) -> GaussianConcepts:
        """Return the concepts, which depend on the arguments and the seed only."""

    def sampler(self) -> BatchSampler:
        """Return the function that draws points of random concepts."""
        return self.concepts().batch

    def make_split(self, split: Split) -> ActivationDataset:
        """Draw one held-out split; splits are independent draws from the same concepts."""
        generator = seeded_generator(self.seed, SPLIT_SEEDS[split])
        drawn = self.concepts().of_each(self._n_per_concept[split], generator)
        return ActivationDataset(drawn.activations, drawn.concepts)
