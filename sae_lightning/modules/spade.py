"""SpaDE, the sparsemax distance encoder."""

from sae_lightning.backends import BackendName
from sae_lightning.modules.base import BaseSAE
from sae_lightning.modules.optimizers import LRSchedulerCallable, OptimizerCallable, adam
from sae_lightning.nn import Decoder, DistanceWeightedL1, Initialization, Simplex, SquaredDistance


class SpaDE(BaseSAE):
    r"""SpaDE: squared distances to prototypes, probability simplex, distance-weighted L1.

    $$ z = \mathrm{sparsemax}(-\lambda \|x - w_i\|^2), \qquad R = \sum_i z_i \|x - w_i\|^2 $$

    Each latent sees a convex polytope around its prototype, so concepts need not be linearly separable, and each
    concept takes as many latents as its dimension asks for.

    Args:
        d_in: Size of an activation.
        d_sae: Number of latents.
        gamma: Weight of the distance-weighted L1 norm, at least 0.
        lambda_init: Initial lambda, positive; None calibrates it to `l0_init`.
        l0_init: Mean L0 on the first training samples to which the initial lambda is calibrated, from 1 to `d_sae`;
            None means 16 (at most half of `d_sae`), unless `lambda_init` is given.
        decoder_bias: Whether reconstructions have a bias.
        normalize_decoder: Whether atoms have unit norm.
        init: Initial prototypes and atoms: data points, unit vectors, or standard normals (the authors' choice).
        standardize: Whether the SAE standardises its inputs.
        n_init_samples: Training samples from which standardisation and initial values are taken (at least `d_sae`).
        chunk_size: Samples whose dense pre-codes are held at a time in a training step, at least 1, which bounds its
            memory for many latents; None holds those of the whole batch.
        dense_above: Codes per sample, at least 1, above which training uses dense products; None takes the share of
            `d_sae` at which they were measured to become faster.
        backend: How training steps are run: auto takes the fastest way that knows the parts, dense any parts.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning-rate schedule, which steps once per training step.

    Raises:
        ValueError: If both `lambda_init` and `l0_init` are given.

    Source: Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        gamma: float = 1e-2,
        lambda_init: float | None = None,
        l0_init: float | None = None,
        decoder_bias: bool = False,
        normalize_decoder: bool = False,
        init: Initialization = "data",
        standardize: bool = True,
        n_init_samples: int = 32_768,
        chunk_size: int | None = None,
        dense_above: int | None = None,
        backend: BackendName = "auto",
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        if lambda_init is not None and l0_init is not None:
            raise ValueError(f"give lambda_init or l0_init, not both: they are {lambda_init} and {l0_init}")
        if lambda_init is None and l0_init is None:
            l0_init = max(1.0, min(16.0, d_sae / 2))
        super().__init__(
            encoder=SquaredDistance(d_in, d_sae, 1.0 if lambda_init is None else lambda_init),
            projection=Simplex(d_sae),
            decoder=Decoder(d_in, d_sae, decoder_bias, normalize_decoder),
            regularizer=DistanceWeightedL1(d_sae),
            gamma=gamma,
            standardize=standardize,
            subtract_decoder_bias=False,
            init=init,
            l0_init=l0_init,
            n_init_samples=n_init_samples,
            chunk_size=chunk_size,
            dense_above=dense_above,
            backend=backend,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
