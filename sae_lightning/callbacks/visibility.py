"""What each SAE of a Comparison exposes and hides, compared with what it could expose."""

import json
import math
from itertools import islice
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from sae_lightning.callbacks.base import RunCallback, find
from sae_lightning.callbacks.data import data_of
from sae_lightning.callbacks.meaning import LatentMeaning, Meaning
from sae_lightning.callbacks.publish import publish
from sae_lightning.callbacks.recovery import ConceptRecovery
from sae_lightning.callbacks.recovery_metrics import Recovery
from sae_lightning.callbacks.table import RecoveryTable, found_above
from sae_lightning.data.batch import ActivationBatch
from sae_lightning.data.collecting import first_samples, random_samples
from sae_lightning.geometry import Bound, Sight, bounds, sights
from sae_lightning.metrics import LatentOverlap
from sae_lightning.metrics.functional import LatentOverlapResult
from sae_lightning.modules.comparison import Comparison
from sae_lightning.modules.module import SAEModule, log_key
from sae_lightning.nn import ReceptiveField
from sae_lightning.plotting import achieved_f1
from sae_lightning.run.files import replacing
from sae_lightning.run.loggers import run_folder


class Visibility(NamedTuple):
    """What was found of all SAEs."""

    fields: dict[str, ReceptiveField | None]
    """The family of each SAE's receptive fields; None where it is not known."""
    sights: dict[str, list[Sight]]
    """How each SAE sees each concept; empty for unlabeled data."""
    overlaps: dict[tuple[str, str], LatentOverlapResult]
    """For pairs of SAEs, which latents of the first have a counterpart in the second; on the CPU."""


