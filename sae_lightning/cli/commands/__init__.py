"""Commands of the command line that train nothing."""

from importlib import import_module


def run_command(name: str, args: list[str]) -> None:
    """Run a command; its module is imported only then.

    Args:
        name: `configs`, `diagnose` or `harvest`.
        args: Its arguments.
    """
    import_module(f"sae_lightning.cli.commands.{name}").main(args)
