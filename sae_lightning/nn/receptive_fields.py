"""Receptive fields: the sets of inputs on which one latent fires, and the shape that an architecture gives them."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

Firing = Literal["level", "largest", "differences"]
"""What a projection looks at to let a latent fire: whether its pre-code exceeds a level of its own; whether it is
positive and among the largest; or how far the others exceed it."""

Parameters = dict[str, Tensor]
"""Numbers that single out members of a family; all begin with `(n_starts, n_concepts)`, or
`(n_starts, 1)` where concepts share them."""


class Points(NamedTuple):
    """Inputs, with what scores need of them again and again."""

    x: Tensor
    """`(n, d_in)`."""
    squared_norms: Tensor
    """`(n,)`."""

    @classmethod
    def of(cls, x: Tensor) -> "Points":
        """Take inputs `(n, d_in)`."""
        return cls(x, torch.linalg.vecdot(x, x))

    def products(self, rows: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Inner products with rows `(..., d_in)`, plus an offset for each, `(...)`: `(..., n)`."""
        flat = rows.reshape(-1, rows.shape[-1])
        products = flat @ self.x.T if offsets is None else torch.addmm(offsets.reshape(-1, 1), flat, self.x.T)
        return products.view(*rows.shape[:-1], -1)

    def squared_distances(self, centres: Tensor) -> Tensor:
        """Squared distances from centres `(..., d_in)`: `(..., n)`."""
        return self.products(-2 * centres, centres.square().sum(-1)).add_(self.squared_norms)


class Landmarks(NamedTuple):
    """What a search for the best receptive fields starts from; the mean of all points is zero."""

    centres: Tensor
    """Mean of each concept's members, `(n_concepts, d_in)`."""
    directions: Tensor
    """Unit vectors that tell members from others, `(n_directions, n_concepts, d_in)`."""
    members: Tensor
    """Random members of each concept, `(n_members, n_concepts, d_in)`."""
    others: Tensor
    """As many random samples, members or not."""


@dataclass(frozen=True)
class ReceptiveField:
    """Base of the families of receptive fields; instances are equal where class and arguments are.

    A member of the family fires where its score exceeds a threshold. A subclass names what the family assumes of a
    concept that one latent is to find, and offers the score and where to start looking for the best member.
    """

    name: ClassVar[str]
    assumes: ClassVar[str]
    lowest_threshold: ClassVar[float] = -math.inf

    @property
    def special_cases(self) -> "tuple[ReceptiveField, ...]":
        """Families whose members are members of this one too; their best members are starts."""
        return ()

    @property
    def of_one_sae(self) -> "ReceptiveField":
        """The family where latents for all concepts have to live in one SAE: narrower if they share a parameter."""
        return self

    def score(self, points: Points, parameters: Parameters) -> Tensor:
        """How far inside each point lies, higher for further: `(n_starts, n_concepts, n)`."""
        raise NotImplementedError(f"{type(self).__name__} must define score")

    def starts(self, landmarks: Landmarks) -> Parameters:
        """Members from which to search, with all of `n_starts`."""
        raise NotImplementedError(f"{type(self).__name__} must define starts")

    def widened(self, case: "ReceptiveField", parameters: Parameters, thresholds: Tensor) -> Parameters:
        """The members of a special case, which fire above thresholds `(n_starts, n_concepts)`, as members of this."""
        raise NotImplementedError(f"{type(self).__name__} has no special case {case.name}")


@dataclass(frozen=True)
class HalfSpace(ReceptiveField):
    r"""Half-spaces, $\{x : w \cdot x > t\}$: one affine pre-code above a level."""

    name: ClassVar[str] = "half-space"
    assumes: ClassVar[str] = "A concept can be cut off from all others by one plane."

    def score(self, points: Points, parameters: Parameters) -> Tensor:
        r"""Return $w \cdot x$."""
        return points.products(parameters["directions"])

    def starts(self, landmarks: Landmarks) -> Parameters:
        """Directions that tell members from others, and from random samples to random members."""
        return {"directions": torch.cat([landmarks.directions, landmarks.members - landmarks.others])}


@dataclass(frozen=True)
class Ball(ReceptiveField):
    r"""Balls, $\{x : \|x - c\|^2 < r\}$: a level minus one squared distance, where that is positive."""

    name: ClassVar[str] = "ball"
    assumes: ClassVar[str] = "The members of a concept lie closer to one point than all others do."

    def score(self, points: Points, parameters: Parameters) -> Tensor:
        r"""Return $-\|x - c\|^2$."""
        centres = parameters["centres"]
        return points.products(2 * centres, -centres.square().sum(-1)).sub_(points.squared_norms)

    def starts(self, landmarks: Landmarks) -> Parameters:
        """The concept's centre, some of its members, and points beyond it, whose balls are nearly half-spaces."""
        beyond = landmarks.centres.norm(dim=-1).mean().clamp(min=1) * torch.tensor([0.5, 2.0, 8.0])[:, None, None, None]
        beyond = landmarks.centres + beyond.to(landmarks.centres) * landmarks.directions
        return {"centres": torch.cat([landmarks.centres[None], landmarks.members, beyond.flatten(0, 1)])}


