"""The receptive fields of a family that find concepts best: smooth F1, climbed from many starts at once."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the usual name)

from sae_lightning.geometry.f1 import best_threshold, f1_of, outcomes, smooth_f1
from sae_lightning.nn.receptive_fields import Landmarks, Parameters, Points, ReceptiveField

_SCREENED = (4096, 50, 32_768)  # samples on which starts are compared: at least; members of each concept; at most
_BATCH = 8192
_SCREEN_STEPS, _REFINE_STEPS = 30, 100
_TEMPERATURES = (0.3, 0.1, 0.03)  # widths of the smooth step in standard deviations of the score, one after the other
_LEARNING_RATE = 0.05
_KEPT = 2  # starts of each concept that are refined
_SNAPSHOTS = 5  # moments of the refinement among which held-back samples choose: in high dimension it overfits
_JITTER = 0.02  # relative noise, which lets equal pieces of a start grow apart
_HELD_BACK = 0.2  # share of the training samples
_FEWEST_MEMBERS = 5  # below which held-back samples are no judges
_RIDGES = (1.0, 0.1, 0.01)  # of discriminant directions, as shares of the mean variance


class Labelled(NamedTuple):
    """Points with what they are members of."""

    points: Points
    members: Tensor
    """Bool `(n_concepts, n)`."""

    def part(self, begin: int, end: int) -> "Labelled":
        """The samples from one to another."""
        x, squared_norms = self.points
        return Labelled(Points(x[begin:end], squared_norms[begin:end]), self.members[:, begin:end])


class Fitted(NamedTuple):
    """The best members of a family that were found, one per concept."""

    parameters: Parameters
    """Each begins with `(1, n_concepts)` or `(1, 1)`."""
    thresholds: Tensor
    """`(1, n_concepts)`."""
    f1: Tensor
    """On all samples of the search, `(1, n_concepts)` float64."""


class Search:
    """Searches on one set of samples; what is found is remembered, for families of which it is a special case.

    All starts climb a little on some of the samples; the best of them climb on all but those held back; and among the
    starts and what became of them, samples that were held back choose.

    Args:
        data: Samples in random order, whose mean is zero and mean squared norm is one (or zero); every concept must
            have members.
        seed: Seed of the random starts.
    """

    def __init__(self, data: Labelled, seed: int) -> None:
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
        """Find the members of a family whose F1 is highest for each concept."""
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

    def _f1(self, field: ReceptiveField, parameters: Parameters, training: Labelled) -> Tensor:
        """F1 on what is held back, with thresholds from other samples, `(n_starts, n_concepts)`."""
        judged, found = self.held_back.members, []
        for start in range(len(next(iter(parameters.values())))):  # in turn, for the memory's sake
            one = {name: value[start : start + 1] for name, value in parameters.items()}
            scores = field.score(training.points, one)
            thresholds, f1 = best_threshold(scores, training.members, field.lowest_threshold)
            fires = field.score(self.held_back.points, one) > thresholds[..., None]
            held_back = f1_of(outcomes(fires, judged))
            found.append(torch.where(judged.sum(1) < _FEWEST_MEMBERS, f1, held_back))
        return torch.cat(found)


def landmarks(data: Labelled, generator: torch.Generator, n_members: int = 16) -> Landmarks:
    """Centres, discriminant directions by several ridges, and some members of each concept.

    Args:
        data: Points whose mean is zero; every concept must have members.
        generator: Source of randomness.
        n_members: How many members to draw of each concept.
    """
    x, members = data.points.x, data.members.to(data.points.x)
    centres = members @ x / members.sum(1)[:, None]
    # the covariance of all points gives the same directions as that within concept and rest
    variances, axes = torch.linalg.eigh((x.T @ x / len(x)).double())
    along, mean = centres.double() @ axes, variances.mean().clamp(min=1e-12)
    ridged = [along / (variances.clamp(min=0) + ridge * mean) @ axes.T for ridge in _RIDGES]
    directions = torch.stack([centres, *(direction.to(x) for direction in ridged)])
    directions[directions.norm(dim=-1) == 0] = F.one_hot(torch.tensor(0), x.shape[1]).to(x)  # any, where none tells
    drawn = torch.multinomial(members, n_members, replacement=True, generator=generator).T
    others = torch.randint(len(x), drawn.shape, generator=generator)
    return Landmarks(centres, F.normalize(directions, dim=-1), x[drawn], x[others])


def climb(
    field: ReceptiveField,
    starts: Parameters,
    data: Labelled,
    n_steps: int,
    temperatures: tuple[float, ...],
    n_snapshots: int,
) -> list[Parameters]:
    """Climb the smooth F1 of all starts at once, by Adam, while the smooth step becomes steeper.

    Args:
        field: The family.
        starts: Where to begin.
        data: Samples in random order; each step takes the next batch of them.
        n_steps: Number of steps.
        temperatures: First and last width of the step, in standard deviations of the scores.
        n_snapshots: At how many moments to keep what was reached; the last one is the end.
    """
    # steps are relative to the length of each vector
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
        begin = begin + _BATCH if begin + 2 * _BATCH <= data.members.shape[1] else 0  # whole batches only
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
    """Root mean square of each vector's numbers, or that of a unit vector for zeros, `(..., 1)`."""
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
    """The n best starts of each concept, the first on a tie; where a number is shared, those best on average."""
    shared = f1.shape[1] > 1 and any(value.shape[1] == 1 for value in parameters.values())
    order = (f1.mean(1, keepdim=True) if shared else f1).argsort(dim=0, descending=True, stable=True)[:n]
    if shared:
        return {name: value[order[:, 0]] for name, value in parameters.items()}
    return {name: value[order, torch.arange(value.shape[1])] for name, value in parameters.items()}
