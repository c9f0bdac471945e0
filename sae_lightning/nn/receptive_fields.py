"""Receptive fields: families of sets of inputs on which one latent can fire, depending on the architecture."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

Firing = Literal["level", "largest", "differences"]
"""Rule by which a projection lets a latent fire: its pre-code exceeds a level of this latent (`level`), is positive and
among the largest of the sample (`largest`), or is not exceeded too far by the other pre-codes (`differences`)."""

Parameters = dict[str, Tensor]
"""Parameters of members of a family, by name. Leading dimensions are `(n_starts, n_concepts)`, or `(n_starts, 1)` if
all concepts share the parameter."""


class Points(NamedTuple):
    """Inputs with their squared norms, which scores use repeatedly."""

    x: Tensor
    """Inputs, `(n, d_in)`."""
    squared_norms: Tensor
    """Squared norm of each input, `(n,)`."""

    @classmethod
    def of(cls, x: Tensor) -> "Points":
        """Compute the squared norms of inputs `(n, d_in)`."""
        return cls(x, torch.linalg.vecdot(x, x))

    def products(self, rows: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Return inner products `(..., n)` with rows `(..., d_in)`, plus one offset per row, `(...)`."""
        flat = rows.reshape(-1, rows.shape[-1])
        products = flat @ self.x.T if offsets is None else torch.addmm(offsets.reshape(-1, 1), flat, self.x.T)
        return products.view(*rows.shape[:-1], -1)

    def squared_distances(self, centers: Tensor) -> Tensor:
        """Return squared distances `(..., n)` from centers `(..., d_in)`."""
        return self.products(-2 * centers, centers.square().sum(-1)).add_(self.squared_norms)


class Landmarks(NamedTuple):
    """Starting points of a search for the best receptive fields, for data with mean zero."""

    centers: Tensor
    """Mean of each concept's members, `(n_concepts, d_in)`."""
    directions: Tensor
    """Unit vectors that separate members from other samples, `(n_directions, n_concepts, d_in)`."""
    members: Tensor
    """Random members of each concept, `(n_members, n_concepts, d_in)`."""
    others: Tensor
    """Random samples of all data, of the same shape as `members`."""


@dataclass(frozen=True)
class ReceptiveField:
    """Base of the families of receptive fields; instances are equal if class and arguments are.

    A member of a family is the set of inputs on which a score exceeds a threshold. A subclass defines the score, the
    starting points of a search for the member that best detects a concept, and the assumption that the family makes
    about a concept.
    """

    name: ClassVar[str]
    assumes: ClassVar[str]
    lowest_threshold: ClassVar[float] = -math.inf

    @property
    def special_cases(self) -> "tuple[ReceptiveField, ...]":
        """Families contained in this one; a search also starts from their best members."""
        return ()

    @property
    def of_one_sae(self) -> "ReceptiveField":
        """Family of latents that belong to one SAE, which is narrower if such latents share a parameter."""
        return self

    def score(self, points: Points, parameters: Parameters) -> Tensor:
        """Return the score of each point, higher further inside the set, `(n_starts, n_concepts, n)`."""
        raise NotImplementedError(f"{type(self).__name__} must define score")

    def starts(self, landmarks: Landmarks) -> Parameters:
        """Return the members from which a search starts."""
        raise NotImplementedError(f"{type(self).__name__} must define starts")

    def widened(self, case: "ReceptiveField", parameters: Parameters, thresholds: Tensor) -> Parameters:
        """Return parameters in this family for members of a special case with thresholds `(n_starts, n_concepts)`."""
        raise NotImplementedError(f"{type(self).__name__} has no special case {case.name}")


@dataclass(frozen=True)
class HalfSpace(ReceptiveField):
    r"""Half-spaces, $\{x : w \cdot x > t\}$: sets on which an affine pre-code exceeds a level.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import HalfSpace
        >>> from sae_lightning.nn.receptive_fields import Points
        >>> points = Points.of(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> HalfSpace().score(points, {"directions": torch.tensor([[[1.0, 0.0]]])})
        tensor([[[1., 3.]]])
    """

    name: ClassVar[str] = "half-space"
    assumes: ClassVar[str] = "A concept can be cut off from all others by one plane."

    def score(self, points: Points, parameters: Parameters) -> Tensor:
        r"""Return $w \cdot x$."""
        return points.products(parameters["directions"])

    def starts(self, landmarks: Landmarks) -> Parameters:
        """Return the discriminant directions, and directions from random samples to random members."""
        return {"directions": torch.cat([landmarks.directions, landmarks.members - landmarks.others])}


@dataclass(frozen=True)
class Ball(ReceptiveField):
    r"""Balls, $\{x : \|x - c\|^2 < r\}$: sets on which a negative squared distance exceeds a level.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Ball
        >>> from sae_lightning.nn.receptive_fields import Points
        >>> points = Points.of(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        >>> Ball().score(points, {"centers": torch.tensor([[[3.0, 0.0]]])})
        tensor([[[ -9., -16.]]])
    """

    name: ClassVar[str] = "ball"
    assumes: ClassVar[str] = "The members of a concept lie closer to one point than all others do."

    def score(self, points: Points, parameters: Parameters) -> Tensor:
        r"""Return $-\|x - c\|^2$."""
        centers = parameters["centers"]
        return points.products(2 * centers, -centers.square().sum(-1)).sub_(points.squared_norms)

    def starts(self, landmarks: Landmarks) -> Parameters:
        """Return the concept's center, some members, and distant points, around which balls are nearly half-spaces."""
        beyond = landmarks.centers.norm(dim=-1).mean().clamp(min=1) * torch.tensor([0.5, 2.0, 8.0])[:, None, None, None]
        beyond = landmarks.centers + beyond.to(landmarks.centers) * landmarks.directions
        return {"centers": torch.cat([landmarks.centers[None], landmarks.members, beyond.flatten(0, 1)])}


