"""BaseSAE: one sparse autoencoder as a LightningModule, composed from its three parts."""

import json
import os
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from sae_lightning.backends import BackendName, Dense, choose
from sae_lightning.modules.module import Evaluation, Learned, SAEModule
from sae_lightning.modules.optimizers import LRSchedulerCallable, OptimizerCallable, adam
from sae_lightning.nn import (
    Decoder,
    Encoder,
    Initialization,
    Projection,
    Regularizer,
    SAEOutput,
    SparseAutoencoder,
)
from sae_lightning.nn.initialization import (
    initialize_from_data,
    initialize_weights,
    new_generator,
)
from sae_lightning.nn.parts import require_positive, tells
from sae_lightning.nn.raw_weights import raw_weights
from sae_lightning.run.files import replacing


class BaseSAE(SAEModule):
    r"""A sparse autoencoder: encoder, projection and decoder, with a regularizer that is weighted by gamma.

    $$ \mathrm{loss} = \mathrm{mean}_{batch} \|\tilde x - \hat x\|^2 + \gamma \, \mathrm{mean}_{batch} R(z, x) $$

    Subclasses name the parts; `forward`, `encode` and `decode` take and return raw units.

    Args:
        encoder: Maps standardised inputs to pre-codes.
        projection: Maps pre-codes to sparse codes.
        decoder: Maps codes to standardised reconstructions.
        regularizer: What codes cost, or None.
        gamma: Weight of the regularizer, at least 0.
        standardize: Whether the SAE standardises its inputs (mean 0, mean squared norm `d_in`).
        subtract_decoder_bias: Whether the encoder sees `x - b_dec`.
        init: Initial rows of both matrices.
        l0_init: Mean L0 on the first samples to which lambda is calibrated, or None.
        chunk_size: Samples whose dense pre-codes are held at a time in a training step, or None for the whole batch.
        dense_above: Codes per sample above which training uses dense products; None takes a measured share of `d_sae`.
        backend: How training steps are run: the fastest way that knows the parts (auto), or one by name.
        n_init_samples: Training samples from which standardisation and initial values are taken.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning-rate schedule, which steps once per training step.

    Raises:
        ValueError: If an argument is out of range or the parts do not fit.
    """

    undescribed = frozenset({"optimizer", "lr_scheduler", "backend"})
    initialized: Tensor

    def __init__(
        self,
        encoder: Encoder,
        projection: Projection,
        decoder: Decoder,
        regularizer: Regularizer | None,
        gamma: float,
        *,
        standardize: bool,
        subtract_decoder_bias: bool,
        init: Initialization,
        n_init_samples: int,
        l0_init: float | None = None,
        chunk_size: int | None = None,
        dense_above: int | None = None,
        backend: BackendName = "auto",
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(encoder.d_in)
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"gamma must be at least 0 and finite, but is {gamma}")
        if init not in get_args(Initialization):
            raise ValueError(f"init must be one of {get_args(Initialization)}, but is {init!r}")
        require_positive("n_init_samples", n_init_samples)
        if l0_init is not None and not 1 <= l0_init <= encoder.d_sae:
            raise ValueError(f"l0_init must lie between 1 and d_sae = {encoder.d_sae}, but is {l0_init}")
        if l0_init is not None and not tells(encoder, "calibrate"):
            raise ValueError(f"l0_init needs the encoder SquaredDistance, but got {type(encoder).__name__}")
        for name, value in {"chunk_size": chunk_size, "dense_above": dense_above}.items():
            if value is not None:
                require_positive(name, value)
        self.sae = SparseAutoencoder(encoder, projection, decoder, standardize, subtract_decoder_bias)
        if regularizer is not None:
            regularizer.check(self.sae)
        self.regularizer = regularizer
        self.d_sae = encoder.d_sae
        self.gamma = gamma
        self.backend = backend
        self.chunk_size = chunk_size
        self.dense_above = dense_above
        self._running: dict[tuple[str, bool], Dense] = {}  # by type of device, and whether codes cost something
        if backend != "sharded":  # which the strategy makes
            self.running("cpu")
        self.init = init
        self.l0_init = l0_init
        self.n_init_samples = max(n_init_samples, self.d_sae if init == "data" else 1)
        self._make_optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self.register_buffer("initialized", torch.tensor(False))
        # data points are not there yet: until then "data" starts from random directions
        initialize_weights(self.sae, "normal" if init == "normal" else "unit", new_generator())
        self.save_hyperparameters(self.describe()["init_args"])

    def saes(self) -> dict[str, "BaseSAE"]:
        """This SAE alone, under the empty name."""
        return {"": self}

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Fit standardisation, and take initial values from data where that was asked for.

        Args:
            x: Raw training samples, `(n, d_in)`.
        """
        self.sae.standardizer.fit(x)
        x = self.sae.standardize(x)
        if self.init == "data":
            initialize_from_data(self.sae, x, new_generator())
        if self.l0_init is not None:
            self._calibrate(x, self.l0_init)
        self.initialized.fill_(True)

    def _calibrate(self, x: Tensor, l0: float) -> None:
        self.sae.encoder.calibrate(x, self.sae.projection, l0)

    def forward(self, x: Tensor) -> SAEOutput:
        """Return reconstructions (raw units), codes and pre-codes of raw inputs `(..., d_in)`."""
        running = self.running(x.device.type)
        out = running.all_latents(running.autoencode(self.sae.standardize(x)))
        return out._replace(x_hat=self.sae.standardizer.inverse(out.x_hat))

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of raw inputs: `(..., d_in)` to `(..., d_sae)`."""
        return self.running(x.device.type).encode(x)

    def decode(self, codes: Tensor) -> Tensor:
        """Return reconstructions in raw units: `(..., d_sae)` to `(..., d_in)`."""
        return self.running(codes.device.type).decode(codes)

    # ------------------------------------------------------------------ how it is run

    def running(self, device: str) -> Dense:
        """The backend that runs this SAE on a type of device.

        Raises:
            ValueError: If the backend that was asked for is unknown or cannot run these parts.
        """
        key = device, self.gamma > 0  # gamma may be set at any time
        if key not in self._running:
            self._running[key] = choose(
                self.backend,
                self.sae,
                self.regularizer if self.gamma > 0 else None,
                device,
                self.chunk_size,
                self.dense_above,
                own_loss=type(self).loss_terms is not BaseSAE.loss_terms,
            )
        return self._running[key]

    def run_by(self, backend: Dense, device: str) -> None:
        """Run this SAE by a backend that was made for it, on a type of device."""
        self._running = {(device, costs): backend for costs in (False, True)}

    # ------------------------------------------------------------------ weights in raw units

    @property
    def W_enc(self) -> Tensor:  # noqa: N802  (the field's name)
        r"""The encoder's matrix in raw units, `(d_in, d_sae)`: codes are $\Pi_S(x W_{enc} + b_{enc})$.

        Raises:
            ValueError: If pre-codes are not affine in the inputs.
        """
        return self._affine("W_enc")

    @property
    def b_enc(self) -> Tensor:
        """The encoder's bias in raw units, `(d_sae,)`.

        Raises:
            ValueError: If pre-codes are not affine in the inputs.
        """
        return self._affine("b_enc")

    @property
    def W_dec(self) -> Tensor:  # noqa: N802  (the field's name)
        r"""The dictionary in raw units, `(d_sae, d_in)`: reconstructions are $z W_{dec} + b_{dec}$.

        Row i is what latent i adds per unit of its code. (`sae.decoder.weight` holds neither the atoms' norms nor the
        scale of the inputs.)
        """
        return raw_weights(self.sae).W_dec

    @property
    def b_dec(self) -> Tensor:
        """The reconstruction where no latent fires, in raw units, `(d_in,)`."""
        return raw_weights(self.sae).b_dec

    @property
    def threshold(self) -> Tensor | None:
        """What each latent's pre-code must exceed for it to fire, `(d_sae,)`; None for SAEs without thresholds."""
        found = self.sae.projection.thresholds()
        return None if found is None else found.detach()

    def _affine(self, name: str) -> Tensor:
        found: Tensor | None = getattr(raw_weights(self.sae), name)
        if found is None:
            encoder, projection = type(self.sae.encoder).__name__, type(self.sae.projection).__name__
            raise ValueError(
                f"{name} needs pre-codes that are affine in the inputs, but {encoder} with {projection} has others"
            )
        return found

    def save_safetensors(self, path: str | os.PathLike[str]) -> None:
        """Write the weights in raw units, for other programs: W_enc, b_enc, W_dec, b_dec and threshold.

        The metadata say what they are weights of (`describe`, as JSON under `sae_lightning`). Of SAEs
        whose pre-codes are not affine there are no W_enc and b_enc, of those without thresholds no threshold.

        Args:
            path: The file; its folder must exist.

        Raises:
            OSError: If it cannot be written; an older file stays.
        """
        from safetensors.torch import save

        tensors = {**raw_weights(self.sae)._asdict(), "threshold": self.threshold}
        present = {name: value.cpu().contiguous() for name, value in tensors.items() if value is not None}
        with replacing(Path(path)) as file:
            file.write(save(present, {"sae_lightning": json.dumps(self.describe())}))

    # ------------------------------------------------------------------ training

    def learn(self, x: Tensor) -> Learned:
        """Evaluate a training batch of raw inputs, and count which latents stayed silent in it."""
        x = self.sae.standardize(x)
        running = self.running(x.device.type)
        out = running.forward_train(x)
        fired = running.fired(out)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            counts = fired.to(torch.int32)
            torch.distributed.all_reduce(counts, op=torch.distributed.ReduceOp.MAX)
            fired = counts.bool()
        self.sae.count_silence(fired)
        return Learned(x, out, self._with_loss(self.loss_terms(x, x, out)), running)

    def evaluate(self, x: Tensor) -> Evaluation:
        """Standardised inputs, outputs and loss terms of a batch of raw inputs; changes nothing."""
        x = self.sae.standardize(x)
        running = self.running(x.device.type)
        out = running.autoencode(x)
        terms = self._with_loss(self.loss_terms(x, x, out))
        return Evaluation(x, running.all_latents(out), terms)

    def loss_terms(self, x: Tensor, target: Tensor, out: SAEOutput) -> dict[str, Tensor]:
        r"""The terms of the loss by name, each a mean over the batch; the loss is their sum, weighted by `weights`.

        A subclass may add terms to those that it gets from here, or replace them. Its training then works on dense
        codes, which `out` holds.

        Args:
            x: Standardised inputs, `(batch, d_in)`.
            target: What is reconstructed, standardised.
            out: What the SAE makes of the inputs.

        Returns:
            `mse`, the squared error summed over features, and `regularizer` where gamma is above 0.
        """
        terms = {"mse": (target - out.x_hat).square().sum(-1).mean()}
        if self.regularizer is not None and self.gamma > 0:
            terms["regularizer"] = self.running(x.device.type).regularize(x, out).mean()
        return terms

    def weights(self) -> dict[str, float]:
        """The weight of each term of the loss that is not 1."""
        return {"regularizer": self.gamma}

    def _with_loss(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = self.weights()
        loss = None
        for name, term in terms.items():
            weighted = term * weights[name] if name in weights else term
            loss = weighted if loss is None else loss + weighted
        assert loss is not None
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def configure_optimizers(self) -> Any:
        """Optimizer and, where there is one, schedule, which steps with every training step."""
        optimizer, scheduler = self.make_optimizer()
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
