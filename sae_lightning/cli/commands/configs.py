"""`sae-lightning configs`: list the configs that come with the package, or copy them."""

import shutil
import sys
from pathlib import Path

from sae_lightning.run.shipped import configs_folder


def main(args: list[str]) -> None:
    """List the shipped configs, or copy them to a folder (`--copy DIR`)."""
    args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--copy=") else [arg])]
    if not args:
        print(listing(configs_folder()))
    elif len(args) == 2 and args[0] == "--copy":
        copy(Path(args[1]))
    elif args[0] in ("-h", "--help"):
        print(
            "usage: sae-lightning configs [--copy DIR]\n\nLists the configs that come with the package, which "
            "`sae-lightning fit -c FOLDER/NAME`\ntakes by these names; --copy copies all of them to a folder."
        )
    else:
        sys.stderr.write(f"error: configs takes only --copy DIR, but was given {' '.join(args)!r}\n")
        sys.exit(2)


def listing(folder: Path) -> str:
    """The configs of a folder by name, each with what its first comment says."""
    paths = sorted(path for path in folder.rglob("*.yaml"))
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    width = max(map(len, names), default=0)
    return "\n".join(f"{name:{width}}  {_purpose(path)}".rstrip() for name, path in zip(names, paths, strict=True))


def _purpose(path: Path) -> str:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def copy(target: Path) -> None:
    """Copy all shipped configs into a new or empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        sys.stderr.write(f"error: --copy must name a new or empty folder, but {str(target)!r} is not\n")
        sys.exit(2)
    shutil.copytree(configs_folder(), target, dirs_exist_ok=True)
    print(f"{target}: {sum(path.is_file() for path in target.rglob('*'))} files")
