"""Pages: what a report is made of, texts that would break it, and a parser that reads what came out."""

import json
import math
from html.parser import HTMLParser

from sae_lightning.report import Concept, Detector, Example, Figure, Latent, Measure, Report, SAEReport, Sample, Text

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u2028{{data}} <!--"


class Page(HTMLParser):
    """Tags with their attributes, and the text of each script, title and cell."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.cells, self.words = [], [], [], []
        self._open = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag in ("td", "th"):
            self.cells.append([dict(attrs).get("class") or "", ""])
        self._open = tag if tag == "script" else None

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, text):
        if self._open == "script":
            self.scripts[-1] += text
            return
        self.words.append(text)
        if self.cells:
            self.cells[-1][1] += text

    @property
    def data(self):
        return json.loads(self.scripts[0])

    @property
    def text(self):
        return " ".join("".join(self.words).split())


MEASURES = [
    Measure("L0", "How many fire", "2.50"),
    Measure("NMSE", "Error", "1.23e-02"),
    Measure("monosem.", "One concept only", "0.875"),
]


def make_sae(name="spade", best=(0.99, 0.5), **changes):
    detectors = [[Detector(3, best[0], 1.0, best[0])], []] if best else []
    examples = [Example(7, 1.5), Example(9, 0.25)]
    latent = (
        Latent(3, 0.02, 0.8, examples, 0, detectors[0][0], 0.9) if best else Latent(3, 1.0, 0.8, [], None, None, None)
    )
    sae = SAEReport(name, "SpaDE", "#D55E00", 16, list(MEASURES), list(best), detectors, [latent])
    return sae._replace(**changes)


def make_report(**changes):
    report = Report(
        title="runs/first",
        facts=[("Seed", "0")],
        concepts=[Concept("nouns", "#332288"), Concept("verbs", "#CC6677")],
        found_above=0.9,
        saes=[make_sae(), make_sae("relu", (0.91, math.nan))],
        samples={7: Sample([0], Text("the ", "cat", " sat")), 9: Sample([1], Text("a ", "dog", ""))},
        figures=[Figure("concept f1", "data:image/png;base64,AAAA")],
        notes=["some are left out"],
    )
    return report._replace(**changes)
