"""Files of every kind, sound and damaged, compared with the library's own readers; a bad row is named in its order."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from harvest.text.readers import read_arrow, read_json, read_parquet, text_reader
from harvest.text.rows import BadRowError

LINES = [json.dumps({"text": f"row {n}"}) for n in range(30)]


def rows(reader, path, start=None):
    return [row for _, row, _ in reader(path, start)]


def damaged(reader, path):
    """The rows before the damage, and the message about it."""
    found = rows(reader, path)
    assert isinstance(found[-1], BadRowError)
    assert found[-1].ends_file
    return len(found) - 1, found[-1].why


@pytest.mark.parametrize("document", ["line", "paragraph", "document"])
@pytest.mark.parametrize(
    "text", ["one\ntwo\n\nthree\r\n\r\nfour\n\n\nfive\n", "no end", "\n\n\n", "é\n\nü" * 40, "a\n\n\n\nb\n"]
)
def test_text_files_are_divided_as_the_datasets_library_divides_them(tmp_path, document, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    plain = load_dataset("text", data_files=str(path), split="train", streaming=True, sample_by=document)
    reader = text_reader("file" if document == "document" else document, None)
    assert rows(reader, path) == list(plain)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "txt", "parquet", "arrow"])
@pytest.mark.parametrize("after", [0, 1, 12, 29])
def test_every_reader_goes_on_from_any_row(tmp_path, kind, after):
    table = [json.loads(line) for line in LINES]
    path = tmp_path / f"a.{kind}"
    reader = {"txt": text_reader("line", None), "parquet": read_parquet, "arrow": read_arrow}.get(kind, read_json)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(table), path, row_group_size=7)
    elif kind == "arrow":
        Dataset.from_list(table).save_to_disk(str(tmp_path / "saved"))
        path = next((tmp_path / "saved").glob("*.arrow"))
    else:
        data = "\n".join(LINES).encode()
        path.write_bytes(gzip.compress(data) if kind == "jsonl.gz" else data)
    everything = list(reader(path, None))
    assert [number for number, _, _ in everything] == list(range(1, 31))
    position = everything[after][2]
    assert list(reader(path, json.loads(json.dumps(position)))) == everything[after + 1 :]


def test_one_list_in_a_json_file_is_its_rows(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a"}, {"text": "b"}], indent=1))
    assert rows(read_json, path) == [{"text": "a"}, {"text": "b"}]
    assert rows(read_json, path, {"row": 1, "offset": 0}) == [{"text": "b"}]
    path.write_text(LINES[0] + "\n" + LINES[1])
    assert len(rows(read_json, path)) == 2


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES[0].encode())
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfwords")
    assert rows(read_json, tmp_path / "a.jsonl") == [{"text": "row 0"}]
    for document in ("file", "line", "paragraph"):
        assert rows(text_reader(document, None), tmp_path / "a.txt") == [{"text": "words"}]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": "caf\xe9"}', "not UTF-8"),
        (b'{"text": ', "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"text": ' + b"7" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_line_that_is_no_row_is_marked_and_the_next_is_read(tmp_path, line, why):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES[0].encode() + b"\n" + line + b"\n\n" + LINES[1].encode() + b"\n")
    first, bad, last = rows(read_json, path)
    assert (first, last) == ({"text": "row 0"}, {"text": "row 1"})
    assert isinstance(bad, BadRowError)
    assert why in bad.why
    assert [number for number, _, _ in read_json(path, None)] == [1, 2, 4]


def test_a_latin_1_line_is_marked_and_a_latin_1_file_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ncaf\xe9\nthree")
    first, bad, third = rows(text_reader("line", None), path)
    assert (first["text"], third["text"]) == ("one", "three")
    assert "iconv" in bad.remedy
    for document in ("file", "paragraph"):
        assert damaged(text_reader(document, None), path) == (0, "it is not UTF-8")


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_utf_16_is_named(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(LINES[0].encode("utf-16"))
    for reader in [read_json] if kind == "jsonl" else [text_reader(by, None) for by in ("file", "line", "paragraph")]:
        assert damaged(reader, path) == (0, "the file is UTF-16")


def many_lines(path: Path) -> bytes:
    """Lines that do not compress, so that a cut file still contains some."""
    import random

    dice = random.Random(0)
    lines = (json.dumps({"text": "".join(dice.choices("abcdefghij", k=60))}) for _ in range(2000))
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["jsonl.gz", "txt.gz"])
def test_a_cut_or_damaged_gz_is_named_after_its_sound_rows(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    data = many_lines(path)
    reader = read_json if kind == "jsonl.gz" else text_reader("line", None)
    path.write_bytes(data[: len(data) // 2])
    sound, why = damaged(reader, path)
    assert sound > 100
    assert "ends early" in why
    path.write_bytes(data[:5000] + bytes(500) + data[5500:])
    assert "damaged" in damaged(reader, path)[1]
    path.write_bytes(b"no gzip at all")
    assert damaged(reader, path)[0] == 0


def test_a_damaged_table_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a" * 100] * 500}), path)
    path.write_bytes(path.read_bytes()[:-9])
    assert "cannot be read" in damaged(read_parquet, path)[1]
    (tmp_path / "a.arrow").write_bytes(b"")
    assert "cannot be read" in damaged(read_arrow, tmp_path / "a.arrow")[1]


def test_a_file_that_was_removed_is_named(tmp_path):
    for reader, name in ((read_json, "a.jsonl"), (text_reader("file", None), "a.txt")):
        assert "No such file" in damaged(reader, tmp_path / name)[1]
