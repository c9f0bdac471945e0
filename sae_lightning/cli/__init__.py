"""The command line: an overview, and the way to each command; heavy libraries are imported only then."""

import os
import sys
from difflib import get_close_matches

from sae_lightning.version import __version__

COMMANDS = {
    "fit": "train SAEs (or a model to be explained)",
    "validate": "measure what a checkpoint recovers, on validation data",
    "test": "the same on test data, with table, figures and a page",
    "predict": "write the codes of the test data",
    "diagnose": "say which SAE the geometry of your data asks for, before training",
    "harvest": "write a model's activations to a cache",
    "configs": "list the configs that come with the package, or copy them",
}
"""What each command does."""

_TRAIN = ("fit", "validate", "test", "predict")


def main(args: list[str] | None = None) -> None:
    """Run a command.

    Args:
        args: Arguments without the program's name; None takes `sys.argv`.
    """
    given = sys.argv[1:] if args is None else list(args)
    if not given or given[0] in ("-h", "--help"):
        print(overview())
        return
    if given[0] == "--version":
        print(f"sae-lightning {__version__}")
        return
    command = given[0]
    if command not in COMMANDS:
        close = get_close_matches(command, COMMANDS, n=1)
        meant = f"did you mean {close[0]}?" if close else f"choose from {', '.join(COMMANDS)}"
        sys.stderr.write(f"error: there is no command {command!r}: {meant} (`sae-lightning` lists the commands)\n")
        sys.exit(2)
    if os.getcwd() not in sys.path:  # as `python -m` has it; last, so that nothing here hides an installed module
        sys.path.append(os.getcwd())
    try:
        if command in _TRAIN:
            from sae_lightning.cli.training import run

            run(given)
        else:
            from sae_lightning.cli.commands import run_command

            run_command(command, given[1:])
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def overview() -> str:
    """The commands, with what each does and an example."""
    width = max(map(len, COMMANDS))
    lines = [
        "Train, compare and understand sparse autoencoders (SAEs).",
        "",
        "usage: sae-lightning COMMAND ARGUMENTS",
        "",
        *(f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items()),
        "",
        "  sae-lightning fit -c separability/compare --run_dir runs/demo",
        "  sae-lightning test -c separability/compare --ckpt_path runs/demo/checkpoints/last.ckpt",
        "",
        "`sae-lightning COMMAND --help` names every argument; `sae-lightning --version` tells the version.",
    ]
    return "\n".join(lines)