class VisibilityReport(RunCallback):
    """Says after the test of a Comparison which SAE sees which concept, and which latents one of them alone has.

    * **Concepts and SAEs**: the best latent's F1 next to its bound, the best F1 that any latent of the architecture
      could reach. Bounds are fitted to training samples and reported on test samples.
    * **Pairs of SAEs**: the share of the first's live latents that have no counterpart in the second, none whose firing
      has a Jaccard index of at least `min_jaccard` with theirs; and the same for samples in random order.

    `results` holds all of it, `visibility.json` in the run's folder too, with the best samples of the latents; the page
    of the run shows it. Logged are `<SAE>/test/bound/<concept>` and `<SAE>/test/alone/<other SAE>`.

    Args:
        enabled: Whether to do any of this.
        min_jaccard: Index from which two latents are counterparts, between 0 and 1.
        max_latents: Pairs with an SAE of more latents are left out, with a message: memory grows with the product.
        max_samples: Most training and most test samples for the bounds; 0 for no bounds. Of several processes, the
            first uses its own share of them.
        n_resamples: Resamples of the test samples for the intervals of the bounds, at least 1.
        seed: Seed of what is drawn.

    Raises:
        ValueError: If an argument is out of range.
    """

    key = "visibility"
    serves = SAEModule
    uses = (ConceptRecovery, RecoveryTable, LatentMeaning)

    def __init__(
        self,
        enabled: bool = True,
        min_jaccard: float = 0.5,
        max_latents: int = 1024,
        max_samples: int = 20_000,
        n_resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        limits = {"max_latents": (max_latents, 0), "max_samples": (max_samples, 0), "n_resamples": (n_resamples, 1)}
        for name, (value, least) in limits.items():
            if value < least:
                raise ValueError(f"{name} must be at least {least}, but is {value}")
        if not 0 <= min_jaccard <= 1:
            raise ValueError(f"min_jaccard must lie between 0 and 1, but is {min_jaccard}")
        self.enabled = enabled
        self.min_jaccard = min_jaccard
        self.max_latents = max_latents
        self.max_samples = max_samples
        self.n_resamples = n_resamples
        self.seed = seed
        self.results: Visibility | None = None
        self._pairs: list[tuple[str, str]] = []
        self._on = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Register the metrics as submodules, before the module moves to its device."""
        super().setup(trainer, pl_module, stage)
        self.results = None
        self._on = self.enabled and stage == "test" and isinstance(pl_module, Comparison)
        if not self._on:
            return
        assert isinstance(pl_module, SAEModule)
        sizes = {name: sae.d_sae for name, sae in pl_module.saes().items()}
        small = [name for name, size in sizes.items() if size <= self.max_latents]
        if len(small) < len(sizes):
            rank_zero_info(
                f"Counterparts are not looked for in {', '.join(sorted(sizes.keys() - set(small)))}: more latents than "
                f"visibility.max_latents = {self.max_latents}."
            )
        self._pairs = [(name, other) for name in small for other in small if name != other]
        pl_module.overlap_metrics = nn.ModuleList(
            LatentOverlap(sizes[name], sizes[other], self.min_jaccard, self.seed) for name, other in self._pairs
        )

    def _metrics(self, pl_module: pl.LightningModule) -> dict[tuple[str, str], LatentOverlap]:
        return dict(zip(self._pairs, pl_module.overlap_metrics, strict=True))  # type: ignore[arg-type]

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the metrics."""
        if self._on:
            for metric in self._metrics(pl_module).values():
                metric.reset()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: ActivationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in the codes of a batch."""
        if not self._on or len(batch.activations) == 0:  # a rank's share of the last batch may be empty
            return
        for (name, other), metric in self._metrics(pl_module).items():
            metric.update(outputs[name].out.codes, outputs[other].out.codes)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Combine all processes, fit the bounds, log, and draw on rank zero."""
        if not self._on:
            return
        assert isinstance(pl_module, SAEModule)
        overlaps = {
            pair: LatentOverlapResult(*(field.cpu() for field in metric.compute()))
            for pair, metric in self._metrics(pl_module).items()
        }
        fields = {name: sae.sae.receptive_field() for name, sae in pl_module.saes().items()}
        recovery, seen = find(trainer, ConceptRecovery), {}
        if recovery is not None and recovery.concept_names:
            limits = self._bounds(trainer, list(dict.fromkeys(f for f in fields.values() if f is not None)))
            for name, measured in recovery.results.items():
                assert measured.f1 is not None
                field = fields[name]
                limit = None if field is None else limits.get(field)
                seen[name] = sights(measured.f1.best.cpu(), limit, found_above(trainer))
        self.results = Visibility(fields, seen, overlaps)
        self._log(pl_module, recovery)
        if trainer.is_global_zero and trainer.loggers and any(s.bound.known for of in seen.values() for s in of):
            assert recovery is not None
            families = {name: sae.made_as.__name__ for name, sae in pl_module.saes().items()}
            figure = draw(seen, recovery.concept_names, found_above(trainer), families)
            publish(trainer, figure, "test/visibility")

    def _bounds(self, trainer: pl.Trainer, families: list[ReceptiveField]) -> dict[ReceptiveField, Bound]:
        """Bounds on rank zero's own samples, told to all ranks; all read theirs, since reading may communicate."""
        if not self.max_samples or not families:
            return {}
        found: dict[ReceptiveField, Bound] = {}
        with torch.inference_mode(False), torch.enable_grad():  # the search is by gradients
            train, test = self._samples(trainer)
            if trainer.is_global_zero:
                recovery = find(trainer, ConceptRecovery)
                assert recovery is not None
                found = bounds(
                    train.activations.flatten(1),
                    train.concepts,
                    len(recovery.concept_names),
                    families,
                    (test.activations.flatten(1), test.concepts),
                    self.seed,
                    self.n_resamples,
                )
        told: dict[ReceptiveField, Bound] = trainer.strategy.broadcast(found)
        return told

    def _samples(self, trainer: pl.Trainer) -> tuple[ActivationBatch, ActivationBatch]:
        """Training and test samples of this process."""
        data = data_of(trainer)
        assert isinstance(data, pl.LightningDataModule)  # concepts have names, so there is one
        data.setup("fit")
        train = first_samples(data.train_dataloader(), self.max_samples)
        n_batches = trainer.num_test_batches[0]
        batches = data.test_dataloader()
        read = batches if math.isinf(n_batches) else islice(batches, int(n_batches))
        return train, random_samples(read, self.max_samples, self.seed)

    def _log(self, module: SAEModule, recovery: ConceptRecovery | None) -> None:
        assert self.results is not None
        for name, seen in self.results.sights.items():
            assert recovery is not None
            for concept, sight in zip(recovery.concept_names, seen, strict=True):
                if sight.bound.known:
                    module.log(log_key(name, "test", f"bound/{concept}"), torch.tensor(sight.bound.value).float())
        for (name, other), overlap in self.results.overlaps.items():
            module.log(log_key(name, "test", f"alone/{other}"), overlap.alone.float().to(module.device))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `visibility.json` on rank zero."""
        folder = run_folder(trainer)
        if self.results is None or folder is None or not trainer.is_global_zero:
            return
        recovery, meaning = find(trainer, ConceptRecovery), find(trainer, LatentMeaning)
        meanings = meaning.results if meaning is not None else {}
        plain = as_plain(self.results, self.min_jaccard, recovery, meanings)
        plain = {"min_jaccard": self.min_jaccard, "found_above": found_above(trainer), **plain}
        path = folder / "visibility.json"
        with replacing(path, "w", encoding="utf-8") as file:
            json.dump(plain, file, indent=1, allow_nan=False)
        print(f"Visibility:  {path}")


def draw(seen: dict[str, list[Sight]], concept_names: list[str], threshold: float, families: dict[str, str]) -> Any:
    """The figure of what was achieved against what was possible."""
    points = {
        name: torch.tensor([[sight.best_f1, *sight.bound] for sight in row], dtype=torch.float64)
        for name, row in seen.items()
    }
    return achieved_f1(points, concept_names, threshold, families=families)


def as_plain(
    results: Visibility, min_jaccard: float, recovery: ConceptRecovery | None, meanings: dict[str, Meaning]
) -> dict[str, Any]:
    """The same in JSON's types; null is what is not known."""
    names = recovery.concept_names if recovery is not None else []
    measured = recovery.results if recovery is not None else {}
    concepts = []
    for i, name in enumerate(names):
        saes = {}
        for sae, seen in results.sights.items():
            field, sight = results.fields[sae], seen[i]
            bound = dict(zip(("f1", "low", "high"), map(_number, sight.bound), strict=True))
            saes[sae] = {
                "best_f1": _number(sight.best_f1),
                "receptive_field": None if field is None else field.name,
                "bound": bound if sight.bound.known else None,
                "state": sight.state,
            }
        concepts.append({"concept": name, "saes": saes})
    pairs = []
    for (sae, other), overlap in results.overlaps.items():
        pairs.append(
            {
                "sae": sae,
                "other": other,
                "alone": _number(overlap.alone),
                "alone_by_chance": _number(overlap.alone_by_chance),
                "latents": _latents(overlap, min_jaccard, measured.get(sae), meanings.get(sae), names),
            }
        )
    return {"concepts": concepts, "pairs": pairs}


def alone(overlap: LatentOverlapResult, min_jaccard: float) -> list[int]:
    """The live latents without a counterpart."""
    return (overlap.best < min_jaccard).nonzero().flatten().tolist()  # NaN, of dead ones, is not smaller


def _latents(
    overlap: LatentOverlapResult,
    min_jaccard: float,
    measured: Recovery | None,
    meaning: Meaning | None,
    names: list[str],
) -> list[dict[str, Any]]:
    """What is known of the latents without a counterpart, those that fire most often first."""
    found = []
    f1 = None if measured is None or measured.f1 is None else measured.f1.f1.cpu().nan_to_num(0.0)
    for latent in alone(overlap, min_jaccard):
        entry: dict[str, Any] = {"latent": latent, "best_jaccard": _number(overlap.best[latent])}
        entry["nearest"] = int(overlap.counterpart[latent])
        entry["best_jaccard_by_chance"] = _number(overlap.by_chance[latent])
        if f1 is not None and names:
            score, concept = f1[:, latent].max(0)
            entry |= {"concept": names[int(concept)] if score > 0 else None, "f1": _number(score)}
        if meaning is not None:
            top = meaning.top
            entry["frequency"] = _number(top.frequency[latent])
            entry["top_samples"] = [i for i in top.indices[latent].tolist() if i >= 0]
        found.append(entry)
    return sorted(found, key=lambda entry: -(entry.get("frequency") or 0.0))


def _number(value: float | Tensor) -> float | None:
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None
