"""Colours are stable, distinct and shared by all figures."""

import pytest

from sae_lightning.plotting import FAMILY_STYLES, family_styles, palette
from sae_lightning.plotting.colors import ramp


def test_palette_only_grows_at_its_end():
    assert palette(0) == []
    for n in (1, 6, 9, 10, 27):
        assert palette(40)[:n] == palette(n)
        assert len(set(palette(n))) == n
    assert palette(28)[27] == palette(1)[0]
    assert all(len(color) == 7 and color.startswith("#") for color in palette(40))


def test_shades_after_nine_are_lighter_then_darker():
    def lightness(color: str) -> int:
        return sum(int(color[i : i + 2], 16) for i in (1, 3, 5))

    base, lighter, darker = palette(27)[:9], palette(27)[9:18], palette(27)[18:]
    for b, l, d in zip(base, lighter, darker, strict=True):  # noqa: E741
        assert lightness(d) < lightness(b) < lightness(l)


def test_palette_refuses_negative_numbers():
    with pytest.raises(ValueError, match="`n` must not be negative, got -1"):
        palette(-1)


def test_ramps_go_from_light_to_dark():
    def luminance(color: str) -> float:
        red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    assert ramp(0) == []
    assert ramp(1) == [ramp(9)[-1]]
    for n in (2, 5, 7, 40):
        values = [luminance(color) for color in ramp(n)]
        assert values == sorted(values, reverse=True)
        assert len(set(ramp(n))) == n
        assert (ramp(n)[0], ramp(n)[-1]) == (ramp(2)[0], ramp(2)[1])
        assert values[0] < 200  # seen on white
    with pytest.raises(ValueError, match="`n` must not be negative, got -1"):
        ramp(-1)


def test_presets_keep_their_style_whoever_stands_beside_them():
    styles = family_styles(["MySAE", "SpaDE", "ReLUSAE", "Gated", "MySAE"])
    assert list(styles) == ["ReLUSAE", "SpaDE", "MySAE", "Gated"]
    assert styles["SpaDE"] == FAMILY_STYLES["SpaDE"] == family_styles(["SpaDE"])["SpaDE"]
    assert styles["MySAE"] != styles["Gated"]
    assert {styles["MySAE"], styles["Gated"]}.isdisjoint(FAMILY_STYLES.values())


def test_twelve_families_have_twelve_colours_and_markers():
    styles = family_styles([*FAMILY_STYLES, *(f"other {i}" for i in range(8))])
    assert len({style.color for style in styles.values()}) == 12
    assert len({style.marker for style in styles.values()}) == 12


def test_short_names_are_aliases_unless_both_are_there():
    assert family_styles(["TopK"])["TopK"] == FAMILY_STYLES["TopKSAE"]
    both = family_styles(["TopK", "TopKSAE"])
    assert both["TopKSAE"] == FAMILY_STYLES["TopKSAE"]
    assert both["TopK"] != both["TopKSAE"]
