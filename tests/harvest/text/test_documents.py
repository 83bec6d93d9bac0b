"""Every kind of text: the same documents, an exact state, disjoint shares, and one sentence for what cannot be read."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import DiskError, MismatchError, UsageError
from harvest.config import HarvestSettings
from harvest.text.documents import open_documents
from harvest.text.rows import TextAccess

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


def test_every_document_is_read_once_and_in_order(dataset):
    documents = open_documents(HarvestSettings(dataset=dataset))
    assert [text for text, _ in read(documents)] == TEXTS
    assert [text for text, _ in read(documents)] == TEXTS


@pytest.mark.parametrize("after", [1, 4, 5, 22])
def test_a_state_is_exact_after_a_round_trip_through_json(dataset, after):
    settings = HarvestSettings(dataset=dataset)
    state = read(open_documents(settings))[after - 1][1]
    rest = read(open_documents(settings), json.loads(json.dumps(state)))
    assert [text for text, _ in rest] == TEXTS[after:]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_documents_and_each_has_an_exact_state(dataset, world):
    settings = HarvestSettings(dataset=dataset)
    texts = []
    for rank in range(world):
        own = read(open_documents(settings, TextAccess(rank=rank, world=world)))
        rest = read(open_documents(settings, TextAccess(rank=rank, world=world)), json.loads(json.dumps(own[2][1])))
        assert [text for text, _ in rest] == [text for text, _ in own[3:]]
        texts += [text for text, _ in own]
    assert sorted(texts) == sorted(TEXTS)


def test_ready_token_ids(tmp_path):
    documents = open_documents(HarvestSettings(dataset=write(tmp_path, "parquet"), tokens_column="ids"))
    assert [ids for ids, _ in read(documents)] == [[1, 2, n] for n in range(len(TEXTS))]


@pytest.mark.parametrize(("by", "expected"), [("line", 2), ("paragraph", 1), ("file", 1)])
def test_a_txt_file_is_one_document_or_one_a_line(tmp_path, by, expected):
    (tmp_path / "a.txt").write_text("one\ntwo")
    assert len(read(open_documents(HarvestSettings(dataset=str(tmp_path / "a.txt"), txt_document=by)))) == expected


def test_the_identity_is_that_of_the_bytes(tmp_path):
    name = write(tmp_path, "jsonl")
    before = open_documents(HarvestSettings(dataset=name)).identity()
    assert before["kind"] == "files"
    Path(name).write_text(Path(name).read_text().replace("document 3", "document 4"))
    assert open_documents(HarvestSettings(dataset=name)).identity()["hash"] != before["hash"]


def test_a_missing_column_is_refused_with_the_columns_there_are(tmp_path):
    documents = open_documents(HarvestSettings(dataset=write(tmp_path, "jsonl"), text_column="body"))
    with pytest.raises(UsageError, match="it has: text, ids"):
        read(documents)


def test_a_column_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": 5}\n')
    with pytest.raises(UsageError, match=r"row of the text .* has int 5, not text"):
        read(open_documents(HarvestSettings(dataset=str(path))))


@pytest.mark.parametrize("name", ["./nothing.jsonl", "nothing/*.txt", "/nowhere/at/all"])
def test_missing_files_are_named(name):
    with pytest.raises(UsageError, match="There is no text at"):
        open_documents(HarvestSettings(dataset=name))


def test_files_of_two_kinds_are_refused(tmp_path):
    write(tmp_path, "jsonl")
    write(tmp_path, "parquet")
    with pytest.raises(UsageError, match="one kind"):
        open_documents(HarvestSettings(dataset=str(tmp_path)))


def test_a_file_of_no_known_kind_is_named(tmp_path):
    (tmp_path / "notes.md").write_text("text")
    with pytest.raises(UsageError, match=r"'notes\.md' is not a kind of file"):
        open_documents(HarvestSettings(dataset=str(tmp_path / "notes.md")))


def test_a_hub_name_without_a_network_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DiskError, match="cannot be reached"):
        open_documents(HarvestSettings(dataset="someone/some-text"))


def jsonl(path: Path, rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


GOOD = {"text": "good"}
BAD_ROWS = {
    "a chat": ({"text": [{"role": "user", "content": "a"}]}, "a chat, not text"),
    "sentences": ({"text": ["a", "b"]}, "a list of str, not text"),
    "ids": ({"text": [1, 2]}, "a list of int, not text"),
    "ids and nulls": ({"text": [1, None]}, "a list of NoneType and int"),
    "a number": ({"text": 5}, "int 5, not text"),
    "a boolean": ({"text": True}, "True, not text"),
    "another column": ({"body": "a"}, "no column 'text'; it has: body"),
    "escapes in a column": ({"te\x1b[31mxt": "a"}, r"it has: te\\x1b\[31mxt"),
    "half a pair": ({"text": "ab\ud83d"}, "character 2 of the text is half of a surrogate pair"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_is_no_text_is_refused_with_file_and_row_or_skipped(tmp_path, name):
    bad, why = BAD_ROWS[name]
    path = jsonl(tmp_path / "a.jsonl", [GOOD, bad, GOOD])
    with pytest.raises(UsageError, match=why) as raised:
        read(open_documents(HarvestSettings(dataset=path)))
    assert raised.value.where == f"{path}, row 2"
    assert "harvest.bad_rows to skip" in raised.value.remedy
    documents = open_documents(HarvestSettings(dataset=path, bad_rows="skip"))
    assert [text for text, _ in read(documents)] == ["good", "good"]
    assert list(documents.skipped) == [f"{path}, row 2"]
    assert documents.identity()["bad_rows"] == "skip"


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        ([1, 2.5], "float 2.5 among the token ids"),
        ([1, 2.0], "float 2.0 among the token ids"),
        ([1, True], "True among the token ids"),
        ([1, "7"], "a string among the token ids"),
        ([1, None], "None among the token ids"),
        ([[1, 2]], "a list of int among the token ids"),
        ([5, -100, 6], "token id -100, which marks what a loss leaves out, is not one of 0 to 299"),
        ([5, 300], "token id 300 is not one of 0 to 299"),
        ([1 << 40], "token id 1099511627776 is not one of 0 to 299"),
        ("words", "a string, not a list of token ids"),
    ],
)
def test_values_that_are_no_token_ids_are_refused(tmp_path, ids, why):
    path = jsonl(tmp_path / "a.jsonl", [{"ids": [1]}, {"ids": ids}])
    documents = open_documents(HarvestSettings(dataset=path, tokens_column="ids"), TextAccess(vocabulary=300))
    with pytest.raises(UsageError, match=why) as raised:
        read(documents)
    assert raised.value.where.endswith("row 2")


def test_a_chat_goes_through_the_template(tmp_path):
    chat = [{"role": "user", "content": "hi"}]
    path = jsonl(tmp_path / "a.jsonl", [{"talk": chat}, {"talk": [{"role": "user"}]}])
    settings = HarvestSettings(dataset=path, messages_column="talk", bad_rows="skip")
    documents = open_documents(settings, TextAccess(render=lambda messages: [len(messages), 7]))
    assert [ids for ids, _ in read(documents)] == [[1, 7]]
    assert len(documents.skipped) == 1


def test_files_whose_columns_differ_are_read_by_themselves(tmp_path):
    jsonl(tmp_path / "d" / "a.jsonl", [{"text": "one"}])
    jsonl(tmp_path / "d" / "b.jsonl", [{"text": "two", "meta": {"page": 1}}, {"text": None}])
    assert [text for text, _ in read(open_documents(HarvestSettings(dataset=str(tmp_path / "d"))))] == [
        "one",
        "two",
        "",
    ]


@pytest.mark.parametrize("by", ["rows", "files"])
def test_ranks_share_rows_or_files_and_every_document_is_read_once(tmp_path, by):
    for number in range(3 if by == "rows" else 4):
        jsonl(tmp_path / "d" / f"{number}.jsonl", [{"text": f"{number} {n}"} for n in range(5 + number)])
    settings = HarvestSettings(dataset=str(tmp_path / "d"))
    everything = [text for text, _ in read(open_documents(settings))]
    shares = []
    for rank in range(2):
        own = read(open_documents(settings, TextAccess(rank=rank, world=2)))
        again = read(open_documents(settings, TextAccess(rank=rank, world=2)), own[3][1])
        assert [text for text, _ in again] == [text for text, _ in own[4:]]
        shares += [text for text, _ in own]
    assert sorted(shares) == sorted(everything)


def test_an_empty_text_and_a_state_of_an_older_version(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(UsageError, match="text is empty"):
        open_documents(HarvestSettings(dataset=str(tmp_path / "a.jsonl"))).identity()
    path = jsonl(tmp_path / "b.jsonl", [GOOD])
    with pytest.raises(MismatchError, match="older nestcoder"):
        read(open_documents(HarvestSettings(dataset=path)), {"examples_iterable": {}})


def test_a_separator_divides_a_file_of_stories(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("one\n\nmore<|end|>two<|end|><|end|>three\n")
    documents = open_documents(HarvestSettings(dataset=str(path), txt_separator="<|end|>"))
    assert [text for text, _ in read(documents)] == ["one\n\nmore", "two", "three\n"]
    assert "txt_document" in open_documents(HarvestSettings(dataset=str(path))).hint
    assert not documents.hint
