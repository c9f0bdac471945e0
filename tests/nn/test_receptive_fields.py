from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor

from sae_lightning.nn import (
    Affine,
    Ball,
    Cone,
    ConvexCell,
    Decoder,
    Encoder,
    HalfSpace,
    Jump,
    KSparse,
    Orthant,
    Projection,
    ReceptiveField,
    Simplex,
    SparseAutoencoder,
    SquaredDistance,
)
from sae_lightning.nn.receptive_fields import Landmarks, Parameters, Points
from tests.helpers.tensors import randn

FIELDS = [HalfSpace(), Ball(), Cone(), Cone(shared_apex=True), ConvexCell()]
EVERY_FIELD = pytest.mark.parametrize("field", FIELDS, ids=repr)


class Cubic(Affine):
    """A user's encoder, of whose fields nobody said anything."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 3


class Squared(SquaredDistance):
    """A user's encoder that says what its fields are."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)

    def receptive_field(self, firing: str) -> ReceptiveField | None:
        return ConvexCell(n_pieces=8)


class Softmax(Projection):
    """A user's projection."""

    shift_invariant = True

    def forward(self, pre_codes: Tensor) -> Tensor:
        return pre_codes.softmax(-1)


class Doubled(Orthant):
    """A user's projection whose codes differ from its parent's."""

    def forward(self, pre_codes: Tensor) -> Tensor:
        return super().forward(-pre_codes)


def sae(encoder: Encoder, projection: Projection, **kwargs: bool) -> SparseAutoencoder:
    return SparseAutoencoder(encoder, projection, Decoder(3, 6), **kwargs)


@pytest.mark.parametrize(
    ("encoder", "projection", "expected"),
    [
        (Affine(3, 6), Orthant(6), HalfSpace()),
        (Affine(3, 6, bias=False), Jump(6), HalfSpace()),
        (Affine(3, 6, bias=False), KSparse(6, 2), Cone()),
        (Affine(3, 6), KSparse(6, 2), None),
        (Affine(3, 6), Simplex(6), ConvexCell()),
        (SquaredDistance(3, 6), Simplex(6), ConvexCell()),
        (SquaredDistance(3, 6, offset_init=1.0), Orthant(6), Ball()),
        (SquaredDistance(3, 6, offset_init=1.0), Jump(6), Ball()),
        (SquaredDistance(3, 6, offset_init=1.0), KSparse(6, 2), ConvexCell()),
        (SquaredDistance(3, 6, offset_init=1.0), Simplex(6), ConvexCell()),
        (Cubic(3, 6), Orthant(6), None),
        (Squared(3, 6), Simplex(6), ConvexCell(8)),
        (Affine(3, 6), Softmax(6), None),
        (Affine(3, 6), Doubled(6), None),
    ],
    ids=lambda part: type(part).__name__,
)
def test_parts_say_what_their_latents_see(encoder, projection, expected):
    assert sae(encoder, projection).receptive_field() == expected


def test_a_level_of_a_distance_is_a_ball():
    assert SquaredDistance(3, 6).receptive_field("level") == Ball()
    assert SquaredDistance(3, 6).receptive_field("largest") == ConvexCell()


def test_fields_are_values():
    assert len({*FIELDS, HalfSpace(), Cone(), Cone(4, True), ConvexCell(5)}) == len(FIELDS) + 1
    assert HalfSpace() != Ball()
    with pytest.raises(FrozenInstanceError):
        Cone().n_pieces = 3
    for field in FIELDS:
        assert field.assumes.endswith(".")


def some(field: ReceptiveField, n_concepts: int = 3, d_in: int = 3) -> Parameters:
    landmarks = Landmarks(
        randn(n_concepts, d_in), torch.nn.functional.normalize(randn(2, n_concepts, d_in, seed=1), dim=-1),
        randn(4, n_concepts, d_in, seed=2), randn(4, n_concepts, d_in, seed=4),
    )  # fmt: skip
    starts = field.starts(landmarks)
    return {name: start + 0.3 * randn(*start.shape, seed=3) for name, start in starts.items()}


@EVERY_FIELD
def test_members_are_convex(field):
    parameters = some(field)
    x, y = randn(400, 3, seed=5), 2 * randn(400, 3, seed=6)
    scores = [field.score(Points.of(points), parameters) for points in (x, y, 0.3 * x + 0.7 * y)]
    threshold = 0.1 if field.lowest_threshold == 0 else scores[0].mean(-1, keepdim=True)
    inside = [score > threshold for score in scores]
    both = inside[0] & inside[1]
    assert both.any()
    assert not both.all()
    assert inside[2][both].all()


@pytest.mark.parametrize("shared", [False, True])
def test_cones_begin_at_their_apex(shared):
    field = Cone(shared_apex=shared)
    parameters = some(field)
    assert parameters["apex"].shape[1] == (1 if shared else 3)
    apex = parameters["apex"][:, :1]
    x = randn(50, 3, seed=5)
    for start in range(len(apex)):
        near = field.score(Points.of(x + apex[start]), parameters)[start, 0]
        far = field.score(Points.of(7 * x + apex[start]), parameters)[start, 0]
        torch.testing.assert_close(near, far)


@pytest.mark.parametrize(("field", "case"), [(field, case) for field in FIELDS for case in field.special_cases])
def test_special_cases_are_members(field, case):
    parameters = some(case)
    points = Points.of(randn(300, 3, seed=5))
    scores = case.score(points, parameters)
    thresholds = scores.quantile(0.7, dim=-1)
    wide = field.score(points, field.widened(case, parameters, thresholds))
    fires = scores > thresholds[..., None]
    # some threshold gives the same set: all inside lie above all outside
    lowest_inside = wide.masked_fill(~fires, torch.inf).amin(-1)
    highest_outside = wide.masked_fill(fires, -torch.inf).amax(-1)
    assert (lowest_inside > highest_outside).all()
    assert (lowest_inside > field.lowest_threshold).all()
    with pytest.raises(NotImplementedError, match=f"has no special case {field.name}"):
        field.widened(field, parameters, thresholds)


def with_weights(module: SparseAutoencoder) -> SparseAutoencoder:
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(randn(*parameter.shape, seed=parameter.numel()))
    return module


def test_latents_fire_on_members_of_their_family():
    x = randn(500, 3, seed=7)
    points = Points.of(x)
    relu = with_weights(sae(Affine(3, 6), Orthant(6), standardize=False))
    score = HalfSpace().score(points, {"directions": relu.encoder.weight[None]})[0].T
    assert torch.equal(relu.encode(x) > 0, score > -relu.encoder.bias)

    topk = with_weights(sae(Affine(3, 6, bias=False), KSparse(6, 1), standardize=False, subtract_decoder_bias=True))
    w = topk.encoder.weight
    others = torch.stack([torch.cat([w[i : i + 1], w[i] - torch.cat([w[:i], w[i + 1 :]])]) for i in range(6)])
    score = Cone().score(points, {"apex": topk.decoder.bias[None, None], "axes": others[None]})[0].T
    assert torch.equal(topk.encode(x) > 0, score > 0)


def test_latents_of_a_simplex_fire_on_convex_sets():
    spade = with_weights(sae(SquaredDistance(3, 6), Simplex(6), standardize=False))
    x, y = randn(2000, 3, seed=5), randn(2000, 3, seed=6)
    inside = [spade.encode(points) > 0 for points in (x, y, 0.5 * x + 0.5 * y)]
    both = inside[0] & inside[1]
    assert both.any(0).all()
    assert inside[2][both].all()
