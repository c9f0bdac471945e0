"""Comparison: several SAEs on the same stream of batches."""

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from sae_lightning.modules.base import BaseSAE
from sae_lightning.modules.module import SAEModule
from sae_lightning.modules.optimizers import OptimizerGroup, SchedulerGroup

_PREFIX = "sae_"  # lets a member have the name of one of ModuleDict's methods


class Comparison(SAEModule):
    """Trains and tests several SAEs side by side, each as if it were alone.

    Every member sees the same batches and has its own initial draw, optimizer, schedule and gradient clipping: its
    weights are those of the same SAE trained by itself. (With 16-mixed precision the members share one loss scale.)
    A member's metrics are logged under its name.

    Args:
        d_in: Size of an activation.
        members: Makes each SAE from `d_in`, by name. Names become folders and log keys: letters, digits, `-`, `_`.

    Raises:
        ValueError: If there is no member, or a name has other characters.
    """

    def __init__(self, d_in: int, members: dict[str, Callable[[int], BaseSAE]]) -> None:
        super().__init__(d_in)
        if not members:
            raise ValueError("members must name at least one SAE, but is empty")
        for name in members:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"names of members must be made of letters, digits, '-' and '_', but one is {name!r}")
        self.members = nn.ModuleDict({_PREFIX + name: make(d_in) for name, make in members.items()})
        for name, sae in self.saes().items():
            if not isinstance(sae, BaseSAE):
                raise ValueError(f"members must make SAEs (BaseSAE), but {name!r} makes a {type(sae).__name__}")
        self.init_args["members"] = {name: self._describe_member(sae) for name, sae in self.saes().items()}
        self.save_hyperparameters(self.init_args)

    @staticmethod
    def _describe_member(sae: BaseSAE) -> dict[str, Any]:
        description = sae.describe()
        description["init_args"].pop("d_in")
        return description

    def saes(self) -> dict[str, BaseSAE]:
        """The members by name."""
        return {name.removeprefix(_PREFIX): sae for name, sae in self.members.items()}  # type: ignore[misc]

    def configure_optimizers(self) -> Any:
        """One optimizer group and one schedule group that step the members' own."""
        made = {name: sae.make_optimizer() for name, sae in self.saes().items()}
        optimizer = OptimizerGroup({name: own for name, (own, _) in made.items()})
        schedulers = {name: schedule for name, (_, schedule) in made.items() if schedule is not None}
        if not schedulers:
            return optimizer
        schedule = SchedulerGroup(optimizer, schedulers)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
