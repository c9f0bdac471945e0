"""The twelve universal parts of speech, and the mapping of English tagsets to them."""

import re
from typing import Literal

UNIVERSAL = {
    "NOUN": "noun",
    "VERB": "verb",
    "ADJ": "adjective",
    "ADV": "adverb",
    "PRON": "pronoun",
    "DET": "determiner",
    "ADP": "adposition",
    "NUM": "numeral",
    "CONJ": "conjunction",
    "PRT": "particle",
    "X": "other",
    ".": "punctuation",
}
"""Readable name of each universal tag."""

Tagset = Literal["brown", "penn", "universal"]

_MARKS = re.compile(r"(-(TL|HL|NC))+$")  # title, headline, cited word

_BROWN = {
    "NOUN": "NN NNS NP NPS NR NRS",
    "VERB": "VB VBD VBG VBN VBZ BE BED BEDZ BEG BEM BEN BER BEZ DO DOD DOZ HV HVD HVG HVN HVZ MD",
    "ADJ": "JJ JJR JJS JJT AP OD",
    "ADV": "RB RBR RBT RN QL QLP WRB WQL *",
    "PRON": "PN PP PPL PPLS PPO PPS PPSS WP WPO WPS",
    "DET": "AT DT DTI DTS DTX ABL ABN ABX EX WDT",
    "ADP": "IN CS",
    "NUM": "CD",
    "CONJ": "CC",
    "PRT": "RP TO",
    "X": "UH NIL",
    ".": ". , : -- ( ) ' '' ``",
}

_PENN = {
    "NOUN": "NN NNS NNP NNPS",
    "VERB": "VB VBD VBG VBN VBP VBZ MD",
    "ADJ": "JJ JJR JJS",
    "ADV": "RB RBR RBS WRB",
    "PRON": "PRP PRP$ WP WP$",
    "DET": "DT PDT EX WDT",
    "ADP": "IN",
    "NUM": "CD",
    "CONJ": "CC",
    "PRT": "RP TO POS",
    "X": "FW LS SYM UH",
    ".": ". , : `` '' ( ) -LRB- -RRB- # $ HYPH NFP",
}


def _inverse(tags_of: dict[str, str]) -> dict[str, str]:
    return {tag: universal for universal, tags in tags_of.items() for tag in tags.split()}


_UNIVERSAL_OF = {"brown": _inverse(_BROWN), "penn": _inverse(_PENN), "universal": {tag: tag for tag in UNIVERSAL}}


def check_tagset(tagset: str) -> None:
    """Check the name of a tagset.

    Raises:
        ValueError: If it is unknown.
    """
    if tagset not in _UNIVERSAL_OF:
        raise ValueError(f"tagset must be one of {list(_UNIVERSAL_OF)}, but is {tagset!r}")


def universal_tag(tag: str, tagset: Tagset) -> str | None:
    """Map a tag to its universal tag; None if the tagset lacks it.

    Brown's tags are simplified first: marks of titles, headlines and cited words (`-TL`, `-HL`, `-NC`), the possessive
    `$` and the `*` of a negated verb are removed. The first tag counts for contractions (`PPSS+BEM`, "I'm") and for
    Penn's ambiguous tags (`VBD|VBN`). Foreign words (`FW-`) are X.

    Where the published mappings of the two corpora differ, both follow Penn's: possessive pronouns are PRON,
    existential "there" and predeterminers ("all the", "such a") are DET, interjections are X. "not" is ADV,
    subordinating conjunctions are ADP, ordinals are ADJ.

    Args:
        tag: A tag of the corpus.
        tagset: Its tagset.

    References:
        Petrov, Das and McDonald (2012), arXiv 1104.2086.

    Example:
        >>> from sae_lightning.data.sources.tags import universal_tag
        >>> universal_tag("PPSS+BEM", "brown"), universal_tag("VBD|VBN", "penn"), universal_tag("?", "penn")
        ('PRON', 'VERB', None)
    """
    if tagset == "brown":
        if tag.startswith("FW-"):
            return "X"
        tag = _MARKS.sub("", tag.split("+", maxsplit=1)[0])
        if tag != "*":
            tag = tag.rstrip("*$")
    elif tagset == "penn":
        tag = tag.split("|")[0]
    return _UNIVERSAL_OF[tagset].get(tag)
