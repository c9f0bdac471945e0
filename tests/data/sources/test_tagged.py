import os
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import nltk.corpus
import nltk.data
import pytest

from sae_lightning.data.sources import TaggedCorpus
from sae_lightning.data.sources.tags import UNIVERSAL, universal_tag
from tests.helpers.language import has_brown

needs_brown = pytest.mark.skipif(not has_brown(), reason="needs the Brown corpus in a folder of NLTK_DATA")

NAMES = list(UNIVERSAL.values())
NUMBER_OF: dict[str | None, int] = {tag: number for number, tag in enumerate(UNIVERSAL)}
LINES = {
    "ca01": "The/at man/nn isn't/bez* at/in home/nr-hl ./.\n\n\nI'm/ppss+bem here/rb ,/, not/* Tom's/np$ !/.\n",
    "cb01": "\n``/`` Ja/fw-uh ''/'' --/-- it/pps can't/md* be/be ?/.\n",
}
EXPECTED = [
    ("ca01", "The man isn't at home .", [5, 0, 1, 6, 0, 11]),
    ("ca01", "I'm here , not Tom's !", [4, 3, 11, 3, 0, 11]),
    ("cb01", "`` Ja '' -- it can't be ?", [11, 10, 11, 11, 4, 1, 1, 11]),
]
TREE = """
( (S (NP-SBJ (DT The) (NNP Dow) (POS 's)) (VP (MD will) (VP (VB rise) (NP (-NONE- *T*-1)) (-LRB- -LRB-)
  (ADVP (RB n't)) (PRP$ its) (TO to) (VBD|VBN gained))) (. .)) )
( (S (-NONE- *)) )
"""


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A folder of nltk data with three sentences in the form of Brown, and two in that of the Penn Treebank."""
    brown = tmp_path / "corpora" / "brown"
    brown.mkdir(parents=True)
    for name, text in LINES.items():
        (brown / name).write_text(text)
    (brown / "cats.txt").write_text("ca01 news\ncb01 editorial\n")
    treebank = tmp_path / "corpora" / "treebank" / "combined"
    treebank.mkdir(parents=True)
    (treebank / "wsj_0001.mrg").write_text(TREE)
    return str(tmp_path)


# -- tags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("universal", "tags"),
    [
        ("NOUN", "NN NN-TL NNS$-TL-HL NP$ NPS NR NR$-TL NN+BEZ NP+HVZ-NC NN-TL-NC NR+MD NRS"),
        ("VERB", "VB VBD-HL VBG+TO BE BEDZ* BEM DO* DOD*-TL HVZ MD MD* MD+HV VB+PPO BER*-NC DO+PPSS"),
        ("ADJ", "JJ JJ-TL-HL JJR+CS JJT JJ$-TL AP AP$ OD-TL"),
        ("ADV", "RB RB$ RBR+CS * *-HL *-TL QL QLP WRB WRB+DOD* WQL-TL RN"),
        ("PRON", "PPSS PPSS+BEM PPSS+BEZ* PPS+MD PP$ PP$$ PPL PPLS PPO-NC PN PN$ WP$ WPO WPS+HVZ PPSS+BER-N"),
        ("DET", "AT AT-TL-HL DT DT$ DT+BEZ-NC DTI DTX ABL ABN-TL ABX EX EX+BEZ WDT WDT+BER+PP"),
        ("ADP", "IN IN-TL-HL IN+PPO CS CS-NC"),
        ("NUM", "CD CD$ CD-TL-HL"),
        ("CONJ", "CC CC-TL"),
        ("PRT", "RP RP+IN TO TO-HL TO+VB"),
        ("X", "FW-NN FW-AT+NN-TL FW-*-TL FW-IN+AT-T FW-PP$-NC UH UH-TL NIL"),
        (".", ". .-HL , ,-TL : :-HL -- ---HL ( (-HL ) )-HL ' '' ``"),
    ],
)
def test_brown_tags(universal: str, tags: str) -> None:
    assert {tag: universal_tag(tag, "brown") for tag in tags.split()} == dict.fromkeys(tags.split(), universal)


def test_penn_tags() -> None:
    expected = {"NNPS": "NOUN", "VBP": "VERB", "VBD|VBN": "VERB", "PRP$": "PRON", "WP$": "PRON", "EX": "DET"}
    expected |= {"PDT": "DET", "POS": "PRT", "FW": "X", "$": ".", "-LRB-": ".", "WRB": "ADV", "CD": "NUM", "IN": "ADP"}
    assert {tag: universal_tag(tag, "penn") for tag in expected} == expected


def test_the_first_of_several_tags_decides() -> None:
    """Penn's annotators left a choice in some places; Brown writes words that are one with a tag each."""
    choices = {"JJ|NN": "ADJ", "NN|JJ": "NOUN", "VBG|NN": "VERB", "NN|VBG": "NOUN", "IN|RB": "ADP", "RB|IN": "ADV"}
    choices |= {"RB|RP|IN": "ADV", "PRP$|NN": "PRON", "NN|?": "NOUN"}
    assert {tag: universal_tag(tag, "penn") for tag in choices} == choices
    fused = {"NN+BEZ": "NOUN", "PPSS+BEM": "PRON", "VB+PPO": "VERB", "WRB+DOD*": "ADV", "JJR+CS": "ADJ"}
    assert {tag: universal_tag(tag, "brown") for tag in fused} == fused
    for tag, tagset in (("?|NN", "penn"), ("|NN", "penn"), ("NN|VBG", "brown"), ("NN+VBG", "penn"), ("?+NN", "brown")):
        assert universal_tag(tag, tagset) is None


