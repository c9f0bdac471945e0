"""Colors of concepts, and colors and markers of SAE families, the same in every figure."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

# Paul Tol's "muted" scheme, in an order in which neighbors differ; sand and cyan are darker, to be visible on white.
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

# Perceptually even steps from light to dark; the lightest is visible on white.
_RAMP: Final = ("#E8A33D", "#D9673F", "#B13A5E", "#74307A", "#2B1D52")

UNLABELED_COLOR: Final = "#BBBBBB"
INK: Final = "#222222"
MUTED_INK: Final = "#666666"
GRID_COLOR: Final = "#E4E4E4"


class FamilyStyle(NamedTuple):
    """Color of an SAE family and, for color-blind readers, its marker."""

    color: str
    marker: str


# Okabe and Ito's scheme; four colors are reserved for the SAEs of the paper.
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
    """Return colors for `n` concepts, color-blind safe up to nine.

    Concept i has the same color for every `n`. Concepts 9 to 17 have lighter and 18 to 26 darker shades of the first
    nine colors; from the 28th color on they repeat.

    Args:
        n: Number of colors.

    Returns:
        `n` colors such as `"#332288"`.

    Raises:
        ValueError: If `n` is negative.

    Example:
        >>> from sae_lightning.plotting import palette
        >>> palette(2)
        ['#332288', '#CC6677']
    """
    if n < 0:
        raise ValueError(f"`n` must not be negative, got {n}.")
    base = [*_CONCEPT_COLORS]
    cycle = [*base, *(_mix(c, 255, _LIGHTER) for c in base), *(_mix(c, 0, _DARKER) for c in base)]
    return [cycle[i % len(cycle)] for i in range(n)]


def family_styles(families: Iterable[str]) -> dict[str, FamilyStyle]:
    """Return a style for each SAE family, fixed for the SAEs of the paper and by order of appearance for all others.

    `"ReLU"` has the style of `"ReLUSAE"`, unless both are given.

    Args:
        families: Names of SAE families or of single SAEs; repeated names count once.

    Returns:
        Styles by name, the SAEs of the paper first, then the others by first appearance.

    Example:
        >>> from sae_lightning.plotting import family_styles
        >>> family_styles(["mine", "SpaDE"])["SpaDE"]
        FamilyStyle(color='#D55E00', marker='D')
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
    """Return colors for `n` ordered values, from light to dark; the darkest if `n` is 1.

    Args:
        n: Number of colors.

    Returns:
        `n` colors such as `"#E8A33D"`.

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


def _mix(color: str, toward: int, share: float) -> str:
    """Blend a color with white (`toward=255`) or black (`toward=0`)."""
    channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round((1 - share) * c + share * toward):02X}" for c in channels)
