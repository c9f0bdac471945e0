"""Base classes of parts and SAEs, which record their constructor arguments so that checkpoints can rebuild them."""

import inspect
import math
import reprlib
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sae_lightning.moved import HOMES, current_path

T = TypeVar("T", bound="Recorded")
_MOST_VALUES = 100_000  # in a description


def _plain(value: Any) -> Any:
    """Convert a numpy scalar to a Python number: `torch.load(weights_only=True)` rejects numpy scalars."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


class Recorded:
    """Mixin that records the constructor's arguments, including defaults, in `init_args`.

    A checkpoint stores these plain values next to the weights, so that `build` can construct the same object without
    unpickling code.
    """

    init_args: dict[str, Any]
    made_as: type
    """Class that was constructed; `type(self)` may differ, since FSDP replaces the class of a module."""
    undescribed: ClassVar[frozenset[str]] = frozenset()
    """Names of arguments that a description omits, because the caller of `build` supplies them."""
    described_in_files: ClassVar[bool] = False
    """Whether a checkpoint may name this class; set it only if the constructor opens no file and imports nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Recorded":
        """Bind the arguments to the constructor's names before `__init__` runs."""
        instance = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)
        except TypeError:  # copy and pickle pass no arguments and restore `__dict__` afterwards;
            _reject_unnamed(cls, kwargs)
            return instance  # wrong arguments are reported by `__init__` itself
        bound.apply_defaults()
        arguments = {name: _plain(value) for name, value in list(bound.arguments.items())[1:]}  # without `self`
        object.__setattr__(instance, "init_args", arguments)
        object.__setattr__(instance, "made_as", cls)
        return instance

    def describe(self) -> dict[str, Any]:
        """Return class path and constructor arguments as plain values, from which `build` constructs the object."""
        cls = self.made_as
        init_args = {key: value for key, value in self.init_args.items() if key not in self.undescribed}
        return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}


def _reject_unnamed(cls: type, given: dict[str, Any]) -> None:
    """Raise a TypeError for arguments that would pass through `**kwargs` to a base without being recorded."""
    constructor: Any = cls.__init__  # type: ignore[misc]
    if not getattr(constructor, "__code__", None) or not constructor.__code__.co_flags & inspect.CO_VARKEYWORDS:
        return
    unknown = given.keys() - inspect.signature(constructor).parameters.keys()
    if unknown:
        raise TypeError(
            f"{cls.__name__} takes no argument {', '.join(sorted(unknown))}: its constructor must name it (only "
            "keyword-only arguments of its base pass through **kwargs)"
        )


class Part(Recorded):
    """Base class of encoders, projections, regularizers and decoders."""

    described_in_files = True
    rows_of_latents: ClassVar[frozenset[str]] = frozenset()
    """Names of the parameters in which row i belongs to latent i."""


def tells(part: Part, method: str, formula: str = "forward") -> bool:
    """Return whether a method or attribute of a part describes the part's own formula.

    It does not if a subclass overrides the formula but inherits the description, which is then of the parent's formula.

    Args:
        part: The part.
        method: Name of the method or attribute that describes the formula.
        formula: Name of the method that implements the formula.

    Example:
        >>> from sae_lightning.nn import Simplex
        >>> from sae_lightning.nn.parts import tells
        >>> class Softmax(Simplex):
        ...     def forward(self, pre_codes):
        ...         return pre_codes.softmax(-1)
        >>> tells(Simplex(4), "firing"), tells(Softmax(4), "firing")
        (True, False)
    """
    order = type(part).__mro__
    told, made = (
        next((i for i, cls in enumerate(order) if name in cls.__dict__), len(order)) for name in (method, formula)
    )
    return told <= made


def build(description: dict[str, Any], base: type[T], *args: Any) -> T:
    """Build the object that `describe` described.

    Descriptions come from untrusted files. The whole description is checked before any constructor is called. Only
    classes in modules that are already imported can be constructed; no module is imported except those of this package
    that `moved` lists.

    Args:
        description: Class path and constructor arguments; descriptions among the arguments become factories.
        base: The described class must be this class or a subclass.
        args: Leading arguments that the description omits.

    Returns:
        The new object.

    Raises:
        ValueError: If a class is unknown or does not derive from `base`, or an argument is not a plain value.

    Example:
        >>> from sae_lightning.nn import KSparse, Projection
        >>> from sae_lightning.nn.parts import build
        >>> description = KSparse(8, k=2).describe()
        >>> description
        {'class_path': 'sae_lightning.nn.projections.KSparse', 'init_args': {'k': 2}}
        >>> build(description, Projection, 8).k
        2
    """
    _check_extent(description)
    check_description(description, base)
    return _built(description, base, *args)