@pytest.mark.parametrize(
    ("tag", "tagset"),
    [
        ("NNP", "brown"),
        ("", "brown"),
        ("$", "brown"),
        ("nn", "brown"),
        ("AT", "penn"),
        ("", "penn"),
        ("NN", "universal"),
    ],
)
def test_unknown_tags(tag: str, tagset: Any) -> None:
    assert universal_tag(tag, tagset) is None


# -- small corpora --------------------------------------------------------------------------------------------------


def test_sentences(root: str) -> None:
    source = TaggedCorpus(root=root)
    assert source.concept_names == NAMES
    assert len(source) == 3
    for i, (document, text, concepts) in enumerate(EXPECTED):
        example = source[i]
        assert (example.document, example.text, list(example.concepts)) == (document, text, concepts)
        assert [text[a:b] for a, b in example.spans] == text.split()
        assert example.concept == -1
        assert source[i] == example == source[i - 3]
    for index in (3, -4):
        with pytest.raises(IndexError):
            source[index]


def test_a_pickled_source_is_the_same(root: str) -> None:
    source = TaggedCorpus(root=root)
    copied = pickle.loads(pickle.dumps(source))
    assert [copied[i] for i in range(3)] == [source[i] for i in range(3)]
    assert copied.concept_names == source.concept_names


def test_concepts_of_several_tags(root: str) -> None:
    source = TaggedCorpus(root=root, concepts={"names": ["NOUN", "PRON"], "acts": ["VERB"]})
    assert source.concept_names == ["names", "acts"]
    assert source[1].concepts == (0, -1, -1, -1, 0, -1)
    assert source[0].concepts == (-1, 0, 1, -1, 0, -1)


def test_categories(root: str) -> None:
    source = TaggedCorpus(root=root, categories=["editorial"])
    assert [source[i].text for i in range(len(source))] == [EXPECTED[2][1]]


def test_penn_without_traces(root: str) -> None:
    source = TaggedCorpus("treebank", root, tagset="penn")
    assert len(source) == 1
    assert source[0].text == "The Dow 's will rise -LRB- n't its to gained ."
    named = [NAMES[c] for c in source[0].concepts]
    assert named[:5] == ["determiner", "noun", "particle", "verb", "verb"]
    assert named[5:] == ["punctuation", "adverb", "pronoun", "particle", "verb", "punctuation"]


def test_a_penn_sentence_with_tags_that_leave_a_choice(root: str) -> None:
    path = Path(root, "corpora", "treebank", "combined", "wsj_0001.mrg")
    path.write_text("( (S (NP (JJ|NN chief) (NN|JJ executive)) (VBG|NN trading) (RB|IN about) (-NONE- 0) (IN|RB on)))")
    (source,) = [TaggedCorpus("treebank", root, tagset="penn")]
    assert source[0].text == "chief executive trading about on"
    assert [NAMES[c] for c in source[0].concepts] == ["adjective", "noun", "verb", "adverb", "adposition"]


def test_universal_tags_of_a_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "corpora" / "brown"
    folder.mkdir(parents=True)
    (folder / "ca01").write_text("Dogs/NOUN bark/VERB ./.\n")
    (folder / "cats.txt").write_text("ca01 news\n")
    assert TaggedCorpus(root=str(tmp_path), tagset="universal")[0].concepts == (0, 1, 11)


