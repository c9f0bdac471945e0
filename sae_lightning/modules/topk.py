"""TopK SAE."""

from sae_lightning.backends import BackendName
from sae_lightning.modules.base import BaseSAE
from sae_lightning.modules.optimizers import LRSchedulerCallable, OptimizerCallable, adam
from sae_lightning.nn import Affine, AuxK, Decoder, Initialization, KSparse


class TopKSAE(BaseSAE):
    r"""TopK SAE: affine encoder, at most k codes per sample, dead latents revived by the residual.

    $$ z = \mathrm{TopK}(s W (x - b_{dec}))_+, \qquad R = \|e - z_{aux} W_{dec}\|^2 $$

    Each latent sees a union of cones with one apex: concepts must be separable by their angle, and every concept
    gets the same dimension k.

    Args:
        d_in: Size of an activation.
        d_sae: Number of latents.
        k: Number of codes to keep per sample, from 1 to `d_sae`.
        gamma: Weight of the aux-k loss, at least 0; 0 switches it off.
        k_aux: How many dead latents explain the residual; None takes half of `d_in`.
        dead_after: A latent is dead after this many training batches in which it never fired.
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

    Source: Gao et al. (2024), arXiv 2406.04093.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        k: int = 32,
        gamma: float = 1 / 32,
        k_aux: int | None = None,
        dead_after: int = 20,
        encoder_bias: bool = False,
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
            projection=KSparse(d_sae, k),
            decoder=Decoder(d_in, d_sae, decoder_bias, normalize_decoder),
            regularizer=AuxK(d_sae, k_aux, dead_after),
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
