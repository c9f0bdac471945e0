"""Resampling: dead latents are put at samples that an SAE explains badly."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_lightning.nn.autoencoder import SAEOutput, SparseAutoencoder
from sae_lightning.nn.firing import fires
from sae_lightning.nn.parts import Part, tells
from sae_lightning.nn.rows import full_tensor, mean_of_live, set_rows

_FACTOR = 1.25  # by which an encoder is strengthened at a time
_ROUNDS = 16  # at most: where latents compete, rows would grow without limit
_RATE, _ROUNDS_FOR_RATE = 0.2, 4  # how often it is to fire, as a share of the mean live latent, and rounds spent on it
_LEAST_SCALE = 0.05  # of new atoms


def require_resamplable(sae: SparseAutoencoder) -> None:
    """Raise a ValueError unless the parts of an SAE tell how a dead latent is resampled."""
    told: list[tuple[Part, str]] = [(sae.encoder, "restart"), (sae.encoder, "strengthen")]
    if any(True for _ in sae.projection.parameters()):
        told.append((sae.projection, "restart"))
    for part, method in told:
        if not tells(part, method):
            raise ValueError(
                f"dead latents can be resampled only where every part tells how, but {type(part).__name__} has no "
                f"method {method} of its own"
            )


@torch.no_grad()
def resample(
    sae: SparseAutoencoder,
    latents: Tensor,
    alive: Tensor,
    x: Tensor,
    counts: Tensor,
    evaluate: Callable[[], SAEOutput],
    share: float,
    generator: torch.Generator,
    target: Tensor | None = None,
) -> Tensor:
    r"""Put latents at samples that are explained badly, such that each fires on its own sample.

    1. Each latent draws a sample of its own, with a probability proportional to the square of its squared error
       $\|x - \hat x\|^4$.
    2. The encoder row points to the sample or along its residual (`Encoder.restart`), and what the projection trains
       becomes initial (`Projection.restart`).
    3. Until it fires on its own sample, a latent is strengthened (`Encoder.strengthen`). The SAE itself tells whether
       it fires, so this holds for every projection, however many new latents compete. The first four rounds also
       strengthen those that fire less than a fifth as often as the mean live latent: they would soon be silent again.
    4. With $r = x - \hat x$ the residual of its sample without new atoms and $z$ its code there, an atom becomes
       $r / \max(z, \bar z)$, where $\bar z$ is the mean code that fired before. One factor of at most 1, which explains
       the batch best, then scales all new atoms: together they would explain more than is missing. Atoms of unit norm
       keep their direction only.

    Args:
        sae: The SAE, whose parts are resamplable.
        latents: Which latents, int64 `(n_latents,)`, at most as many as samples.
        alive: Latents that serve as examples, bool `(d_sae,)`; where there are none, initial values do.
        x: Distinct samples, standardised, `(n, d_in)`.
        counts: How many times each sample occurs, `(n,)`.
        evaluate: Gives the output for these samples, with the codes of all latents, from the weights as they are.
        share: Norm of a new encoder row as a share of the mean of the live ones, before it is strengthened.
        generator: Source of randomness, on the CPU.
        target: Standardized targets of the samples, `(n, d_out)`, for SAEs that reconstruct these instead of `x`; an
            encoder row then points to its sample, as residuals lie in another space.

    Returns:
        Which of the latents fire on their own sample, bool `(n_latents,)`.

    Source: after Bricken et al. (2023), Towards Monosemanticity.
    """
    wanted = x if target is None else target
    out = evaluate()
    errors = (wanted - out.x_hat).square().sum(-1).double().cpu()
    weights = counts.cpu() * (errors / errors.max().clamp_min(1e-300)).square() + 1e-12
    own = torch.multinomial(weights, len(latents), replacement=False, generator=generator).to(x.device)
    centre = 0.0 if sae.centre is None else full_tensor(sae.centre.detach())
    inputs = x[own] - centre
    residuals = (x - out.x_hat)[own] if target is None else inputs
    sae.encoder.restart(latents, inputs, residuals, alive, share)
    sae.projection.restart(latents)
    firing = fires(out.codes)
    usual = out.codes[firing].abs().mean() if bool(firing.any()) else x.new_tensor(1.0)
    often = _RATE * int(firing.sum()) / max(1, int(alive.sum()))  # in samples of this batch
    norm = mean_of_live(sae.decoder.weight.detach().norm(dim=-1), alive, 1.0)
    set_rows(sae.decoder.weight, latents, 0.0)
    for attempt in range(_ROUNDS + 1):
        out = evaluate()
        fired = fires(out.codes[own, latents])
        rare = fires(out.codes[:, latents]).sum(0) < (often if attempt < _ROUNDS_FOR_RATE else 0)
        weak = rare | ~fired
        if attempt == _ROUNDS or not bool(weak.any()):
            break
        sae.encoder.strengthen(latents[weak], _FACTOR)
    codes, missing = out.codes[:, latents], wanted - out.x_hat
    z = out.codes[own, latents][:, None]
    atoms = torch.where(z < 0, -1, 1) * missing[own] / z.abs().clamp_min(usual)
    if sae.decoder.unit_norm:
        atoms = norm * normalize(atoms, dim=-1)
    else:
        added = codes @ atoms
        scale = (counts[:, None] * missing * added).sum() / (counts[:, None] * added.square()).sum().clamp_min(1e-30)
        atoms = atoms * scale.clamp(_LEAST_SCALE, 1)
    set_rows(sae.decoder.weight, latents, atoms.to(sae.decoder.weight.dtype))
    return fired
