"""Load models from Hugging Face, with errors that name the cause."""

import importlib.util
import os
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

_PACKAGE = "package:"


def _resolved(name: str) -> str:
    """Resolve `package:NAME/FOLDER` to a folder of an installed package; return other names unchanged.

    Raises:
        ValueError: If the package is not installed or has no such folder.
    """
    if not name.startswith(_PACKAGE):
        return name
    package, _, folder = name.removeprefix(_PACKAGE).partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    for place in (found.submodule_search_locations or []) if found else []:
        path = os.path.join(place, folder)
        if os.path.isdir(path):
            return path
    raise ValueError(f"name must be that of a folder in an installed package after {_PACKAGE!r}, but is {name!r}")


def load_pretrained(factory: str, name: str, **arguments: Any) -> Any:
    """Call `from_pretrained` of one of transformers' Auto classes.

    Args:
        factory: Name of the class.
        name: Name on the hub, path of a folder, or `package:NAME/FOLDER` for a folder of an installed package.
        arguments: Keyword arguments of `from_pretrained`; those that are None are left out.

    Raises:
        ValueError: If transformers is missing, or loading fails.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError(
            "reading activations of a pretrained model needs transformers: pip install 'sae-lightning[activations]'"
        ) from None
    given = {key: value for key, value in arguments.items() if value is not None}
    loads_weights = "dtype" in given
    path = _resolved(name)
    try:
        if not loads_weights:
            return getattr(transformers, factory).from_pretrained(path, **given)
        model, report = getattr(transformers, factory).from_pretrained(path, output_loading_info=True, **given)
    except Exception as error:  # damaged files raise many types of errors
        where = "folder" if os.path.isdir(path) else "model on the hub"
        raise ValueError(f"{name!r} cannot be loaded as a {where} with {factory}: {error}") from None
    missing = sorted(report["missing_keys"])
    if missing and 2 * len(missing) > len(model.state_dict()):
        raise ValueError(
            f"{name!r} must hold the weights of a {type(model).__name__}, but lacks {len(missing)} of "
            f"{len(model.state_dict())}, such as {missing[0]!r}"
        )
    if missing:
        rank_zero_warn(f"{name!r} has no weights for {', '.join(missing)}: they are initialized at random")
    return model
