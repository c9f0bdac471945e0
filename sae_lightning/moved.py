"""Where classes of earlier versions are now: files that name them as they were called still load."""

import re
from typing import Any

MODULES = {
    "sae_lightning.callbacks.language": "sae_lightning.callbacks.grammar",
    "sae_lightning.callbacks.predictions": "sae_lightning.callbacks.codes",
    "sae_lightning.callbacks.recovery_figures": "sae_lightning.callbacks.figures",
    "sae_lightning.callbacks.stopping": "sae_lightning.callbacks.stop",
    "sae_lightning.data.cached": "sae_lightning.data.activations.cached",
    "sae_lightning.data.formal_language": "sae_lightning.data.formal_language.activations",
    "sae_lightning.data.grammar": "sae_lightning.data.formal_language.grammar",
    "sae_lightning.data.heterogeneity": "sae_lightning.data.synthetic.heterogeneity",
    "sae_lightning.data.images": "sae_lightning.data.images.datamodule",
    "sae_lightning.data.live": "sae_lightning.data.activations.live",
    "sae_lightning.data.sentences": "sae_lightning.data.formal_language.sentences",
    "sae_lightning.data.separability": "sae_lightning.data.synthetic.separability",
    "sae_lightning.data.vision": "sae_lightning.data.images.vision",
    "sae_lightning.data.hosts": "sae_lightning.data.activations.hosts",
    "sae_lightning.data.hosts.base": "sae_lightning.data.activations.hosts.base",
    "sae_lightning.data.hosts.image": "sae_lightning.data.activations.hosts.image",
    "sae_lightning.data.hosts.text": "sae_lightning.data.activations.hosts.text",
    "sae_lightning.data.reading": "sae_lightning.data.activations.reading",
    "sae_lightning.modules.language_model": "sae_lightning.subjects.language_model",
    "sae_lightning.modules.vision_model": "sae_lightning.subjects.vision_model",
    "sae_lightning.nn.transformer": "sae_lightning.subjects.transformer",
    "sae_lightning.nn.vision_transformer": "sae_lightning.subjects.vision_transformer",
    "sae_lightning.subjects.grammar_report": "sae_lightning.callbacks.grammar",
}
"""Modules by the paths that files of earlier versions name them by."""

CLASSES = {
    "sae_lightning.callbacks.FeatureReport": "sae_lightning.callbacks.features.FeaturesReport",
    "sae_lightning.callbacks.TopActivations": "sae_lightning.callbacks.meaning.LatentMeaning",
    "sae_lightning.callbacks.meaning.TopActivations": "sae_lightning.callbacks.meaning.LatentMeaning",
    "sae_lightning.callbacks.vision.FeatureReport": "sae_lightning.callbacks.features.FeaturesReport",
    "sae_lightning.modules.LanguageModel": "sae_lightning.subjects.language_model.LanguageModel",
    "sae_lightning.modules.VisionModel": "sae_lightning.subjects.vision_model.VisionModel",
    "sae_lightning.subjects.feature_report.FeatureReport": "sae_lightning.callbacks.features.FeaturesReport",
}
"""The same for classes that have another name now, or that a package offered by a shorter path."""

HOMES = frozenset(MODULES.values()) | {path.rpartition(".")[0] for path in CLASSES.values()}
"""Modules that a file may name before they have been imported: importing them defines classes, and does no more."""

_DOTTED = re.compile(r"(?<![\w./\\-])sae_lightning(?:\.\w+)+(?![\w/\\-])")


def current_path(path: Any) -> Any:
    """The import path of a class now; whatever has not moved, or is no path, is returned as it is."""
    if not isinstance(path, str):
        return path
    module, _, name = path.rpartition(".")
    return f"{MODULES[module]}.{name}" if module in MODULES else CLASSES.get(path, path)


def current_text(text: str) -> str:
    """A text, such as a config or an argument, with the import paths within it as they are now."""
    return _DOTTED.sub(lambda found: str(current_path(found[0])), text)


def current(value: Any) -> Any:
    """Plain values, such as a description, with the import paths within them as they are now."""
    if isinstance(value, dict):
        return {key: current(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(current, value)) if type(value) in (list, tuple) else value
    if isinstance(value, str) and value.startswith("sae_lightning."):  # the class of a module is followed by its layers
        path, colon, rest = value.partition(":")
        return f"{current_path(path)}{colon}{rest}"
    return value
