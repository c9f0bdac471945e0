import copy
import pickle
import subprocess
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from sae_lightning.nn import (
    L0,
    L1,
    Affine,
    AuxK,
    Decoder,
    DistanceWeightedL1,
    Jump,
    KSparse,
    Orthant,
    Simplex,
    SquaredDistance,
)
from sae_lightning.nn.parts import Part, Recorded, described_class, require_positive

SIZES = {"d_in": 3, "d_sae": 4}
CALLS: list[tuple[type, tuple[Any, ...], dict[str, Any], dict[str, Any]]] = [
    (Affine, (3, 4), {}, {**SIZES, "bias": True, "pre_code_scale": 1.0}),
    (Affine, (3, 4, False), {"pre_code_scale": 0.5}, {**SIZES, "bias": False, "pre_code_scale": 0.5}),
    (Affine, (), {"d_sae": 4, "d_in": 3}, {**SIZES, "bias": True, "pre_code_scale": 1.0}),
    (SquaredDistance, (3, 4), {}, {**SIZES, "lambda_init": 1.0, "offset_init": None}),
    (SquaredDistance, (3, 4, 0.1, 2), {}, {**SIZES, "lambda_init": 0.1, "offset_init": 2}),
    (Decoder, (3, 4), {"unit_norm": True}, {"d_out": 3, "d_sae": 4, "bias": True, "unit_norm": True}),
    (Orthant, (4,), {}, {"d_sae": 4}),
    (Simplex, (), {"d_sae": 4}, {"d_sae": 4}),
    (Jump, (4,), {"bandwidth": 0.1}, {"d_sae": 4, "threshold_init": 1e-3, "bandwidth": 0.1}),
    (KSparse, (4, 2), {}, {"d_sae": 4, "k": 2}),
    (KSparse, (4,), {"k": 2}, {"d_sae": 4, "k": 2}),
    (L1, (4,), {}, {"d_sae": 4}),
    (L0, (4,), {}, {"d_sae": 4}),
    (DistanceWeightedL1, (4,), {}, {"d_sae": 4}),
    (AuxK, (4,), {}, {"d_sae": 4, "k_aux": None, "dead_after": 20}),
    (AuxK, (4, 3), {"dead_after": 5}, {"d_sae": 4, "k_aux": 3, "dead_after": 5}),
]
EVERY_CALL = pytest.mark.parametrize(
    ("cls", "args", "kwargs", "expected"), CALLS, ids=[f"{c[0].__name__}-{i}" for i, c in enumerate(CALLS)]
)


class AllDefaults(Recorded, nn.Module):
    """A user's part whose constructor needs no arguments."""

    def __init__(self, a: int = 1, b: str = "x") -> None:
        super().__init__()
        self.a = a
        a = 1000  # what was passed counts, not what becomes of the name
        self.weight = nn.Parameter(torch.zeros(3))


class Narrower(Affine):
    """A user's part with arguments of its own."""

    def __init__(self, d_in: int, d_sae: int, temperature: float = 2.0) -> None:
        super().__init__(d_in, d_sae, bias=False)
        self.temperature = temperature


@EVERY_CALL
def test_arguments_are_recorded_with_defaults(cls: Any, args: Any, kwargs: Any, expected: dict[str, Any]) -> None:
    assert cls(*args, **kwargs).init_args == expected


@EVERY_CALL
def test_the_recorded_arguments_build_the_same(cls: Any, args: Any, kwargs: Any, expected: dict[str, Any]) -> None:
    part = cls(*args, **kwargs)
    twin = cls(**part.init_args)
    assert twin.init_args == part.init_args
    assert {n: p.shape for n, p in twin.state_dict().items()} == {n: p.shape for n, p in part.state_dict().items()}
    twin.load_state_dict(part.state_dict())


@EVERY_CALL
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, copy.copy, lambda p: pickle.loads(pickle.dumps(p))], ids=["deepcopy", "copy", "pickle"]
)
def test_copies_keep_everything(cls: Any, args: Any, kwargs: Any, expected: dict[str, Any], clone: Any) -> None:
    part = cls(*args, **kwargs)
    for parameter in part.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    twin = clone(part)
    assert type(twin) is cls
    assert twin.init_args == expected
    assert all(torch.equal(p, q) for p, q in zip(part.parameters(), twin.parameters(), strict=True))
    assert twin.extra_repr() == part.extra_repr()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))], ids=["deepcopy", "pickle"])
def test_copies_of_a_part_without_required_arguments(clone: Any) -> None:
    assert AllDefaults().init_args == {"a": 1, "b": "x"}
    twin = clone(AllDefaults(7))
    assert twin.init_args == {"a": 7, "b": "x"}
    assert twin.a == 7


def test_a_deep_copy_is_independent() -> None:
    part = KSparse(4, 2)
    twin = copy.deepcopy(part)
    twin.init_args["k"] = 3
    assert part.init_args["k"] == 2


def test_a_subclass_records_its_own_arguments() -> None:
    assert Narrower(3, 4).init_args == {**SIZES, "temperature": 2.0}
    assert Narrower(3, 4).bias is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Affine(3, 4, foo=1), r"__init__\(\) got an unexpected keyword argument 'foo'"),
        (lambda: Affine(3), r"__init__\(\) missing 1 required positional argument: 'd_sae'"),
        (lambda: KSparse(4), r"__init__\(\) missing 1 required positional argument: 'k'"),
        (Simplex, r"__init__\(\) missing 1 required positional argument: 'd_sae'"),
        (lambda: Orthant(4, 5), r"__init__\(\) takes 2 positional arguments but 3 were given"),
        (lambda: Affine(3, 4, d_in=3), r"__init__\(\) got multiple values for argument 'd_in'"),
    ],
)
def test_wrong_arguments_are_reported_by_the_constructor(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_require_positive() -> None:
    require_positive("n", 1)
    require_positive("n", 1000)
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"^n must be at least 1, but is {value}$"):
            require_positive("n", value)


def test_nn_imports_neither_lightning_nor_torchmetrics() -> None:
    code = (
        "import sys, pkgutil, importlib, sae_lightning.nn as package\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
        "heavy = ('lightning', 'pytorch_lightning', 'lightning_fabric', 'torchmetrics', 'jsonargparse', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["[]", "True"]


def test_public_names() -> None:
    import sae_lightning.nn as package

    assert all(hasattr(package, name) for name in package.__all__)


def test_a_class_is_looked_up_without_asking_a_module_that_may_import_others(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lazy")
    module.__getattr__ = lambda name: pytest.fail(f"the module was asked for {name}")  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy", module)
    with pytest.raises(ValueError, match="'lazy' has no class of this name"):
        described_class("lazy.Thing", Part)
