"""ReLU SAE."""

from sae_lightning.backends import BackendName
from sae_lightning.modules.base import BaseSAE
from sae_lightning.modules.optimizers import LRSchedulerCallable, OptimizerCallable, adam
from sae_lightning.nn import L1, Affine, Decoder, Initialization, Orthant


class ReLUSAE(BaseSAE):
    r"""ReLU SAE: affine encoder, nonnegative orthant, L1 norm of the codes.

    $$ z = \max(s (W x + b), 0), \qquad R = \sum_i z_i $$

    Each latent sees a half-space: a concept must be linearly separable to have a latent of its own.

    Args:
        d_in: Size of an activation.
        d_sae: Number of latents.
        gamma: Weight of the L1 norm, at least 0.
        encoder_bias: Whether latents have a bias.
        decoder_bias: Whether reconstructions have a bias.
        subtract_decoder_bias: Whether the encoder sees `x - b_dec` (needs `decoder_bias`).
        normalize_decoder: Whether atoms have unit norm; without it, L1 can be escaped by larger atoms.
        pre_code_scale: Frozen factor s of the pre-codes; the authors used `1 / (2 * d_in)`.
        init: Initial rows of both matrices: unit vectors, standard normals, or directions of data points.
        standardize: Whether the SAE standardises its inputs.
        n_init_samples: Training samples from which standardisation (and data points) are taken.
        chunk_size: Samples whose dense pre-codes are held at a time in a training step, at least 1, which bounds its
            memory for many latents; None holds those of the whole batch.
        dense_above: Codes per sample, at least 1, above which training uses dense products; None takes the share of
            `d_sae` at which they were measured to become faster.
        backend: How training steps are run: auto takes the fastest way that knows the parts, dense any parts.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning-rate schedule, which steps once per training step.

    Source: Bricken et al. (2023), Towards Monosemanticity; Cunningham et al. (2023), arXiv 2309.08600.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        gamma: float = 1e-2,
        encoder_bias: bool = True,
        decoder_bias: bool = True,
        subtract_decoder_bias: bool = True,
        normalize_decoder: bool = True,
        pre_code_scale: float = 1.0,
        init: Initialization = "unit",
        standardize: bool = True,
        n_init_samples: int = 32_768,
        chunk_size: int | None = None,
        dense_above: int | None = None,
        backend: BackendName = "auto",
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(
            encoder=Affine(d_in, d_sae, encoder_bias, pre_code_scale),
            projection=Orthant(d_sae),
            decoder=Decoder(d_in, d_sae, decoder_bias, normalize_decoder),
            regularizer=L1(d_sae),
            gamma=gamma,
            standardize=standardize,
            subtract_decoder_bias=subtract_decoder_bias,
            init=init,
            n_init_samples=n_init_samples,
            chunk_size=chunk_size,
            dense_above=dense_above,
            backend=backend,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
