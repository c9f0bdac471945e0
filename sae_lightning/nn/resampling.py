"""Resampling: restart dead latents at samples with a large reconstruction error."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_lightning.nn.autoencoder import SAEOutput, SparseAutoencoder
from sae_lightning.nn.firing import fires
from sae_lightning.nn.parts import Part, tells
from sae_lightning.nn.rows import full_tensor, mean_of_live, set_rows

_FACTOR = 1.25  # growth of an encoder row or offset per round
_ROUNDS = 16  # limit, since competing latents would grow forever
_RATE, _ROUNDS_FOR_RATE = 0.2, 4  # least firing rate relative to the mean live latent, and rounds spent to reach it
_LEAST_SCALE = 0.05  # least factor by which new atoms are scaled


def require_resamplable(sae: SparseAutoencoder) -> None:
    """Raise a ValueError unless all parts of an SAE define how a dead latent is resampled."""
    told: list[tuple[Part, str]] = [(sae.encoder, "restart"), (sae.encoder, "strengthen")]
    if any(True for _ in sae.projection.parameters()):
        told.append((sae.projection, "restart"))
    for part, method in told:
        if not tells(part, method):
            raise ValueError(
                f"dead latents can be resampled only if every part defines how, but {type(part).__name__} has no "
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
    r"""Restart latents at samples with a large reconstruction error, such that each fires on its own sample.

    1. Draw one sample per latent, without replacement, with probability proportional to $\|x - \hat x\|^4$.
    2. Point each encoder row to its sample or along the sample's residual (`Encoder.restart`), and reset the parameters
       of the projection (`Projection.restart`).
    3. Strengthen each latent (`Encoder.strengthen`) until it fires on its sample. The SAE itself is evaluated for this,
       so competition between latents is taken into account under any projection. The first four rounds also strengthen
       latents that fire less than a fifth as often as the mean live latent, which would soon be dead again.
    4. Set each atom to $r / \max(z, \bar z)$, where $r = x - \hat x$ is the residual of its sample without new atoms,
       $z$ the latent's code there, and $\bar z$ the mean firing code from before. Then scale the new atoms by one
       factor of at most 1 that minimizes the error on the batch, since together they would overshoot the residual.
       Atoms of unit norm only keep their direction.

    Args:
        sae: The SAE; its parts must pass `require_resamplable`.
        latents: Latents to restart, int64 `(n_latents,)`, at most as many as samples.
        alive: Latents over which norms and biases are averaged, bool `(d_sae,)`; initial values are used if there are
            none.
        x: Distinct standardized samples, `(n, d_in)`.
        counts: Number of occurrences of each sample, `(n,)`.
        evaluate: Returns the output for `x` with the current weights, with the codes of all latents.
        share: Norm of a new encoder row before step 3, relative to the mean norm of the rows of `alive`.
        generator: Source of randomness, on the CPU.
        target: Standardized targets of the samples, `(n, d_out)`, for SAEs that reconstruct these instead of `x`; an
            encoder row then points to its sample, as residuals lie in another space.

    Returns:
        Whether each latent fires on its sample, bool `(n_latents,)`.

    References:
        Bricken et al. (2023), Towards Monosemanticity, for the idea and the choice of samples.
    """
    wanted = x if target is None else target
    out = evaluate()
    errors = (wanted - out.x_hat).square().sum(-1).double().cpu()
    weights = counts.cpu() * (errors / errors.max().clamp_min(1e-300)).square() + 1e-12
    own = torch.multinomial(weights, len(latents), replacement=False, generator=generator).to(x.device)
    center = 0.0 if sae.center is None else full_tensor(sae.center.detach())
    inputs = x[own] - center
    residuals = (x - out.x_hat)[own] if target is None else inputs
    sae.encoder.restart(latents, inputs, residuals, alive, share)
    sae.projection.restart(latents)
    firing = fires(out.codes)
    usual = out.codes[firing].abs().mean() if bool(firing.any()) else x.new_tensor(1.0)
    often = _RATE * int(firing.sum()) / max(1, int(alive.sum()))  # number of samples of this batch
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
