"""BaseSAE: one sparse autoencoder as a LightningModule, composed from its three parts."""

import json
import os
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from sae_lightning.backends import BackendName, Dense, choose
from sae_lightning.modules.arguments import complete_signature, require_passed
from sae_lightning.modules.member import Evaluation, Learned, Member
from sae_lightning.modules.module import SAEModule
from sae_lightning.modules.optimizers import LRSchedulerCallable, OptimizerCallable, adam
from sae_lightning.modules.schedules import Warmup, warmup_length
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


class BaseSAE(Member, SAEModule):
    r"""A sparse autoencoder: encoder, projection and decoder, with a regularizer that is weighted by gamma.

    $$ \mathrm{loss} = \mathrm{mean}_{batch} \|\tilde x - \hat x\|^2 + \gamma \, \mathrm{mean}_{batch} R(z, x) $$

    Subclasses name the parts; `forward`, `encode` and `decode` take and return raw units. The `**kwargs` of a
    subclass's constructor stand for the keyword-only arguments of its base.

    Args:
        encoder: Maps standardized inputs to pre-codes.
        projection: Maps pre-codes to sparse codes.
        decoder: Maps codes to standardized reconstructions.
        regularizer: Penalty on the codes, or None.
        gamma: Weight of the regularizer, at least 0.
        subtract_decoder_bias: Whether the encoder sees `x - b_dec`.
        l0_init: Mean L0 on the first samples to which lambda is calibrated, or None.
        targets: Whether the SAE reconstructs a batch's `target`, with a standardizer of its own, instead of the inputs.
        input_layers: Number of layers of inputs `(batch, input_layers, d_in)`; None for inputs `(batch, d_in)`.
        init: Initial rows of both matrices: unit vectors, standard normals, or data points (for an affine encoder:
            their directions).
        standardize: Whether the SAE standardizes its inputs (mean 0, mean squared norm `d_in`).
        n_init_samples: Training samples from which standardization and initial values are taken; at least `d_sae` where
            these are data points.
        gamma_warmup: Steps (an integer), or share of training (a number up to 1 such as 0.05), over which gamma rises
            linearly from 0; 0 for none. The losses of validation and test use the whole gamma.
        chunk_size: Samples whose dense pre-codes are held at a time in a training step, at least 1, which bounds its
            memory for many latents; None holds those of the whole batch.
        dense_above: Codes per sample, at least 1, above which training uses dense products; None takes the share of
            `d_sae` at which they were measured to become faster.
        backend: How training steps are run: auto takes the fastest way that knows the parts, dense any parts.
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
        subtract_decoder_bias: bool = False,
        l0_init: float | None = None,
        targets: bool = False,
        input_layers: int | None = None,
        *,
        init: Initialization = "unit",
        standardize: bool = True,
        n_init_samples: int = 32_768,
        gamma_warmup: int | float = 0,
        chunk_size: int | None = None,
        dense_above: int | None = None,
        backend: BackendName = "auto",
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        received = {
            "init": init,
            "standardize": standardize,
            "n_init_samples": n_init_samples,
            "gamma_warmup": gamma_warmup,
            "chunk_size": chunk_size,
            "dense_above": dense_above,
            "backend": backend,
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler,
        }
        require_passed(self, BaseSAE, received)
        super().__init__(encoder.d_in // (input_layers or 1))
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"gamma must be at least 0 and finite, but is {gamma}")
        if init not in get_args(Initialization):
            raise ValueError(f"init must be one of {get_args(Initialization)}, but is {init!r}")
        require_positive("n_init_samples", n_init_samples)
        gamma_warmup = warmup_length("gamma_warmup", gamma_warmup)
        if l0_init is not None and not 1 <= l0_init <= encoder.d_sae:
            raise ValueError(f"l0_init must lie between 1 and d_sae = {encoder.d_sae}, but is {l0_init}")
        if l0_init is not None and not tells(encoder, "calibrate"):
            raise ValueError(f"l0_init needs the encoder SquaredDistance, but got {type(encoder).__name__}")
        for name, value in {"chunk_size": chunk_size, "dense_above": dense_above}.items():
            if value is not None:
                require_positive(name, value)
        self.sae = SparseAutoencoder(
            encoder, projection, decoder, standardize, subtract_decoder_bias, targets, input_layers
        )
        if regularizer is not None:
            regularizer.check(self.sae)
        self.regularizer = regularizer
        self.d_sae = encoder.d_sae
        self.gamma = gamma
        self.schedules = nn.ModuleDict()
        if gamma_warmup:
            self.schedules["regularizer"] = Warmup(gamma_warmup)
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
        self.save_hyperparameters()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Complete the constructor's signature by the arguments that it passes on to its base."""
        super().__init_subclass__(**kwargs)
        complete_signature(cls)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: `(d_in,)`, or `(input_layers, d_in)`."""
        return self.sae.standardizer.raw_shape

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        """Shape of one target, `(d_out,)`; None where the SAE reconstructs its input."""
        return None if self.sae.target_standardizer is None else (self.sae.d_out,)

    def saes(self) -> "dict[str, BaseSAE]":
        """Return this SAE alone, under the empty name."""
        return {"": self}

    @torch.no_grad()
    def initialize(self, x: Tensor, target: Tensor | None = None) -> None:
        """Fit standardization, and take initial values from data where `init` or `l0_init` say so.

        Args:
            x: Raw training samples, `(n, d_in)`.
            target: Their raw targets, `(n, d_out)`, for SAEs that have some.
        """
        self.sae.standardizer.fit(x)
        if self.sae.target_standardizer is not None:
            self.sae.standardize_pair(x, target)  # checks the shapes
            assert target is not None
            self.sae.target_standardizer.fit(target)
        x, wanted = self.sae.standardize_pair(x, target)
        if self.init == "data":
            initialize_from_data(self.sae, x, new_generator(), None if self.target_shape is None else wanted)
        if self.l0_init is not None:
            self._calibrate(x, self.l0_init)
        self.initialized.fill_(True)

    def _calibrate(self, x: Tensor, l0: float) -> None:
        self.sae.encoder.calibrate(x, self.sae.projection, l0)

    def forward(self, x: Tensor) -> SAEOutput:
        """Return reconstructions (raw units), codes and pre-codes of raw inputs `(..., d_in)`."""
        running = self.running(x.device.type)
        out = running.all_latents(running.autoencode(self.sae.standardize(x)))
        return out._replace(x_hat=self.sae.destandardize(out.x_hat))

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of raw inputs: `(..., d_in)` to `(..., d_sae)`."""
        return self.running(x.device.type).encode(x)

    def decode(self, codes: Tensor) -> Tensor:
        """Return reconstructions in raw units: `(..., d_sae)` to `(..., d_out)`."""
        return self.running(codes.device.type).decode(codes)

    # ------------------------------------------------------------------ backend

    def running(self, device: str) -> Dense:
        """Return the backend that runs this SAE on a type of device.

        Raises:
            ValueError: If `backend` is unknown or cannot run these parts.
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
        r"""The dictionary in raw units, `(d_sae, d_out)`: reconstructions are $z W_{dec} + b_{dec}$.

        Row i is what latent i adds per unit of its code. (`sae.decoder.weight` holds neither the atoms' norms nor the
        scale of the inputs.)
        """
        return raw_weights(self.sae).W_dec

    @property
    def b_dec(self) -> Tensor:
        """The reconstruction where no latent fires, in raw units, `(d_out,)`."""
        return raw_weights(self.sae).b_dec

    @property
    def threshold(self) -> Tensor | None:
        """Pre-code above which each latent fires, `(d_sae,)`; None for SAEs without thresholds."""
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

        The metadata describe the SAE (`describe`, as JSON under `sae_lightning`). W_enc and b_enc are written only if
        pre-codes are affine in the inputs, threshold only if the SAE has thresholds.

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

    def _schedules(self) -> dict[str, Warmup]:
        return dict(self.schedules.items())  # type: ignore[arg-type]

    def begin_training(self, n_steps: float, resumed: bool = False) -> None:
        """Begin schedules.

        Args:
            n_steps: Optimizer steps of the training; inf if it has no end.
            resumed: Whether training continues that of a checkpoint, whose schedules continue.

        Raises:
            ValueError: If a schedule needs an end that training does not have.
        """
        for schedule in self._schedules().values():
            schedule.begin(n_steps, resumed)

    def advance(self, step: int) -> None:
        """Set scheduled coefficients to their values after `step` optimizer steps."""
        for schedule in self._schedules().values():
            schedule.advance(step)

    def learn(self, x: Tensor, target: Tensor | None = None) -> Learned:
        """Evaluate a training batch of raw inputs, and count which latents stayed silent in it."""
        x, wanted = self.sae.standardize_pair(x, target)
        running = self.running(x.device.type)
        out = running.forward_train(x)
        fired = running.fired(out)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            counts = fired.to(torch.int32)
            torch.distributed.all_reduce(counts, op=torch.distributed.ReduceOp.MAX)
            fired = counts.bool()
        self.sae.count_silence(fired)
        factors = {name: schedule.factor() for name, schedule in self._schedules().items()}
        return Learned(x, out, self._with_loss(self.loss_terms(x, wanted, out), factors), running)

    def evaluate(self, x: Tensor, target: Tensor | None = None) -> Evaluation:
        """Return standardized inputs, outputs and loss terms of a batch of raw inputs; changes nothing."""
        x, wanted = self.sae.standardize_pair(x, target)
        running = self.running(x.device.type)
        out = running.autoencode(x)
        terms = self._with_loss(self.loss_terms(x, wanted, out), {})
        return Evaluation(x, running.all_latents(out), terms, wanted)

    def loss_terms(self, x: Tensor, target: Tensor, out: SAEOutput) -> dict[str, Tensor]:
        r"""The terms of the loss by name, each a mean over the batch; the loss is their sum, weighted by `weights`.

        A subclass may add terms to those that it gets from here, or replace them. Its training then works on dense
        codes, which `out` holds. In training, a term whose name is in `schedules` is multiplied by that schedule's
        factor.

        Args:
            x: Standardized inputs, `(batch, d_in)`.
            target: What is to be reconstructed, standardized, `(batch, d_out)`.
            out: Standardized reconstructions, codes and pre-codes.

        Returns:
            `mse`, the squared error summed over features, and `regularizer` where gamma is above 0.
        """
        terms = {"mse": (target - out.x_hat).square().sum(-1).mean()}
        if self.regularizer is not None and self.gamma > 0:
            terms["regularizer"] = self.running(x.device.type).regularize(x, out).mean()
        return terms

    def weights(self) -> dict[str, float]:
        """Return the weights of the loss terms; those not listed have weight 1."""
        return {"regularizer": self.gamma}

    def _with_loss(self, terms: dict[str, Tensor], factors: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = self.weights()
        loss = None
        for name, term in terms.items():
            weighted = term * weights[name] if name in weights else term
            weighted = weighted * factors[name] if name in factors else weighted
            loss = weighted if loss is None else loss + weighted
        assert loss is not None
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, if there is one, its schedule, which steps once per training step."""
        optimizer, scheduler = self.make_optimizer()
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
