"""What parts and SAEs have in common: they remember how they were built, in plain values."""

import importlib
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from sae_lightning.nn.sharding import Sharding

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
    made_as: type
    """The class that was constructed. (FSDP changes that of a module.)"""
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
        object.__setattr__(instance, "made_as", cls)
        return instance

    def describe(self) -> dict[str, Any]:
        """Class path and constructor arguments: all that `build` needs."""
        cls = self.made_as
        init_args = {key: value for key, value in self.init_args.items() if key not in self.undescribed}
        return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}


class Part(Recorded):
    """What encoders, projections, regularizers and decoders have in common: they may have a sparse form.

    A class says that it has one with `sparse = True`. A subclass that changes what `dense_form` names, but not
    `sparse`, has none, whatever its parent has: it is then trained by its dense form. The same holds for
    `rows_of_latents`, which says that the class works where latents lie on several processes (`sharding` tells which):
    it names those of its parameters of which each process then holds the rows of its own latents.
    """

    sparse: ClassVar[bool] = False
    rows_of_latents: ClassVar[frozenset[str] | None] = None
    dense_form: ClassVar[frozenset[str]] = frozenset({"forward"})
    sharding: "Sharding | None" = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """See whether the inherited sparse form still says the same as the dense one."""
        super().__init_subclass__(**kwargs)
        if cls.dense_form & cls.__dict__.keys():
            for form, none in {"sparse": False, "rows_of_latents": None}.items():
                if form not in cls.__dict__:
                    setattr(cls, form, none)


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


def require_shardable(*parts: Part) -> None:
    """Raise a ValueError unless each part can work where latents lie on several processes."""
    for part in parts:
        if part.rows_of_latents is None:
            raise ValueError(
                f"latents can be sharded only where every part says how (rows_of_latents), but {type(part).__name__} "
                "does not: train with another strategy, or with tensor_parallel_size = 1"
            )
