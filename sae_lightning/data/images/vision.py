"""Load the vision transformer of a checkpoint."""

import os
from typing import Any

from sae_lightning.run.checkpoint import CHECKPOINT_KEY, read_checkpoint
from sae_lightning.subjects.vision_transformer import VisionTransformer

_SIZES = ("image_size", "channels", "patch_size", "width", "n_layers", "n_heads")


def read_vision_model(path: str | os.PathLike[str]) -> VisionTransformer:
    """Load the transformer of a VisionModel's checkpoint, in evaluation mode and without gradients.

    Raises:
        ValueError: If the file cannot be read or is not a checkpoint of a VisionModel.
    """
    prefix = "transformer."
    try:
        checkpoint = read_checkpoint(path)
        saved: dict[str, Any] = checkpoint[CHECKPOINT_KEY]["init_args"]
        model = VisionTransformer(**{name: saved[name] for name in _SIZES})
        weights = checkpoint["state_dict"].items()
        model.load_state_dict({key.removeprefix(prefix): value for key, value in weights if key.startswith(prefix)})
    except FileNotFoundError:
        raise ValueError(
            f"checkpoint must be a file, but there is none at {os.fspath(path)!r}: train a vision model first "
            "(sae-lightning fit -c configs/vision/vit.yaml)"
        ) from None  # the original error adds nothing
    except Exception as error:  # invalid arguments raise many types of errors in constructors
        raise ValueError(f"checkpoint {os.fspath(path)!r} must be one of a VisionModel, but is not: {error}") from None
    return model.eval().requires_grad_(False)
