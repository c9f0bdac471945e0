"""Loading from Hugging Face, with errors that say what is wrong."""

import os
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn


def load_pretrained(factory: str, name: str, **arguments: Any) -> Any:
    """Call `from_pretrained` of one of transformers' Auto classes.

    Args:
        factory: Name of the class.
        name: Name on the hub, or path of a folder.
        arguments: Passed on; those that are None are left out.

    Raises:
        ValueError: If transformers is missing, or nothing can be loaded; the message says what was tried and why.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError(
            "reading activations of a pretrained model needs transformers: pip install 'sae-lightning[activations]'"
        ) from None
    given = {key: value for key, value in arguments.items() if value is not None}
    loads_weights = "dtype" in given
    try:
        if not loads_weights:
            return getattr(transformers, factory).from_pretrained(name, **given)
        model, report = getattr(transformers, factory).from_pretrained(name, output_loading_info=True, **given)
    except Exception as error:  # each kind of file and of damage has its own
        where = "folder" if os.path.isdir(name) else "model on the hub"
        raise ValueError(f"{name!r} cannot be loaded as a {where} with {factory}: {error}") from error
    missing = sorted(report["missing_keys"])
    if missing and 2 * len(missing) > len(model.state_dict()):
        raise ValueError(
            f"{name!r} must hold the weights of a {type(model).__name__}, but lacks {len(missing)} of "
            f"{len(model.state_dict())}, such as {missing[0]!r}"
        )
    if missing:
        rank_zero_warn(f"{name!r} has no weights for {', '.join(missing)}: these are random")
    return model
