"""Arguments that an architecture shares with its base and does not repeat."""

import inspect
from typing import Any


def complete_signature(cls: type) -> None:
    """Let a constructor's `**kwargs` stand for the keyword-only arguments of the base that it does not name itself.

    The command line, checkpoints and `help` read the completed signature, and the arguments' text from the base.
    """
    own: Any = cls.__dict__.get("__init__")
    if own is None or hasattr(own, "__signature__"):
        return
    signature = inspect.signature(own)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if len(named) == len(signature.parameters):
        return
    base: Any = next(c for c in cls.__mro__[1:] if "__init__" in c.__dict__)
    taken = {p.name for p in named}
    passed = [
        p
        for p in inspect.signature(base.__init__).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in taken
    ]
    own.__signature__ = inspect.Signature([*named, *passed], return_annotation=signature.return_annotation)
    own.passed = frozenset(p.name for p in passed)
    own.__annotations__ = {**{p.name: p.annotation for p in passed}, **own.__annotations__}
    text = _documented(base)
    lines = [f"    {p.name}: {text[p.name]}" for p in passed if p.name in text]
    own.__doc__ = "\n".join(["Arguments of the base, by keyword.", "", "Args:", *lines])


def require_passed(instance: Any, base: type, received: dict[str, Any]) -> None:
    """Check that arguments reach a base as they were given, since checkpoints record what was given.

    Args:
        instance: The object under construction, with its `init_args`.
        base: The class whose constructor calls this.
        received: Its keyword-only arguments.

    Raises:
        ValueError: If the constructor of a subclass changes an argument that it does not name.
    """
    order = type(instance).__mro__
    between = [vars(cls)["__init__"] for cls in order[: order.index(base)] if "__init__" in vars(cls)]
    for name, value in received.items():
        given = instance.init_args.get(name, value)
        unnamed = all(name in getattr(constructor, "passed", ()) for constructor in between)
        if unnamed and given is not value and given != value:
            raise ValueError(
                f"{type(instance).__name__} changes {name} from {given!r} to {value!r} without naming it: its "
                f"constructor must have an argument {name}, or another of its own from which it is computed"
            )


def _documented(base: type) -> dict[str, str]:
    """Text of the arguments of a class, by name, from its docstring and its constructor's."""
    import docstring_parser

    found = {}
    for owner in (base.__init__, base):  # type: ignore[misc]
        for param in docstring_parser.parse(inspect.getdoc(owner) or "").params:
            found[param.arg_name] = " ".join((param.description or "").split())
    return found
