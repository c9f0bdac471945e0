"""Map the tags and labels of a source to concepts."""

from collections.abc import Collection, Mapping


def concept_of_tag(concepts: Mapping[str, list[str]], known: Collection[str] | None = None) -> dict[str, int]:
    """Return the index of the concept that each tag belongs to.

    Args:
        concepts: The tags of each concept, by its name.
        known: All allowed tags; None allows any.

    Raises:
        ValueError: If there is no concept, a concept has no tag, or a tag is unknown or belongs to two concepts.

    Example:
        >>> from sae_lightning.data.sources.concepts import concept_of_tag
        >>> concept_of_tag({"noun": ["NOUN", "PROPN"], "verb": ["VERB"]})
        {'NOUN': 0, 'PROPN': 0, 'VERB': 1}
    """
    if not concepts:
        raise ValueError("concepts must name at least one concept, but is empty")
    found: dict[str, int] = {}
    for number, (name, tags) in enumerate(concepts.items()):
        if isinstance(tags, str) or not tags:
            raise ValueError(f"concepts must give every concept a list of tags, but give {name!r} {tags!r}")
        for tag in tags:
            if known is not None and tag not in known:
                raise ValueError(f"concepts must be made of the tags {list(known)}, but {name!r} holds {tag!r}")
            if tag in found:
                raise ValueError(f"concepts must share no tag, but {tag!r} belongs to two")
            found[tag] = number
    return found


def concept_of_label(label: object, names: list[str]) -> int:
    """Return the index of the concept that a label names.

    Args:
        label: Name or index of a concept; None and -1 stand for no concept.
        names: Names of the concepts.

    Returns:
        The index, -1 for no concept.

    Raises:
        ValueError: If the label is none of these.

    Example:
        >>> from sae_lightning.data.sources.concepts import concept_of_label
        >>> [concept_of_label(label, ["bad", "good"]) for label in ("good", 0, None)]
        [1, 0, -1]
    """
    if label is None:
        return -1
    if isinstance(label, int) and not isinstance(label, bool) and -1 <= label < len(names):
        return label
    if isinstance(label, str) and label in names:
        return names.index(label)
    raise ValueError(f"a label must be one of {names} or its number, but is {label!r}")
