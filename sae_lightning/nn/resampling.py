"""A new start for latents, at samples that an SAE explains badly."""

from collections.abc import Callable

import torch
from torch import Tensor

from sae_lightning.nn.autoencoder import SAEOutput, SparseAutoencoder
from sae_lightning.nn.firing import FIRING_THRESHOLD, fires
from sae_lightning.nn.sharding import mean_of_live, set_rows, whole

_RATE = 0.2  # how often a new latent fires, as a share of how often a live one does
_LEAST_SAMPLES = 2  # on which it fires
_MARGIN = 0.1  # how far it exceeds what fires there, in mean codes
_ATTEMPTS = 4
_JITTER = 0.01  # distance of a second latent at a sample from the first, in norms of the sample
_LEAST_SCALE = 0.05  # of new atoms


def draw_samples(errors: Tensor, counts: Tensor, n: int, generator: torch.Generator) -> Tensor:
    r"""Draw `n` of some distinct samples with probabilities proportional to the squares of their errors.

    No sample is drawn again before every sample was drawn: two latents that start alike stay alike.

    Args:
        errors: Squared error of each sample, `(n_samples,)`.
        counts: How many times each sample occurs, `(n_samples,)`.
        n: How many to draw; may exceed `n_samples`.
        generator: Source of randomness, on the CPU.

    Returns:
        Positions, int64 `(n,)`.

    Source: Bricken et al. (2023), Towards Monosemanticity (there each draw is independent of the others).
    """
    errors = errors.double().cpu()
    weights = counts.double().cpu() * (errors / errors.max().clamp_min(1e-300)).square() + 1e-12
    size = len(weights)
    drawn = [
        torch.multinomial(weights, min(n - begin, size), replacement=False, generator=generator)
        for begin in range(0, n, size)
    ]
    return torch.cat(drawn).to(counts.device)


@torch.no_grad()
def restart_latents(
    sae: SparseAutoencoder,
    latents: Tensor,
    alive: Tensor,
    x: Tensor,
    counts: Tensor,
    evaluate: Callable[[], SAEOutput],
    share: float,
    generator: torch.Generator,
) -> None:
    r"""Give latents a new start at samples that are explained badly, such that each of them fires.

    1. Each latent takes a sample (`draw_samples`), and its encoder row that sample or the direction of its residual
       (`Encoder.point`).
    2. The projection says what a pre-code must exceed for the latent to fire (`Projection.levels`), and the encoder is
       strengthened until the latent fires on its own sample and on a fifth as many samples as the mean live latent
       does, at least two. (A latent that fires on its own sample alone is hardly trained, and soon silent again.)
    3. New latents raise what others must exceed (the k-th largest pre-code, the threshold of the simplex): those that
       are silent on their sample are strengthened again, up to three times.
    4. An atom points along its sample's residual and has the mean norm of the live ones. All new atoms are then
       multiplied by one number of at most 1 with which they explain the batch best, unless atoms have unit norm:
       latents that fire on many samples would add up to more than is missing. Where codes average atoms, an atom is
       the sample itself.

    Args:
        sae: The SAE, whose parts are resamplable.
        latents: Which latents, int64 `(n_latents,)`.
        alive: Latents that serve as examples, bool `(d_sae,)`; where there are none, initial values do.
        x: Distinct samples, standardised, `(n, d_in)`.
        counts: How many times each sample occurs, `(n,)`.
        evaluate: Gives the output for these samples, with the codes of all latents, from the weights as they are.
        share: Norm of a new encoder row as a share of the mean of the live ones.
        generator: Source of randomness, on the CPU.
    """
    sae.projection.restart(latents)
    out = evaluate()
    residuals = x - out.x_hat
    own = draw_samples(residuals.square().sum(-1), counts, len(latents), generator)
    points, directions = _apart(x[own], len(x), generator), _apart(residuals[own], len(x), generator)
    explained = directions.norm(dim=-1, keepdim=True) <= 1e-6 * points.norm(dim=-1, keepdim=True)
    directions = torch.nn.functional.normalize(torch.where(explained, points, directions), dim=-1)
    bias = torch.zeros_like(x[0]) if sae.decoder.bias is None else whole(sae.decoder.bias.detach())
    inputs = points - bias if sae.subtract_decoder_bias else points
    averages = sae.projection.averages
    norm = mean_of_live(sae.decoder.weight.detach().norm(dim=-1), alive, 1.0)
    atoms = points - bias if averages else norm * directions
    set_rows(sae.decoder.weight, latents, atoms.to(sae.decoder.weight.dtype))

    firing = fires(out.codes)
    n_firing = min(len(x), max(_LEAST_SAMPLES, round(_RATE * int(firing.sum()) / max(1, int(alive.sum())))))
    margin = max(_MARGIN * float(out.codes[firing].abs().mean()) if bool(firing.any()) else 0.0, 10 * FIRING_THRESHOLD)
    levels = sae.projection.levels(out.pre_codes).expand_as(out.pre_codes) + margin
    sae.encoder.point(latents, inputs, directions, levels[own, latents], alive, share)
    out = evaluate()
    silent = torch.ones_like(latents, dtype=torch.bool)
    for _ in range(_ATTEMPTS):
        which = latents[silent]
        needed = sae.encoder.strength_for(which, out.pre_codes[:, which], levels[:, which])
        often, once = needed.kthvalue(n_firing, dim=0).values, needed.gather(0, own[silent][None])[0]
        strengths = torch.maximum(often, torch.where(once.isinf(), often, once))
        reachable = strengths.isfinite()
        sae.encoder.strengthen(which[reachable], strengths[reachable])
        out = evaluate()
        silent = ~fires(out.codes[own, latents])
        if not bool(silent.any()):
            break
        levels = sae.projection.levels(out.pre_codes).expand_as(out.pre_codes) + margin
    if not averages and not sae.decoder.unit_norm:
        added = out.codes[:, latents] @ atoms
        missing = x - out.x_hat + added
        scale = (missing * added).sum() / added.square().sum().clamp_min(1e-30)
        set_rows(sae.decoder.weight, latents, (atoms * scale.clamp(_LEAST_SCALE, 1)).to(sae.decoder.weight.dtype))


def _apart(rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Move all rows but the first n a little, in random directions."""
    if len(rows) <= n:
        return rows
    noise = torch.nn.functional.normalize(torch.randn(rows.shape, generator=generator), dim=-1)
    noise[:n] = 0
    return rows + _JITTER * rows.norm(dim=-1, keepdim=True) * noise.to(rows)
