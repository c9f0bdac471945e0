"""ComposedSAE: any encoder with any projection and any regularizer."""

from collections.abc import Callable

from sae_lightning.backends import BackendName
from sae_lightning.modules.base import BaseSAE
from sae_lightning.modules.optimizers import LRSchedulerCallable, OptimizerCallable, adam
from sae_lightning.nn import Decoder, Encoder, Initialization, Projection, Regularizer


class ComposedSAE(BaseSAE):
    """An SAE from parts that the user names: each part is a class, or a class with some of its arguments.

    Args:
        d_in: Size of an activation.
        d_sae: Number of latents.
        encoder: Makes the encoder from `d_in` and `d_sae`.
        projection: Makes the projection from `d_sae`.
        regularizer: Makes the regularizer from `d_sae`; None for none.
        gamma: Weight of the regularizer, at least 0.
        decoder_bias: Whether reconstructions have a bias.
        subtract_decoder_bias: Whether the encoder sees `x - b_dec` (needs `decoder_bias`).
        normalize_decoder: Whether atoms have unit norm.
        l0_init: Mean L0 on the first training samples to which the initial lambda of a distance encoder is
            calibrated, from 1 to `d_sae` (with KSparse: positive pre-codes, of which it keeps k); None leaves it.
        init: Initial rows of both matrices.
        standardize: Whether the SAE standardises its inputs.
        n_init_samples: Training samples from which standardisation and initial values are taken.
        chunk_size: Samples whose dense pre-codes are held at a time in a training step, at least 1, which bounds its
            memory for many latents; None holds those of the whole batch.
        dense_above: Codes per sample, at least 1, above which training uses dense products; None takes the share of
            `d_sae` at which they were measured to become faster.
        backend: How training steps are run: auto takes the fastest way that knows the parts, dense any parts.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning-rate schedule, which steps once per training step.

    Raises:
        ValueError: If the parts do not fit each other.

    Example:
        >>> from functools import partial
        >>> from sae_lightning.nn import L1, Affine, KSparse
        >>> sae = ComposedSAE(8, 32, encoder=Affine, projection=partial(KSparse, k=4), regularizer=L1)
        >>> sae.describe()["init_args"]["projection"]["init_args"]
        {'k': 4}
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        encoder: Callable[[int, int], Encoder],
        projection: Callable[[int], Projection],
        regularizer: Callable[[int], Regularizer] | None = None,
        gamma: float = 1e-2,
        decoder_bias: bool = True,
        subtract_decoder_bias: bool = False,
        normalize_decoder: bool = False,
        l0_init: float | None = None,
        init: Initialization = "unit",
        standardize: bool = True,
        n_init_samples: int = 32_768,
        chunk_size: int | None = None,
        dense_above: int | None = None,
        backend: BackendName = "auto",
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        parts: dict[str, Encoder | Projection | Regularizer | None] = {
            "encoder": encoder(d_in, d_sae),
            "projection": projection(d_sae),
            "regularizer": None if regularizer is None else regularizer(d_sae),
        }
        # factories cannot be stored in a checkpoint: what they made describes itself in plain values
        self.init_args.update({name: part and part.describe() for name, part in parts.items()})
        super().__init__(
            **parts,  # type: ignore[arg-type]
            decoder=Decoder(d_in, d_sae, decoder_bias, normalize_decoder),
            gamma=gamma,
            standardize=standardize,
            subtract_decoder_bias=subtract_decoder_bias,
            init=init,
            l0_init=l0_init,
            n_init_samples=n_init_samples,
            chunk_size=chunk_size,
            dense_above=dense_above,
            backend=backend,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
