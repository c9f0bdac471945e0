"""JumpReLU SAE."""

from sae_lightning.backends import BackendName
from sae_lightning.modules.base import BaseSAE
from sae_lightning.modules.optimizers import LRSchedulerCallable, OptimizerCallable, adam
from sae_lightning.nn import L0, Affine, Decoder, Initialization, Jump


class JumpReLUSAE(BaseSAE):
    r"""JumpReLU SAE: affine encoder, orthant with a jump at a trained threshold, number of firing latents.

    $$ v = s (W x + b), \qquad z_i = v_i H(v_i - \theta_i), \qquad R = \sum_i H(v_i - \theta_i) $$

    Each latent sees a half-space: a concept must be linearly separable to have a latent of its own.

    Args:
        d_in: Size of an activation.
        d_sae: Number of latents.
        gamma: Weight of the L0 term, at least 0.
        threshold_init: Initial threshold of every latent, in units of the pre-codes, positive.
        bandwidth: Width of the rectangle kernel of the straight-through gradient, positive.
        encoder_bias: Whether latents have a bias.
        decoder_bias: Whether reconstructions have a bias.
        subtract_decoder_bias: Whether the encoder sees `x - b_dec` (needs `decoder_bias`).
        normalize_decoder: Whether atoms have unit norm.
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

    Source: Rajamanoharan et al. (2024), arXiv 2407.14435.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        gamma: float = 1e-3,
        threshold_init: float = 1e-3,
        bandwidth: float = 1e-3,
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
            projection=Jump(d_sae, threshold_init, bandwidth),
            decoder=Decoder(d_in, d_sae, decoder_bias, normalize_decoder),
            regularizer=L0(d_sae),
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
