"""The page and the text of a diagnosis say what it found, safely and without a script."""

import math
import re

import pytest

from sae_lightning.geometry import (
    ConceptGeometry,
    Diagnosis,
    Dimension,
    Estimate,
    Heterogeneity,
    Recommendation,
    Verdict,
)
from sae_lightning.report import Figure, diagnosis_text, render_diagnosis
from tests.helpers.pages import HOSTILE, Page

NAN = Estimate(math.nan, math.nan, math.nan)
KNOWN = Dimension(900, Estimate(6.04, 5.9, 6.2), Estimate(6, 6, 6), Estimate(7, 6, 7), Estimate(5.5, 5.1, 5.9))
UNKNOWN = Dimension(12, NAN, NAN, NAN, NAN, ("12 samples are fewer than the 30 that any estimate needs",))


def made(name="noun", clustered=False, recommendation=None):
    concepts = (
        ConceptGeometry(name, 900, 90, 0.9, KNOWN, 7, {"half-space": Estimate(0.607, 0.59, 0.62)}),
        ConceptGeometry("verb", 12, 0, 0.012, UNKNOWN, None, {"half-space": NAN}),
    )
    verdicts = (
        Verdict(
            "ReLUSAE", "half-space", "One plane cuts it off.", None, 0.607, Estimate(0.607, 0.59, 0.62), (), (name,)
        ),
        Verdict("OwnSAE", None, None, None, math.nan, NAN, (), ()),
    )
    recommendation = recommendation or Recommendation("ReLUSAE", 16, None, 6.7, ("a reason",))
    notes = ("these are clusters",) if clustered else ()
    return Diagnosis(concepts, verdicts, Heterogeneity(3.5, 0.4), recommendation, 0.9, 0.95, clustered, notes)


def page(diagnosis, figures=(), facts=(("Data", "MyDataModule"),)):
    return render_diagnosis(diagnosis, "Diagnosis of MyDataModule", facts, figures)


def test_the_page_has_every_number():
    cells = [text.strip() for _, text in Page(page(made())).cells]
    first = cells.index("noun")
    assert cells[first + 1 : first + 8] == ["90.0%", "900", "6.0 5.9 to 6.2", "6", "7 (6 to 7)", "5.5 5.1 to 5.9", "7"]
    assert cells[first + 8] == "0.607 0.590 to 0.620 hidden"
    second = cells.index("verb")
    assert cells[second + 1 : second + 8] == ["1.2%", "12", "-", "-", "-", "-", "-"]
    assert cells[second + 8].startswith("n/a")
    words = " ".join("".join(Page(page(made())).words).split())
    assert "ReLUSAE, d_sae 16, L0 about 7" in words
    assert "0 of 1 can be found" in words
    assert "would hide: noun" in words
    assert "Its receptive fields and bounds are unknown." in words
    assert "verb: 12 samples are fewer than the 30 that any estimate needs." in words
    assert "Dimensions differ by a factor of 3.5." in words


def test_the_page_needs_no_script_and_nothing_from_outside():
    text = page(made(), [Figure("bounds", "data:image/png;base64,AAAA")])
    tags = [tag for tag, _ in Page(text).tags]
    assert "script" not in tags
    assert "button" not in tags
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert not re.search(r"\{\{\w+\}\}", text)
    assert 'name="viewport"' in text


def test_hostile_names_stay_text():
    text = page(made(HOSTILE), [Figure(HOSTILE, "data:," + HOSTILE)], [(HOSTILE, HOSTILE)])
    harmless = [tag for tag, _ in Page(page(made(), [Figure("a", "data:,")], [("a", "b")])).tags]
    assert [tag for tag, _ in Page(text).tags if tag != "wbr"] == [tag for tag in harmless if tag != "wbr"]


@pytest.mark.parametrize("write", [page, diagnosis_text])
def test_clusters_are_marked(write):
    text = write(made(clustered=True))
    assert "Cluster" in text
    assert "these are clusters" in text
    assert "Cluster" not in write(made())


def test_the_text_has_the_tables_and_the_reasons():
    lines = diagnosis_text(made()).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[2] == ["noun", "90.0%", "900", "6.0 (5.9 to 6.2)", "6", "7 (6 to 7)", "5.5", "7", "(0.607)"]
    assert rows[3] == ["verb", "1.2%", "12", "-", "-", "-", "-", "-", "-"]
    assert ["ReLUSAE", "half-space", "0.607", "0.607", "noun"] in rows
    assert ["OwnSAE", "unknown", "-", "-", "-"] in rows
    assert "Recommendation: ReLUSAE, d_sae 16, L0 about 7" in lines
    assert "* a reason" in lines
    assert "verb: 12 samples are fewer than the 30 that any estimate needs." in lines


def test_a_recommendation_may_be_partial():
    fixed = Recommendation("TopKSAE", 16, 7, None, ())
    assert "Recommendation: TopKSAE, d_sae 16, k 7" in diagnosis_text(made(recommendation=fixed))
    nothing = Recommendation(None, None, None, None, ("why",))
    assert "Recommendation: no architecture\n" in diagnosis_text(made(recommendation=nothing))
    assert "no architecture" in page(made(recommendation=nothing))
