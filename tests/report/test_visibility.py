"""The section on what SAEs achieve and could, and on latents without a counterpart."""

from sae_lightning.geometry import Sight
from sae_lightning.geometry.estimate import UNKNOWN, Estimate
from sae_lightning.report import Overlap, render
from tests.helpers.pages import HOSTILE, Page, make_report, make_sae

SEEN = [Sight(0.99, Estimate(1.0, 0.98, 1.0), "found"), Sight(0.5, Estimate(0.61, 0.58, 0.64), "out of reach")]


def with_visibility(name="spade", other="relu", seen=SEEN, **changes):
    return make_sae(name, field="convex cell", sights=seen, overlaps={other: Overlap(0.25, 0.97, [3])}, **changes)


def test_both_tables_are_there():
    page = Page(render(make_report(saes=[with_visibility(), with_visibility("relu", "spade")], min_jaccard=0.4)))
    assert "0.990of 1.000found" in page.text
    assert "0.500of 0.610out of reach" in page.text
    assert "convex cell" in page.text
    assert "Jaccard index of 0.4 or more" in page.text
    assert "25.0%97%" in page.text
    assert [sae["alone"] for sae in page.data["saes"]] == [{"1": [3]}, {"0": [3]}]


def test_what_is_not_known_is_said_so():
    seen = [Sight(0.5, UNKNOWN, "hidden"), Sight(float("nan"), UNKNOWN, "no samples")]
    unknown = with_visibility(seen=seen)._replace(field=None)
    page = Page(render(make_report(saes=[unknown, with_visibility("relu", "spade")])))
    assert "0.500of ?hidden" in page.text
    assert "n/a" in page.text
    assert "unknown" in page.text


def test_without_results_there_is_no_section():
    page = Page(render(make_report(saes=[make_sae()])))
    assert "Visibility" not in page.text
    assert page.data["saes"][0]["alone"] == {}


def test_names_are_texts():
    page = Page(render(make_report(saes=[with_visibility(HOSTILE, "relu"), with_visibility("relu", HOSTILE)])))
    assert len(page.scripts) == 2
    assert "alert(1)" not in "".join(page.scripts[1:])
