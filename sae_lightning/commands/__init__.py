"""Commands of the command line that train nothing."""

from collections.abc import Callable

from sae_lightning.commands.diagnose import main as diagnose
from sae_lightning.commands.harvest import main as harvest

COMMANDS: dict[str, Callable[[list[str]], None]] = {"diagnose": diagnose, "harvest": harvest}