def test_root_is_read_whatever_nltk_has_open(root: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "corpora" / "brown").mkdir(parents=True)
    (other / "corpora" / "brown" / "ca01").write_text("Other/jj\n")
    (other / "corpora" / "brown" / "cats.txt").write_text("ca01 news\n")
    paths = list(nltk.data.path)
    assert [len(TaggedCorpus(root=folder)) for folder in (root, str(other), root)] == [3, 1, 3]
    assert nltk.data.path == paths


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corpus": "nonesuch"}, "corpus must name one of those in nltk.corpus, but is 'nonesuch'"),
        ({"corpus": "reader"}, "corpus must name one of those in nltk.corpus, but is 'reader'"),
        ({"tagset": "ptb"}, r"tagset must be one of \['brown', 'penn', 'universal'\], but is 'ptb'"),
        ({"tagset": "penn"}, "'brown', but 'penn' does not know 'AT' in 'ca01'|'brown'.* know 'AT' in 'ca01'"),
        ({"corpus": "treebank"}, "corpus 'treebank', but 'brown' does not know 'NNP' in 'wsj_0001.mrg'"),
        (
            {"categories": ["sports"]},
            r"categories must name some of .*'brown', \['editorial', 'news'\], but is \['spor",
        ),
        ({"categories": []}, r"categories must name some of .*, but is \[\]"),
        ({"corpus": "treebank", "tagset": "penn", "categories": ["x"]}, "categories must be None for .*'treebank'"),
        ({"concepts": {}}, "concepts must name at least one concept"),
        ({"concepts": {"noun": []}}, r"give every concept a list of tags, but give 'noun' \[\]"),
        ({"concepts": {"noun": "NOUN"}}, "give every concept a list of tags, but give 'noun' 'NOUN'"),
        ({"concepts": {"noun": ["NN"]}}, "must be made of the tags .*'NOUN', .*, but 'noun' holds 'NN'"),
        ({"concepts": {"a": ["NOUN"], "b": ["NOUN"]}}, "concepts must share no tag, but 'NOUN' belongs to two"),
    ],
)
def test_bad_arguments(root: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaggedCorpus(**{"root": root, **arguments})


def test_a_missing_corpus(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"'conll2000' is in none of .*{root}.* NLTK_DATA .*corpora/conll2000"):
        TaggedCorpus("conll2000", root, tagset="penn")
    monkeypatch.setattr(nltk.data, "path", ["/nowhere"])
    with pytest.raises(ValueError, match=r"'conll2000' is in none of \['/nowhere'\].* NLTK_DATA"):
        TaggedCorpus("conll2000")


def test_a_corpus_without_tags(tmp_path: Path) -> None:
    folder = tmp_path / "corpora" / "gutenberg"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("No tags.")
    with pytest.raises(ValueError, match="corpus must be a tagged one, but 'gutenberg' has no tags"):
        TaggedCorpus("gutenberg", str(tmp_path))


def test_a_word_without_a_tag(root: str) -> None:
    Path(root, "corpora", "brown", "cb01").write_text("fine/jj word\n")
    with pytest.raises(ValueError, match="'brown' does not know '' in 'cb01'"):
        TaggedCorpus(root=root)


def test_a_corpus_without_sentences(root: str) -> None:
    for name in LINES:
        Path(root, "corpora", "brown", name).write_text("\n")
    with pytest.raises(ValueError, match="corpus must hold at least one sentence, but 'brown' holds none"):
        TaggedCorpus(root=root)


def test_bytes_that_are_no_text(root: str) -> None:
    path = Path(root, "corpora", "brown", "cb01")
    path.write_bytes(b"fine/jj ./.\n" * 2000 + b"fine/jj \xff\xfe/nn\n")
    message = f"'cb01' of 'brown' is not: '{path}' must be ASCII, but its byte 24008 \\(in line 2001\\) is not"
    with pytest.raises(ValueError, match=f"corpus must be readable, but {message}"):
        TaggedCorpus(root=root)
    path.with_name("cats.txt").write_bytes(b"ca01 news\ncb01 n\xe9ws\n")
    with pytest.raises(ValueError, match=r"'cats.txt' of 'brown' is not: '.*' must be ASCII, but its byte 16 "):
        TaggedCorpus(root=root, categories=["news"])


# -- the corpus itself ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brown() -> TaggedCorpus:
    return TaggedCorpus()


@needs_brown
def test_brown_against_nltk(brown: TaggedCorpus) -> None:
    reader = nltk.corpus.brown
    tags = set()
    i = 0
    for document in reader.fileids():
        for sentence in reader.tagged_sents(fileids=[document]):
            example = brown[i]
            assert example.document == document
            assert [example.text[a:b] for a, b in example.spans] == [word for word, _ in sentence]
            assert example.concepts == tuple(NUMBER_OF[universal_tag(tag, "brown")] for _, tag in sentence)
            tags |= {tag for _, tag in sentence}
            i += 1
    assert len(brown) == i == 57_340
    assert len(tags) == 472  # and none of them is unknown


@needs_brown
def test_brown_holds_every_concept(brown: TaggedCorpus) -> None:
    count = Counter(concept for i in range(len(brown)) for concept in brown[i].concepts)
    assert sum(count.values()) == 1_161_192
    counted = {name: count[i] for i, name in enumerate(NAMES)}
    # of the raw files, by the begin of each tag
    kinds = {"conjunction": "cc", "adposition": "in|cs", "numeral": "cd", "punctuation": r"[^a-z*]"}
    raw = Counter(
        token.rpartition("/")[2]
        for document in nltk.corpus.brown.fileids()
        for token in nltk.corpus.brown.raw(document).split()
    )
    for name, begin in kinds.items():
        assert counted[name] == sum(n for tag, n in raw.items() if re.match(begin, tag)), name
    assert min(counted.values()) > 2_000


@needs_brown
def test_brown_by_category_and_root(brown: TaggedCorpus) -> None:
    root = os.path.dirname(os.path.dirname(nltk.data.find("corpora/brown")))
    news = TaggedCorpus(root=root, categories=["news", "humor"])
    assert len(news) == len(nltk.corpus.brown.sents(categories=["news", "humor"]))
    assert {news[i].document for i in range(len(news))} == set(nltk.corpus.brown.fileids(categories=["news", "humor"]))
    assert news[0] == brown[0]
