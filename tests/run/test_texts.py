"""Texts of files: what is read, and what an error says."""

import random

import pytest

from sae_lightning.run.files import EncodingError, decode_text, read_text


def test_a_text_is_read_without_mark_and_with_one_kind_of_line_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffé\r\n日\n".encode())
    assert read_text(path) == "é\n日\n"
    assert decode_text("é".encode("utf-16"), "a", "utf-16") == "é"


def test_the_place_is_that_of_the_first_wrong_byte_in_the_file():
    """Against decoding ever longer prefixes, on texts that are damaged at random."""
    rng, n_damaged = random.Random(0), 0
    for _ in range(200):
        data = bytearray("".join(rng.choices("ab\né日🙂", k=30)).encode())
        data[rng.randrange(len(data))] ^= rng.choice([0x80, 0x40, 0xFF])
        whole = bytes(data)
        try:
            whole.decode()
        except UnicodeDecodeError:
            n_damaged += 1
        else:
            continue
        # the longest begin that is a text, and what would complete it is not there
        place = max(n for n in range(len(whole)) if begins_text(whole[:n]))
        cut = max((i + 1 for i, byte in enumerate(whole[:place]) if byte == 0x0A and rng.random() < 0.5), default=0)
        line = whole[:place].count(b"\n") + 1
        with pytest.raises(
            EncodingError, match=rf"^'a' must be UTF-8, but its byte {place} \(in line {line}\) is not$"
        ):
            decode_text(whole[cut:], "a", begin=cut, line=whole[:cut].count(b"\n") + 1)
    assert n_damaged > 100


def begins_text(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_other_encodings_are_named():
    with pytest.raises(EncodingError, match=r"^'a' must be ASCII, but its byte 1 \(in line 1\) is not$"):
        decode_text(b"a\xe9", "a", "us-ascii")


def test_a_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")
