"""Search for the receptive fields that detect concepts best, by gradient ascent on a smooth F1 from many starts."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the usual name)

from sae_lightning.geometry.f1 import best_threshold, f1_of, outcomes, smooth_f1
from sae_lightning.nn.receptive_fields import Landmarks, Parameters, Points, ReceptiveField

_SCREENED = (4096, 50, 32_768)  # samples for the comparison of starts: minimum, members of each concept, maximum
_BATCH = 8192
_SCREEN_STEPS, _REFINE_STEPS = 30, 100
_TEMPERATURES = (0.3, 0.1, 0.03)  # successive widths of the smooth step, in standard deviations of the score
_LEARNING_RATE = 0.05
_KEPT = 2  # number of refined starts per concept
_SNAPSHOTS = 5  # of the refinement, to stop early by held-back samples: it overfits in high dimension
_JITTER = 0.02  # relative noise that makes equal pieces of a start differ
_HELD_BACK = 0.2  # fraction of the training samples
_FEWEST_MEMBERS = 5  # least number of held-back members for a comparison on held-back samples
_RIDGES = (1.0, 0.1, 0.01)  # regularization of discriminant directions, relative to the mean variance


class Labeled(NamedTuple):
    """Points with their concepts."""

    points: Points
    members: Tensor
    """Which points are members of each concept, bool `(n_concepts, n)`."""

    def part(self, begin: int, end: int) -> "Labeled":
        """Return the samples from `begin` to `end`."""
        x, squared_norms = self.points
        return Labeled(Points(x[begin:end], squared_norms[begin:end]), self.members[:, begin:end])


class Fitted(NamedTuple):
    """Best members of a family that a search found, one per concept."""

    parameters: Parameters
    """Their parameters, with leading dimensions `(1, n_concepts)` or `(1, 1)`."""
    thresholds: Tensor
    """Their thresholds, `(1, n_concepts)`."""
    f1: Tensor
    """F1 on all samples of the search, float64 `(1, n_concepts)`."""


class Search:
    """Search for the best receptive fields on one set of samples; results are cached for families that contain them.

    First, all starts are improved by a few gradient steps on a part of the samples. Then the best are refined on all
    samples except those held back. Finally, the starts and the refined fields are compared on the held-back samples.

    Args:
        data: Samples in random order, with mean zero and mean squared norm one (or zero); each concept must have
            members.
        seed: Seed of the random starts.
    """

    def __init__(self, data: Labeled, seed: int) -> None:
        n = data.members.shape[1]
        n_fitted = n - int(_HELD_BACK * n)
        self.data = data
        self.fitted, self.held_back = data.part(0, n_fitted), data.part(n_fitted, n)
        least, members, most = _SCREENED
        rarest = data.members.sum(1).amin().item() / n
        self.screened = data.part(0, min(n_fitted, max(least, min(most, int(members / rarest)))))
        self.seed = seed
        self.landmarks = landmarks(self.fitted, torch.Generator().manual_seed(seed))
        self._found: dict[ReceptiveField, Fitted] = {}

    def best(self, field: ReceptiveField) -> Fitted:
        """Return the member of a family with the highest F1 found, for each concept."""
        if field not in self._found:
            self._found[field] = self._search(field)
        return self._found[field]

    def _search(self, field: ReceptiveField) -> Fitted:
        generator = torch.Generator().manual_seed(self.seed)
        cases = [(case, self.best(case)) for case in field.special_cases]
        exact = [field.widened(case, found.parameters, found.thresholds) for case, found in cases]
        starts = _joined([*exact, field.starts(self.landmarks)])
        climbed = climb(field, _jittered(starts, generator), self.screened, _SCREEN_STEPS, _TEMPERATURES[:2], 1)[-1]
        kept = [
            _ranked(parameters, self._f1(field, parameters, self.screened), _KEPT) for parameters in (starts, climbed)
        ]
        refined = climb(field, kept[1], self.fitted, _REFINE_STEPS, _TEMPERATURES[1:], _SNAPSHOTS)
        pools = [*exact, *kept, *refined]
        scores = torch.cat([self._f1(field, parameters, self.fitted) for parameters in pools])
        best = _ranked(_joined(pools), scores, 1)
        scores = field.score(self.data.points, best)
        return Fitted(best, *best_threshold(scores, self.data.members, field.lowest_threshold))

    def _f1(self, field: ReceptiveField, parameters: Parameters, training: Labeled) -> Tensor:
        """Return F1 on held-back samples with thresholds from training samples, `(n_starts, n_concepts)`."""
        judged, found = self.held_back.members, []
        for start in range(len(next(iter(parameters.values())))):  # one at a time, to save memory
            one = {name: value[start : start + 1] for name, value in parameters.items()}
            scores = field.score(training.points, one)
            thresholds, f1 = best_threshold(scores, training.members, field.lowest_threshold)
            fires = field.score(self.held_back.points, one) > thresholds[..., None]
            held_back = f1_of(outcomes(fires, judged))
            found.append(torch.where(judged.sum(1) < _FEWEST_MEMBERS, f1, held_back))
        return torch.cat(found)


def landmarks(data: Labeled, generator: torch.Generator, n_members: int = 16) -> Landmarks:
    """Return centers, discriminant directions for several regularizations, and random members of each concept.

    Args:
        data: Points with mean zero; each concept must have members.
        generator: Source of randomness.
        n_members: Number of members to draw per concept, with replacement.

    Returns:
        The landmarks.
    """
    x, members = data.points.x, data.members.to(data.points.x)
    centers = members @ x / members.sum(1)[:, None]
    # discriminant directions from the total covariance equal those from the covariance within concept and rest
    variances, axes = torch.linalg.eigh((x.T @ x / len(x)).double())
    along, mean = centers.double() @ axes, variances.mean().clamp(min=1e-12)
    ridged = [along / (variances.clamp(min=0) + ridge * mean) @ axes.T for ridge in _RIDGES]
    directions = torch.stack([centers, *(direction.to(x) for direction in ridged)])
    # any unit vector where no direction separates
    directions[directions.norm(dim=-1) == 0] = F.one_hot(torch.tensor(0), x.shape[1]).to(x)
    drawn = torch.multinomial(members, n_members, replacement=True, generator=generator).T
    others = torch.randint(len(x), drawn.shape, generator=generator)
    return Landmarks(centers, F.normalize(directions, dim=-1), x[drawn], x[others])


def climb(
    field: ReceptiveField,
    starts: Parameters,
    data: Labeled,
    n_steps: int,
    temperatures: tuple[float, ...],
    n_snapshots: int,
) -> list[Parameters]:
    """Maximize the smooth F1 of all starts in parallel with Adam, while the smooth step becomes steeper.

    Args:
        field: The family.
        starts: Initial parameters.
        data: Samples in random order; each optimization step uses the next batch.
        n_steps: Number of optimization steps.
        temperatures: First and last width of the smooth step, in standard deviations of the scores.
        n_snapshots: Number of equally spaced snapshots.

    Returns:
        Parameters at each snapshot; the last is the final result.
    """
    # optimize relative to the length of each vector
    sizes = {name: _length(start) for name, start in starts.items()}
    relative = {name: (start / sizes[name]).requires_grad_() for name, start in starts.items()}
    first = data.part(0, _BATCH)
    scores = field.score(first.points, starts)
    thresholds, _ = best_threshold(scores, first.members, field.lowest_threshold)
    spread = _spread(scores)
    moved = torch.zeros_like(thresholds, requires_grad=True)
    optimizer = torch.optim.Adam([*relative.values(), moved], lr=_LEARNING_RATE)
    snapshots, begin = [], 0
    for step in range(n_steps):
        left = 1 - step / n_steps
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * min(1, 2 * left)
        temperature = temperatures[0] ** left * temperatures[1] ** (1 - left)
        batch = data.part(begin, begin + _BATCH)
        begin = begin + _BATCH if begin + 2 * _BATCH <= data.members.shape[1] else 0  # full batches only
        scores = field.score(batch.points, {name: value * sizes[name] for name, value in relative.items()})
        threshold = (thresholds + spread * moved).clamp(min=field.lowest_threshold)
        f1 = smooth_f1(
            scores, threshold, batch.members.to(scores), temperature * scores.detach().std(-1).clamp(min=1e-6)
        )
        optimizer.zero_grad()
        f1.sum().neg().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (step + 1) % (n_steps // n_snapshots) == 0:
            snapshots.append({name: (value * sizes[name]).detach() for name, value in relative.items()})
    return snapshots


def _spread(scores: Tensor) -> Tensor:
    return scores.std(-1).clamp(min=1e-6)


def _length(vectors: Tensor) -> Tensor:
    """Return the root mean square of each vector's entries, or that of a unit vector if it is zero, `(..., 1)`."""
    length = vectors.square().mean(-1, keepdim=True).sqrt()
    return torch.where(length > 0, length, vectors.shape[-1] ** -0.5)


def _jittered(parameters: Parameters, generator: torch.Generator) -> Parameters:
    return {
        name: value + _JITTER * _length(value) * torch.randn(value.shape, generator=generator)
        for name, value in parameters.items()
    }


def _joined(several: list[Parameters]) -> Parameters:
    return {name: torch.cat([one[name] for one in several]) for name in several[0]}


def _ranked(parameters: Parameters, f1: Tensor, n: int) -> Parameters:
    """Return the n best starts of each concept, or the n best on average if concepts share a parameter."""
    shared = f1.shape[1] > 1 and any(value.shape[1] == 1 for value in parameters.values())
    order = (f1.mean(1, keepdim=True) if shared else f1).argsort(dim=0, descending=True, stable=True)[:n]
    if shared:
        return {name: value[order[:, 0]] for name, value in parameters.items()}
    return {name: value[order, torch.arange(value.shape[1])] for name, value in parameters.items()}
