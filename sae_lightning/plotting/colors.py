"""One colour per concept and one colour and marker per SAE family, the same in every figure."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

# After Paul Tol's "muted" scheme, ordered so that neighbours differ; sand and cyan are darkened a little, as points
# of their original lightness fade on white.
_CONCEPT_COLORS: Final = (
    "#332288",
    "#CC6677",
    "#117733",
    "#DDAA33",
    "#55AADD",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
)
_LIGHTER: Final = 0.45
_DARKER: Final = 0.40

# Light to dark in even steps for the eye, through three hues; even the lightest is seen on white.
_RAMP: Final = ("#E8A33D", "#D9673F", "#B13A5E", "#74307A", "#2B1D52")

UNLABELLED_COLOR: Final = "#BBBBBB"
INK: Final = "#222222"
MUTED_INK: Final = "#666666"
GRID_COLOR: Final = "#E4E4E4"


class FamilyStyle(NamedTuple):
    """How an SAE family is drawn: a colour and, for readers who cannot tell colours apart, a marker."""

    color: str
    marker: str


# Okabe and Ito's scheme: the presets of the paper own the first four, all other families follow.
FAMILY_STYLES: Final[Mapping[str, FamilyStyle]] = MappingProxyType(
    {
        "ReLUSAE": FamilyStyle("#0072B2", "o"),
        "JumpReLUSAE": FamilyStyle("#E69F00", "s"),
        "TopKSAE": FamilyStyle("#009E73", "^"),
        "SpaDE": FamilyStyle("#D55E00", "D"),
    }
)
_FOLLOWING_STYLES: Final = (
    FamilyStyle("#CC79A7", "v"),
    FamilyStyle("#56B4E9", "P"),
    FamilyStyle("#7A5195", "X"),
    FamilyStyle("#555555", "<"),
    FamilyStyle("#8C6D1F", ">"),
    FamilyStyle("#B8A900", "p"),
    FamilyStyle("#17506B", "h"),
    FamilyStyle("#A23B3B", "*"),
)


def palette(n: int) -> list[str]:
    """Colours for `n` concepts, colour-blind safe up to nine.

    The list only ever grows at its end, `palette(m) == palette(n)[:m]`, so concept i keeps its colour in
    every figure. Concepts 9 to 17 get lighter and 18 to 26 darker shades of the first nine; after 27 colours
    repeat, since nobody could tell more of them apart.

    Args:
        n: Number of colours.

    Returns:
        `n` colours such as `"#332288"`.

    Raises:
        ValueError: If `n` is negative.
    """
    if n < 0:
        raise ValueError(f"`n` must not be negative, got {n}.")
    base = [*_CONCEPT_COLORS]
    cycle = [*base, *(_mix(c, 255, _LIGHTER) for c in base), *(_mix(c, 0, _DARKER) for c in base)]
    return [cycle[i % len(cycle)] for i in range(n)]


def family_styles(families: Iterable[str]) -> dict[str, FamilyStyle]:
    """A style for each SAE family: fixed for the paper's presets, in order of appearance for all others.

    `"ReLU"` counts as `"ReLUSAE"`, unless both are there.

    Args:
        families: Names of SAE families, or of single SAEs; repeated names count once.

    Returns:
        Style by name, in the order in which figures list them: the presets first, then by first appearance.
    """
    names = list(dict.fromkeys(families))
    styles: dict[str, FamilyStyle] = {}
    for preset, style in FAMILY_STYLES.items():
        alias = preset.removesuffix("SAE")
        if preset in names:
            styles[preset] = style
        elif alias in names:
            styles[alias] = style
    others = [name for name in names if name not in styles]
    for i, name in enumerate(others):
        styles[name] = _FOLLOWING_STYLES[i % len(_FOLLOWING_STYLES)]
    return styles


def ramp(n: int) -> list[str]:
    """Colours for `n` ordered values, from light to dark; the darkest where there is only one.

    Args:
        n: Number of colours.

    Returns:
        `n` colours such as `"#E8A33D"`.

    Raises:
        ValueError: If `n` is negative.
    """
    if n < 0:
        raise ValueError(f"`n` must not be negative, got {n}.")
    colors = []
    for i in range(n):
        position = (len(_RAMP) - 1) * (i / (n - 1) if n > 1 else 1.0)
        left = min(int(position), len(_RAMP) - 2)
        share = position - left
        pairs = (((int(c[k : k + 2], 16) for c in _RAMP[left : left + 2])) for k in (1, 3, 5))
        colors.append("#" + "".join(f"{round((1 - share) * a + share * b):02X}" for a, b in pairs))
    return colors


def _mix(color: str, towards: int, share: float) -> str:
    """Blend a colour with white (`towards=255`) or black (`towards=0`)."""
    channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round((1 - share) * c + share * towards):02X}" for c in channels)