def _check_extent(description: Any) -> None:
    """Raise a ValueError if a description holds too many values: nested references can blow up a small file."""
    left, seen = [description], 0
    while left:
        value = left.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise ValueError(f"a description must hold at most {_MOST_VALUES:,} values, but holds more")
        if isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, (list, tuple)):
            left.extend(value)


def check_description(description: Any, base: type["Recorded"]) -> None:
    """Check that a description, and every description among its arguments, may be built.

    Args:
        description: Value read from a file.
        base: The described class must be this class or a subclass.

    Raises:
        ValueError: If the description is malformed, or names a class or argument that is not allowed.
    """
    if not isinstance(description, dict) or description.keys() != {"class_path", "init_args"}:
        raise ValueError(f"a description must hold class_path and init_args, but is {_shortened(description)}")
    cls = described_class(description["class_path"], base)
    if not cls.described_in_files:
        raise ValueError(f"class {cls.__name__} is no model or part of one, so a file may not name it")
    init_args = description["init_args"]
    if not isinstance(init_args, dict):
        raise ValueError(f"init_args of {cls.__name__} must be a dict, but are {_shortened(init_args)}")
    known = inspect.signature(cls.__init__).parameters.keys() - cls.undescribed
    hints = _hints(cls)
    for name, value in init_args.items():
        if name not in known:
            raise ValueError(f"{cls.__name__} takes no argument {_shortened(name)} from a file")
        _check_value(value, f"{name} of {cls.__name__}")
        if not _has_type(value, hints.get(name, Any)):
            raise ValueError(f"{name} of {cls.__name__} must be of type {hints[name]}, but is {_shortened(value)}")


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # a user's module may import names for type checkers only
        return {}


_KINDS: dict[Any, tuple[type, ...]] = {bool: (bool,), str: (str,), int: (int,), float: (int, float), dict: (dict,)}


def _has_type(value: Any, hint: Any) -> bool:
    """Return whether a plain value matches a type annotation; annotations of other than plain values match any."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_has_type(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is Callable:
        return _is_description(value)
    if hint is type(None):
        return value is None
    kinds = _KINDS.get(origin or hint, (object,))
    return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool) or object in kinds)


def _check_value(value: Any, name: str) -> None:
    if _is_description(value):
        check_description(value, Recorded)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{name} must have names as keys, but one is {_shortened(key)}")
            _check_value(item, name)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_value(item, name)
    elif not isinstance(value, (str, int, float, type(None))):
        raise ValueError(f"{name} must be a plain value, but is of type {type(value).__name__}")


def described_class(path: Any, base: type[T]) -> type[T]:
    """Return the class of a description, importing no module except those of this package that `moved` lists.

    Args:
        path: Import path of the class, or its import path in an earlier version.
        base: The class must be this class or a subclass.

    Raises:
        ValueError: If its module has not been imported, it is no such class, or does not derive from `base`.
    """
    if not isinstance(path, str) or "." not in path:
        raise ValueError(f"class {_shortened(path)} must be an import path, such as package.module.Class")
    module, _, name = current_path(path).rpartition(".")
    if module in HOMES:
        import_module(module)
    if module not in sys.modules:
        raise ValueError(
            f"class {path!r} is not known: a file may only name classes of this package and of modules that have been "
            f"imported. If you trust {module!r}, give --trust {module} on the command line, or import it in Python"
        )
    cls = vars(sys.modules[module]).get(name)  # not `getattr`, which can trigger lazy imports
    if not isinstance(cls, type):
        raise ValueError(f"class {path!r} does not exist: {module!r} has no class of this name")
    if not issubclass(cls, base):
        raise ValueError(f"class {path!r} must derive from {base.__name__}, but does not")
    return cls


def _built(description: dict[str, Any], base: type[T], *args: Any) -> T:
    cls = described_class(description["class_path"], base)
    return cls(*args, **{key: _revive(value) for key, value in description["init_args"].items()})


def _is_description(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"class_path", "init_args"}


def _revive(value: Any) -> Any:
    """Turn descriptions into factories, including those in a dict."""
    if _is_description(value):
        return partial(_built, value, Recorded)
    if isinstance(value, dict):
        return {key: _revive(item) for key, item in value.items()}
    return value


def _shortened(value: Any) -> str:
    text = reprlib.repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def require_positive(name: str, value: float) -> None:
    """Raise a ValueError unless `value` is at least 1 (for sizes and counts)."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, but is {value}")


def require_finite_positive(name: str, value: float) -> None:
    """Raise a ValueError unless `value` is positive and finite (for scales)."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, but is {value}")
