"""The page is whole, safe and says what it was given."""

import base64
import hashlib
import json
import math
import re

import pytest

from sae_lightning.report import (
    Concept,
    Example,
    Figure,
    Latent,
    Picture,
    Sample,
    Text,
    render,
)
from sae_lightning.report.page import contents, embedded
from tests.helpers.pages import HOSTILE, MEASURES, Page, make_report, make_sae


def test_is_one_file_that_loads_nothing():
    text = render(make_report())
    page = Page(text)
    addresses = [
        v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "srcset", "action") and v
    ]
    assert addresses == ["data:image/png;base64,AAAA"]
    assert not any(tag in ("link", "iframe", "object", "embed", "base") for tag, _ in page.tags)
    for part in ("http:", "https:", "//cdn", "@import", "url("):
        assert part not in text
    assert "{{" not in text


def test_policy_allows_its_own_script_only():
    page = Page(render(make_report()))
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert len(page.scripts) == 2
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_the_script_never_parses_text_as_html():
    script = Page(render(make_report())).scripts[1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_data_come_back():
    report = make_report()
    data = Page(render(report)).data
    assert data == json.loads(json.dumps(contents(report)))
    assert data["concepts"] == [["nouns", "#332288"], ["verbs", "#CC6677"]]
    assert data["samples"] == [[7, [0], "the ", "cat", " sat"], [9, [1], "a ", "dog", ""]]
    spade, relu = data["saes"]
    assert spade["latents"][0]["examples"] == [[0, 1.5], [1, 0.25]]
    assert spade["detectors"] == [[[3, 0.99, 1.0, 0.99]], []]
    assert relu["best"] == [0.91, None]


def test_hostile_texts_stay_texts():
    sample = Sample([0], Text(HOSTILE, HOSTILE, HOSTILE))
    report = make_report(
        title=HOSTILE,
        facts=[(HOSTILE, HOSTILE)],
        concepts=[Concept(HOSTILE, "#332288"), Concept("verbs", "#CC6677")],
        saes=[make_sae(HOSTILE, (0.2, 0.99))],
        samples={7: sample, 9: sample},
        figures=[Figure(HOSTILE, "data:image/png;base64,AAAA")],
        notes=[HOSTILE],
    )
    text, harmless = render(report), render(make_report(saes=[make_sae("mine", (0.2, 0.99))]))
    assert text.count("<script") == harmless.count("<script") == 2
    page, same = Page(text), Page(harmless)
    assert [tag for tag, _ in page.tags if tag != "wbr"] == [tag for tag, _ in same.tags if tag != "wbr"]
    assert [set(attrs) for tag, attrs in page.tags if tag != "wbr"] == [
        set(attrs) for tag, attrs in same.tags if tag != "wbr"
    ]
    assert page.data["samples"][0][2:] == [HOSTILE] * 3
    assert page.data["saes"][0]["name"] == HOSTILE
    assert not set("<>&\u2028") & set(embedded(contents(report)))


def test_hidden_concepts_are_marked_and_named():
    page = Page(render(make_report()))
    cells = [(kind, "".join(text.split())) for kind, text in page.cells if "f1" in kind]
    assert cells == [
        ("f1 found", "0.990found"),
        ("f1 hidden", "0.500hidden"),
        ("f1 found", "0.910found"),
        ("f1 none", cells[3][1]),
    ]
    assert cells[3][1].startswith("n/a")
    assert "spade1 of 2 concepts foundhides: verbsfinds: nouns" in page.text
    assert "relu SpaDE1 of 1 concepts foundfinds: nouns" in page.text


def test_table_holds_the_metrics():
    page = Page(render(make_report(saes=[make_sae()])))
    cells = [text.strip() for kind, text in page.cells if not kind]
    assert cells[-5:] == ["spade", "2.50", "1.23e-02", "0.875", "0.745"]


def test_unlabelled_data_have_no_concepts():
    sae = make_sae(best=(), measures=MEASURES[:2])
    page = Page(render(make_report(concepts=[], saes=[sae], figures=[], samples={})))
    assert [t.strip() for _, t in page.cells][:4] == ["SAE", "L0", "NMSE", "spade"]
    assert "concepts found" not in page.text
    assert page.data["saes"][0]["latents"][0]["concept"] is None


def test_images_are_stored_once():
    uri, other = "data:image/png;base64,AAAA", "data:image/png;base64,BBBB"
    samples = {
        7: Sample([], Picture(uri, (0, 0.25, 1 / 3, 1))),
        9: Sample([], Picture(uri, None)),
        4: Sample([], Picture(other, None)),
    }
    data = Page(render(make_report(samples=samples))).data
    assert data["images"] == [uri, other]
    assert data["samples"] == [[7, [], 0, [0, 0.25, 0.3333, 1]], [9, [], 0, None], [4, [], 1, None]]


def test_unknown_and_infinite_numbers_are_null():
    latent = Latent(3, math.nan, math.inf, [Example(7, math.inf)], None, None, math.nan)
    data = Page(render(make_report(saes=[make_sae(latents=[latent])]))).data
    found = data["saes"][0]["latents"][0]
    assert (found["frequency"], found["mean"], found["mono"], found["examples"]) == (None, None, None, [[0, None]])


@pytest.mark.parametrize("n", [1, 12, 13])
def test_verdicts_of_many_saes_are_folded(n):
    page = Page(render(make_report(saes=[make_sae(f"s{i}") for i in range(n)])))
    assert any(tag == "details" for tag, _ in page.tags) == (n > 12)