@dataclass(frozen=True)
class Cone(ReceptiveField):
    r"""Convex cones, $\{x : \min_j a_j \cdot (x - b) > t \|x - b\|\}$ with $t \ge 0$, from linear pre-codes.

    With one piece the cone is circular, with $t = 0$ it is polyhedral. For $k > 1$ the set on which one latent of a
    k-sparse SAE fires is still a cone, but need not be convex.

    Args:
        n_pieces: Number of vectors $a_j$ per cone, at least 1.
        shared_apex: Whether the cones of all concepts share one apex $b$, as they do in one SAE, chosen for the best
            mean over concepts. If False, each concept has its own best apex, which bounds what a single latent can
            reach in an SAE that is trained for this concept alone.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Cone
        >>> from sae_lightning.nn.receptive_fields import Points
        >>> points = Points.of(torch.tensor([[5.0, 0.0], [0.0, 2.0], [3.0, 4.0]]))
        >>> parameters = {"apex": torch.zeros(1, 1, 2), "axes": torch.tensor([[[[1.0, 0.0]]]])}
        >>> Cone(n_pieces=1).score(points, parameters)  # the cosine of the angle to the axis
        tensor([[[1.0000, 0.0000, 0.6000]]])
    """

    name: ClassVar[str] = "cone"
    assumes: ClassVar[str] = "Concepts can be told apart by their angle, seen from one point."
    lowest_threshold: ClassVar[float] = 0.0
    n_pieces: int = 4
    shared_apex: bool = False

    @property
    def of_one_sae(self) -> ReceptiveField:
        """Cones with a shared apex."""
        return Cone(self.n_pieces, shared_apex=True)

    @property
    def special_cases(self) -> tuple[ReceptiveField, ...]:
        """Half-spaces. With a shared apex, their borders must meet in it, as is possible if `n_concepts <= d_in`."""
        return (HalfSpace(),)

    def score(self, points: Points, parameters: Parameters) -> Tensor:
        r"""Return $\min_j a_j \cdot (x - b) / \|x - b\|$."""
        apex, axes = parameters["apex"], parameters["axes"]
        heights = points.products(axes, -torch.linalg.vecdot(axes, apex[:, :, None])).min(-2).values
        return heights * points.squared_distances(apex).clamp_(min=1e-12).rsqrt()

    def starts(self, landmarks: Landmarks) -> Parameters:
        """Return apices near, beside and far from the data, with axes to the concept and along a discriminant."""
        centers, directions = landmarks.centers, landmarks.directions
        size = centers.norm(dim=-1).mean().clamp(min=1)
        if self.shared_apex:
            away = torch.linalg.svd(torch.cat([centers, landmarks.members[:2].flatten(0, 1)]), full_matrices=False)[2]
            sides = torch.cat([away[:3], -away[:3]])[:, None]
            apex = size * torch.cat([torch.zeros_like(sides[:1]), sides / 2, 2 * sides, 8 * sides])
        else:
            behind = size * torch.tensor([0.5, 2.0, 8.0]).to(centers)[:, None, None]
            apex = torch.cat([torch.zeros_like(centers)[None], centers - behind * directions[:1], -behind * centers])
        to_concept = torch.nn.functional.normalize(centers - apex, dim=-1)
        along = directions[-1:].expand(len(apex), -1, -1)
        axes = torch.cat([to_concept, along])[:, :, None].expand(-1, -1, self.n_pieces, -1)
        return {"apex": torch.cat([apex, apex]), "axes": axes}

    def widened(self, case: ReceptiveField, parameters: Parameters, thresholds: Tensor) -> Parameters:
        """Convert half-spaces to cones around their normal, with opening angle 180 degrees and apex on the plane.

        A shared apex is the least-squares solution for a point on all planes.
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

    Latent i fires under sparsemax where $\sum_j \max(v_j - v_i, 0) < 1$, a convex set if differences of pre-codes are
    affine. (Under a k-sparse projection with $k > 1$ the set need not be convex.) The family contains half-spaces and
    balls, and approximates cells with more than `n_pieces` facets.

    Args:
        n_pieces: Number of vectors $a_j$ per cell, at least 1.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import ConvexCell
        >>> from sae_lightning.nn.receptive_fields import Points
        >>> normals = torch.tensor([[[[1.0], [-1.0]]]])  # the smaller of x + 1 and -x + 1
        >>> parameters = {"normals": normals, "offsets": torch.ones(1, 1, 2), "curvatures": torch.zeros(1, 1, 1)}
        >>> ConvexCell(n_pieces=2).score(Points.of(torch.tensor([[-3.0], [0.0], [0.5]])), parameters)
        tensor([[[-2.0000,  1.0000,  0.5000]]])
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
        """Return balls around the concept's center."""
        return self.widened(Ball(), {"centers": landmarks.centers[None]}, landmarks.centers.new_zeros(1, 1))

    def widened(self, case: ReceptiveField, parameters: Parameters, thresholds: Tensor) -> Parameters:
        """Convert half-spaces to cells without curvature, and balls to cells with equal pieces."""
        if case == HalfSpace():
            normals, curvature = parameters["directions"], 0.0
        elif case == Ball():
            normals, curvature = 2 * parameters["centers"], 1.0
        else:
            return super().widened(case, parameters, thresholds)
        normals = normals[:, :, None].expand(-1, -1, self.n_pieces, -1)
        shape = normals.shape[:2]
        return {
            "normals": normals,
            "offsets": normals.new_zeros(*shape, self.n_pieces),
            "curvatures": normals.new_full((*shape, 1), curvature),
        }