@dataclass(frozen=True)
class Cone(ReceptiveField):
    r"""Convex cones, $\{x : \min_j a_j \cdot (x - b) > t \|x - b\|\}$ with $t \ge 0$: positive homogeneous pre-codes.

    With one piece it is a circular cone, with $t = 0$ a polyhedral one. Several of a k-sparse SAE's largest pre-codes
    may fire at once, and then the set where one of them does is a cone still, but need not be convex.

    Args:
        n_pieces: How many $a_j$ a cone has, at least 1.
        shared_apex: Whether the cones of all concepts have one apex b, as those of one SAE do: the one that is best for
            all of them together. If not, each concept has its best apex, whatever that does to the others, which is
            what bounds a single latent: an SAE may do one concept well at the others' expense.
    """

    name: ClassVar[str] = "cone"
    assumes: ClassVar[str] = "Concepts can be told apart by their angle, seen from one point."
    lowest_threshold: ClassVar[float] = 0.0
    n_pieces: int = 4
    shared_apex: bool = False

    @property
    def of_one_sae(self) -> ReceptiveField:
        """Cones that share their apex, the centre of the inputs."""
        return Cone(self.n_pieces, shared_apex=True)

    @property
    def special_cases(self) -> tuple[ReceptiveField, ...]:
        """Half-spaces; with a shared apex those whose borders meet in it, as all can where `n_concepts <= d_in`."""
        return (HalfSpace(),)

    def score(self, points: Points, parameters: Parameters) -> Tensor:
        r"""Return $\min_j a_j \cdot (x - b) / \|x - b\|$."""
        apex, axes = parameters["apex"], parameters["axes"]
        heights = points.products(axes, -torch.linalg.vecdot(axes, apex[:, :, None])).min(-2).values
        return heights * points.squared_distances(apex).clamp_(min=1e-12).rsqrt()

    def starts(self, landmarks: Landmarks) -> Parameters:
        """Apices in the middle, on either side and far away; axes to the concept and along what tells it apart."""
        centres, directions = landmarks.centres, landmarks.directions
        size = centres.norm(dim=-1).mean().clamp(min=1)
        if self.shared_apex:
            away = torch.linalg.svd(torch.cat([centres, landmarks.members[:2].flatten(0, 1)]), full_matrices=False)[2]
            sides = torch.cat([away[:3], -away[:3]])[:, None]
            apex = size * torch.cat([torch.zeros_like(sides[:1]), sides / 2, 2 * sides, 8 * sides])
        else:
            behind = size * torch.tensor([0.5, 2.0, 8.0]).to(centres)[:, None, None]
            apex = torch.cat([torch.zeros_like(centres)[None], centres - behind * directions[:1], -behind * centres])
        to_concept = torch.nn.functional.normalize(centres - apex, dim=-1)
        along = directions[-1:].expand(len(apex), -1, -1)
        axes = torch.cat([to_concept, along])[:, :, None].expand(-1, -1, self.n_pieces, -1)
        return {"apex": torch.cat([apex, apex]), "axes": axes}

    def widened(self, case: ReceptiveField, parameters: Parameters, thresholds: Tensor) -> Parameters:
        """A half-space is a cone of a right angle around its normal, with its apex on the plane.

        A shared apex is the point on all planes, or what comes closest to it.
        """
        if case != HalfSpace():
            return super().widened(case, parameters, thresholds)
        w = parameters["directions"]
        if self.shared_apex:
            meeting = torch.linalg.pinv(w.double()) @ thresholds[..., None].double()
            apex = meeting.mT.to(w)
        else:
            apex = thresholds[..., None] * w / w.square().sum(-1, keepdim=True).clamp(min=1e-12)
        return {"apex": apex, "axes": w[:, :, None].expand(-1, -1, self.n_pieces, -1)}


@dataclass(frozen=True)
class ConvexCell(ReceptiveField):
    r"""Convex cells, $\{x : \min_j (a_j \cdot x + b_j) - q^2 \|x\|^2 > t\}$: balls cut by half-spaces.

    Sparsemax lets latent i fire where $\sum_j \max(v_j - v_i, 0) < 1$, which is convex where differences of pre-codes
    are affine. (Where a k-sparse projection compares them, and k > 1, the set need not be convex.) Half-spaces and
    balls are members; a cell with more facets is not, and is approximated.

    Args:
        n_pieces: How many $a_j$ a cell has, at least 1.
    """

    name: ClassVar[str] = "convex cell"
    assumes: ClassVar[str] = "Some convex region around a prototype holds the members of a concept, and no others."
    n_pieces: int = 4

    @property
    def special_cases(self) -> tuple[ReceptiveField, ...]:
        """Half-spaces and balls."""
        return (HalfSpace(), Ball())

    def score(self, points: Points, parameters: Parameters) -> Tensor:
        r"""Return $\min_j (a_j \cdot x + b_j) - q^2 \|x\|^2$."""
        affine = points.products(parameters["normals"], parameters["offsets"]).min(-2).values
        return affine - parameters["curvatures"].square() * points.squared_norms

    def starts(self, landmarks: Landmarks) -> Parameters:
        """Balls around the concept's centre."""
        return self.widened(Ball(), {"centres": landmarks.centres[None]}, landmarks.centres.new_zeros(1, 1))

    def widened(self, case: ReceptiveField, parameters: Parameters, thresholds: Tensor) -> Parameters:
        """A half-space is a cell without curvature, a ball one with equal pieces."""
        if case == HalfSpace():
            normals, curvature = parameters["directions"], 0.0
        elif case == Ball():
            normals, curvature = 2 * parameters["centres"], 1.0
        else:
            return super().widened(case, parameters, thresholds)
        normals = normals[:, :, None].expand(-1, -1, self.n_pieces, -1)
        shape = normals.shape[:2]
        return {
            "normals": normals,
            "offsets": normals.new_zeros(*shape, self.n_pieces),
            "curvatures": normals.new_full((*shape, 1), curvature),
        }
