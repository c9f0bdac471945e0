"""One changed bit in a sealed file is found: codes, and results."""

import hashlib
import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save

from sae_lightning import load_codes, load_results
from sae_lightning.run.seal import KEY, UNSEALED, check_seal, seal_json, unseal_json, write_sealed
from tests.helpers.runs import TINY, last, run_cli

READERS = {"codes.safetensors": load_codes, "results.json": load_results}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small file of each kind."""
    folder = tmp_path_factory.mktemp("sealed")
    parts = {
        "values": torch.tensor([1.0, -2.0, 0.5]),
        "col_indices": torch.tensor([1, 0, 3]),
        "crow_indices": torch.tensor([0, 1, 3]),
        "size": torch.tensor([2, 4]),
        "concepts": torch.tensor([0, -1]),
    }
    write_codes(folder / "codes.safetensors", parts)
    with (folder / "results.json").open("wb") as file:
        write_sealed(file, json.dumps({KEY: UNSEALED, "model": {}, "fit": {"metrics": {"val/l0": 1.5}}}).encode())
    return folder


def write_codes(path, parts, metadata=None):
    content = save(parts, {KEY: UNSEALED} if metadata is None else metadata)
    with path.open("wb") as file:
        write_sealed(file, content) if metadata is None else file.write(content)


@pytest.mark.parametrize("name", READERS)
def test_what_was_written_is_read(name, folder):
    found = READERS[name](folder / name)
    if name == "results.json":
        assert found == {"model": {}, "fit": {"metrics": {"val/l0": 1.5}}}
    else:
        codes, concepts = found
        assert codes.to_dense().tolist() == [[0, 1, 0, 0], [-2, 0, 0, 0.5]]
        assert concepts.tolist() == [0, -1]
        assert load_file(folder / name)["size"].tolist() == [2, 4]  # it is still what any reader knows


@pytest.mark.parametrize("name", READERS)
def test_every_flipped_bit_is_found(name, folder, tmp_path):
    whole = (folder / name).read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(ValueError, match=f"{name}' cannot be read"):
            READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_every_truncation_and_addition_is_found(name, folder, tmp_path):
    whole = (folder / name).read_bytes()
    for length in range(len(whole)):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"{name}' cannot be read"):
            READERS[name](tmp_path / name)
    (tmp_path / name).write_bytes(whole + b"\n")
    with pytest.raises(ValueError, match=f"{name}' cannot be read"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_random_bytes_and_folders(name, tmp_path):
    source = random.Random(0)
    for size in (0, 1, 7, 8, 9, 100, 3000):
        (tmp_path / name).write_bytes(source.randbytes(size))
        with pytest.raises(ValueError, match=f"{name}' cannot be read"):
            READERS[name](tmp_path / name)
    (tmp_path / "folder" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=f"{name}' cannot be read"):
        READERS[name](tmp_path / "folder" / name)
    with pytest.raises(FileNotFoundError, match=name):
        READERS[name](tmp_path / "none" / name)


def test_results_are_read_by_the_folder_of_their_run(folder, tmp_path):
    assert load_results(folder) == load_results(folder / "results.json")
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        load_results(tmp_path)


def test_the_checksum_is_that_of_the_content(folder):
    """With zeros in its place: anybody can compute it."""
    whole = (folder / "results.json").read_bytes()
    seal = json.loads(whole)[KEY]
    assert hashlib.sha256(whole.replace(seal.encode(), UNSEALED.encode())).hexdigest() == seal


def test_content_without_a_place_for_the_seal_is_not_written(tmp_path):
    with (tmp_path / "x").open("wb") as file, pytest.raises(ValueError, match="it holds no checksum"):
        write_sealed(file, b"{}")
    (tmp_path / "x").write_bytes(b"{}")
    with pytest.raises(ValueError, match="it holds no checksum: it is damaged, or was written by an earlier version"):
        check_seal(tmp_path / "x")


def changed_parts():
    whole = {
        "values": torch.tensor([1.0, -2.0, 0.5]),
        "col_indices": torch.tensor([1, 0, 3]),
        "crow_indices": torch.tensor([0, 1, 3]),
        "size": torch.tensor([2, 4]),
        "concepts": torch.tensor([0, -1]),
    }
    for name, value in whole.items():
        yield f"no {name}", {key: other for key, other in whole.items() if key != name}
        yield f"{name} of two dimensions", {**whole, name: value[:, None]} if name != "concepts" else {}
        yield f"{name} as bool", {**whole, name: value.bool()} if name != "concepts" else {}
        yield f"{name} without the last", {**whole, name: value[:-1].clone()}
    yield "one tensor more", {**whole, "more": torch.zeros(1)}
    yield "NaN", {**whole, "values": torch.tensor([1.0, torch.nan, 0.5])}
    yield "infinite", {**whole, "values": torch.tensor([1.0, torch.inf, 0.5])}
    yield "latent out of range", {**whole, "col_indices": torch.tensor([1, 0, 4])}
    yield "negative latent", {**whole, "col_indices": torch.tensor([1, -1, 3])}
    yield "falling rows", {**whole, "crow_indices": torch.tensor([0, 3, 1])}
    yield "negative size", {**whole, "size": torch.tensor([2, -4])}
    yield "huge size", {**whole, "size": torch.tensor([2**62, 4])}


@pytest.mark.parametrize(
    ("what", "parts"), list(changed_parts()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_codes_that_cannot_be_are_refused_whatever_their_checksum(what, parts, tmp_path):
    write_codes(tmp_path / "codes.safetensors", parts)
    with pytest.raises(ValueError, match=r"codes '.*codes.safetensors' cannot be read"):
        load_codes(tmp_path / "codes.safetensors")
    check_seal(tmp_path / "codes.safetensors")


def test_codes_of_an_earlier_version_are_refused_in_words(folder, tmp_path):
    write_codes(tmp_path / "codes.safetensors", load_file(folder / "codes.safetensors"), metadata={})
    with pytest.raises(ValueError, match="it holds no checksum: it is damaged, or was written by an earlier version"):
        load_codes(tmp_path / "codes.safetensors")


def test_damaged_results_are_kept_aside(tiny, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(tiny, run_dir, symlinks=True)
    damaged = (run_dir / "results.json").read_text().replace('"seed": 0', '"seed": 1')
    (run_dir / "results.json").write_text(damaged)
    outcome = run_cli("validate", *TINY, "--ckpt_path", last(run_dir))
    assert outcome.code == 0, outcome.err
    assert (run_dir / "results.damaged.json").read_text() == damaged
    assert load_results(run_dir / "results.json").keys() == {"model", "validate"}
    assert [text for text in outcome.warnings if "results.damaged.json" in text]


CONTENT = {"a": [1, 2.5, -0.0, None], "\u00fc": {"b": "x\ud800\n", "c": 1e-300}, "d": True}


def test_what_is_sealed_as_json_comes_back():
    assert unseal_json(seal_json(CONTENT)) == CONTENT
    assert json.loads(seal_json(CONTENT)) == {KEY: json.loads(seal_json(CONTENT))[KEY], **CONTENT}


def test_a_file_with_two_seals_is_refused():
    whole = seal_json(CONTENT)
    seal = json.dumps({KEY: "0" * 64})[1:-1].encode()
    with pytest.raises(ValueError, match="it holds no checksum"):
        unseal_json(whole[:-2] + b", " + seal + b"}")


def test_every_flipped_bit_of_sealed_json_is_found():
    whole = seal_json(CONTENT)
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="checksum"):
            unseal_json(bytes(changed))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: b" " + data,
        lambda data: data.replace(b'"d": true', b'"d":  true'),
        lambda data: data.replace(b"2.5", b"2.50"),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.decode().encode("utf-16"),
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: b"null",
        lambda data: b"[" * 100_000,
    ],
)
def test_other_bytes_are_no_sealed_json(change):
    with pytest.raises(ValueError, match="checksum"):
        unseal_json(change(seal_json(CONTENT)))


@pytest.mark.parametrize(
    "content", ["[%s]", "%s", "{%s", "{%s, x}", '{%s, "x": ' + "[" * 100_000, "[{%s}]", '{%s, "x": "\xff"}']
)
def test_forged_files_that_are_no_json_of_names_are_refused(content):
    text = (content % f'"{KEY}": "{UNSEALED}"').encode("latin-1")
    sealed = text.replace(UNSEALED.encode(), hashlib.sha256(text).hexdigest().encode())
    with pytest.raises(ValueError, match="it is not sealed JSON"):
        unseal_json(sealed)


def test_numbers_that_json_cannot_hold_are_not_sealed():
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            seal_json({"x": value})
