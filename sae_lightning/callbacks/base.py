"""What a callback declares: its name on the command line, the models that it serves, the callbacks that it needs."""

from collections.abc import Iterable, Sequence
from typing import ClassVar, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from sae_lightning.modules.run import RunModule

C = TypeVar("C", bound=pl.Callback)


class RunCallback(pl.Callback):
    """Base of callbacks that say where they belong; the command line is derived from what they say.

    A callback with a key is configured on the command line as `--<key>.<argument>`. Its key is the name of its file
    and part of the name of its class in snake case: `recovery` is `ConceptRecovery` in `recovery.py`.

    A subclass that overrides `setup` calls `super().setup(...)`, which checks what is declared.
    """

    key: ClassVar[str] = ""
    """Name on the command line; empty for a callback that is no default."""
    serves: ClassVar[type[RunModule]] = RunModule
    """The models that it works with: all subclasses of this one."""
    needs: ClassVar[tuple[type[pl.Callback], ...]] = ()
    """Callbacks without which it cannot work; they run before it."""
    uses: ClassVar[tuple[type[pl.Callback], ...]] = ()
    """Callbacks whose results it takes where they are present; they run before it."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the model, and that all that is needed runs before this callback.

        Raises:
            ValueError: If the model is not served, or a callback that is needed is missing or runs later.
        """
        name = type(self).__name__
        if not isinstance(pl_module, self.serves):
            raise ValueError(f"{name} works with {self.serves.__name__}, but the model is {type(pl_module).__name__}")
        present: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        require_needed(self, present)
        earlier = present[: present.index(self)] if self in present else present
        for need in self.needs:  # Lightning runs all checkpoint callbacks last
            if not issubclass(need, Checkpoint) and not any(isinstance(other, need) for other in earlier):
                raise ValueError(f"{need.__name__} must run before {name}, which needs it: list it first")
        super().setup(trainer, pl_module, stage)


def require_needed(callback: pl.Callback, present: Iterable[pl.Callback]) -> None:
    """Check that all callbacks that one needs are present.

    Raises:
        ValueError: If one is missing; both are named.
    """
    others = [other for other in present if other is not callback]
    for need in callback.needs if isinstance(callback, RunCallback) else ():
        if not any(isinstance(other, need) for other in others):
            raise ValueError(f"{type(callback).__name__} needs {need.__name__}, which is not among the callbacks")


def in_order(callbacks: Sequence[pl.Callback]) -> list[pl.Callback]:
    """Sort callbacks so that each follows those it needs or uses; keep the order otherwise.

    Raises:
        ValueError: If a callback that is needed is missing, or callbacks need each other.

    Example:
        >>> from sae_lightning.callbacks import ConceptRecovery, RecoveryTable
        >>> [type(callback).__name__ for callback in in_order([RecoveryTable(), ConceptRecovery()])]
        ['ConceptRecovery', 'RecoveryTable']
    """
    for callback in callbacks:
        require_needed(callback, callbacks)
    waiting, ordered = list(callbacks), list[pl.Callback]()
    while waiting:
        ready = next((callback for callback in waiting if not _waits(callback, waiting)), None)
        if ready is None:
            names = ", ".join(type(callback).__name__ for callback in waiting)
            raise ValueError(f"callbacks must not need each other, but {names} do")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def _waits(callback: pl.Callback, waiting: Iterable[pl.Callback]) -> bool:
    """Whether what a callback needs or uses is among those that wait."""
    if not isinstance(callback, RunCallback):
        return False
    before = (*callback.needs, *callback.uses)
    return any(other is not callback and isinstance(other, before) for other in waiting)


def find(trainer: pl.Trainer, kind: type[C]) -> C | None:
    """The first of a trainer's callbacks of a kind; None without one."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]


def found(trainer: pl.Trainer, kind: type[C]) -> C:
    """Return the first of a trainer's callbacks of a kind that the caller declares in `needs`."""
    callback = find(trainer, kind)
    assert callback is not None  # `RunCallback.setup` has checked it
    return callback
