"""Every kind of text: the same documents, an exact state, disjoint shares, and sentences for what cannot be read."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import DiskError, UsageError
from harvest.config import HarvestSettings
from harvest.text.documents import open_documents

TEXTS = [f"document {n}\nsecond line {n}" for n in range(23)]


def write(folder: Path, kind: str) -> str:
    rows = [{"text": text, "ids": [1, 2, n]} for n, text in enumerate(TEXTS)]
    if kind == "txt":
        for number, text in enumerate(TEXTS):
            (folder / f"{number:03d}.txt").write_text(text)
        return str(folder / "*.txt")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if kind == "jsonl":
        (folder / "a.jsonl").write_text(lines)
    elif kind == "jsonl.gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", row_group_size=5)
    return str(folder / f"a.{kind}")


@pytest.fixture(params=["txt", "jsonl", "jsonl.gz", "parquet"])
def dataset(request, tmp_path) -> str:
    return write(tmp_path, request.param)


def read(documents, state=None):
    return list(documents.read(state))


def test_every_document_once_in_order_and_none_eaten(dataset):
    documents = open_documents(HarvestSettings(dataset=dataset))
    assert [text for text, _ in read(documents)] == TEXTS
    assert [text for text, _ in read(documents)] == TEXTS


@pytest.mark.parametrize("after", [1, 4, 5, 22])
def test_a_state_is_exact_and_survives_json(dataset, after):
    settings = HarvestSettings(dataset=dataset)
    state = read(open_documents(settings))[after - 1][1]
    rest = read(open_documents(settings), json.loads(json.dumps(state)))
    assert [text for text, _ in rest] == TEXTS[after:]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_documents_and_each_has_an_exact_state(dataset, world):
    settings, together = HarvestSettings(dataset=dataset), []
    for rank in range(world):
        own = read(open_documents(settings, rank=rank, world=world))
        rest = read(open_documents(settings, rank=rank, world=world), json.loads(json.dumps(own[2][1])))
        assert [text for text, _ in rest] == [text for text, _ in own[3:]]
        together += [text for text, _ in own]
    assert sorted(together) == sorted(TEXTS)


def test_ready_token_ids(tmp_path):
    documents = open_documents(HarvestSettings(dataset=write(tmp_path, "parquet"), tokens_column="ids"))
    assert [ids for ids, _ in read(documents)] == [[1, 2, n] for n in range(len(TEXTS))]


@pytest.mark.parametrize(("by", "expected"), [("line", 2), ("paragraph", 1), ("file", 1)])
def test_what_a_document_is_in_a_txt_file(tmp_path, by, expected):
    (tmp_path / "a.txt").write_text("one\ntwo")
    assert len(read(open_documents(HarvestSettings(dataset=str(tmp_path / "a.txt"), txt_document=by)))) == expected


def test_the_identity_is_the_bytes(tmp_path):
    name = write(tmp_path, "jsonl")
    before = open_documents(HarvestSettings(dataset=name)).identity()
    assert before["kind"] == "files"
    Path(name).write_text(Path(name).read_text().replace("document 3", "document 4"))
    assert open_documents(HarvestSettings(dataset=name)).identity()["hash"] != before["hash"]


def test_a_missing_column_names_those_there_are(tmp_path):
    documents = open_documents(HarvestSettings(dataset=write(tmp_path, "jsonl"), text_column="body"))
    with pytest.raises(UsageError, match="it has: text, ids"):
        read(documents)


def test_a_column_that_is_no_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": 5}\n')
    with pytest.raises(UsageError, match="holds int"):
        read(open_documents(HarvestSettings(dataset=str(path))))


@pytest.mark.parametrize("name", ["./nothing.jsonl", "nothing/*.txt", "/nowhere/at/all"])
def test_files_that_are_not_there(name):
    with pytest.raises(UsageError, match="No text at"):
        open_documents(HarvestSettings(dataset=name))


def test_files_of_two_kinds_are_refused(tmp_path):
    write(tmp_path, "jsonl")
    write(tmp_path, "parquet")
    with pytest.raises(UsageError, match="one kind"):
        open_documents(HarvestSettings(dataset=str(tmp_path)))


def test_a_file_of_no_known_kind_is_named(tmp_path):
    (tmp_path / "notes.md").write_text("text")
    with pytest.raises(UsageError, match=r"'notes\.md' is no kind of text"):
        open_documents(HarvestSettings(dataset=str(tmp_path / "notes.md")))


def test_a_hub_name_without_a_network_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DiskError, match="cannot be reached"):
        open_documents(HarvestSettings(dataset="someone/some-text"))
