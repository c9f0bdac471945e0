"""What parts and SAEs have in common: they remember how they were built, in plain values."""

import importlib
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeVar

T = TypeVar("T", bound="Recorded")


def _plain(value: Any) -> Any:
    """A number of numpy as Python's own: checkpoints with others do not load with `weights_only=True`."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


class Recorded:
    """Mixin that records the arguments of a constructor, defaults included, in `init_args`.

    A checkpoint stores these plain values beside the weights, so that the same object can be built again
    without unpickling code.
    """

    init_args: dict[str, Any]
    undescribed: ClassVar[frozenset[str]] = frozenset()
    """Arguments that whoever builds the object again supplies by itself."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Recorded":
        """Bind the arguments to the constructor's names before `__init__` runs."""
        instance = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)
        except TypeError:  # copy and pickle call without arguments and restore `__dict__` afterwards;
            return instance  # a caller's mistake is reported by `__init__` itself
        bound.apply_defaults()
        arguments = {name: _plain(value) for name, value in list(bound.arguments.items())[1:]}  # without `self`
        object.__setattr__(instance, "init_args", arguments)
        return instance

    def describe(self) -> dict[str, Any]:
        """Class path and constructor arguments: all that `build` needs."""
        cls = type(self)
        init_args = {key: value for key, value in self.init_args.items() if key not in self.undescribed}
        return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}


class Part(Recorded):
    """What encoders, projections, regularizers and decoders have in common: they may have a sparse form.

    A class says that it has one with `sparse = True`. A subclass that changes what `dense_form` names, but not
    `sparse`, has none, whatever its parent has: it is then trained by its dense form.
    """

    sparse: ClassVar[bool] = False
    dense_form: ClassVar[frozenset[str]] = frozenset({"forward"})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """See whether the inherited sparse form still says the same as the dense one."""
        super().__init_subclass__(**kwargs)
        if cls.dense_form & cls.__dict__.keys() and "sparse" not in cls.__dict__:
            cls.sparse = False


def build(description: dict[str, Any], base: type[T], *args: Any) -> T:
    """Build the object that `describe` described.

    Args:
        description: Class path and constructor arguments; descriptions among the arguments become factories.
        base: The class that the described one must be or derive from.
        args: Leading arguments that the description leaves out.

    Raises:
        ValueError: If the class cannot be imported or does not derive from `base`; nothing else is ever called.
    """
    path = description["class_path"]
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"class {path!r} cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ValueError(f"class {path!r} must derive from {base.__name__}, but does not")
    return cls(*args, **{key: _revive(value) for key, value in description["init_args"].items()})


def _revive(value: Any) -> Any:
    """Turn descriptions into factories, also within a dict of them."""
    if not isinstance(value, dict):
        return value
    if value.keys() == {"class_path", "init_args"}:
        return factory(value)
    return {key: _revive(item) for key, item in value.items()}


def factory(description: dict[str, Any]) -> Callable[..., Recorded]:
    """A callable that builds what is described from the leading arguments that it is given."""
    return partial(build, description, Recorded)


def require_positive(name: str, value: float) -> None:
    """Raise a ValueError unless `value` is at least 1 (for sizes and counts)."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, but is {value}")


def require_finite_positive(name: str, value: float) -> None:
    """Raise a ValueError unless `value` is positive and finite (for scales)."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, but is {value}")
