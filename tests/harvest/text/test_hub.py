"""A streamed dataset: a dropped stream goes on at the same row, noted and within a limit; bad rows have numbers."""

import pytest
from datasets import Dataset

from common.errors import DiskError, UsageError
from harvest.config import HarvestSettings
from harvest.text.hub import HubDocuments
from harvest.text.rows import RowReader, TextAccess


class Dropping:
    """A streamed dataset whose stream drops before the rows numbered ``drops``, once each, or always."""

    def __init__(self, texts, drops=(), *, always=False):
        self._stream = Dataset.from_list([{"text": text} for text in texts]).to_iterable_dataset()
        self._drops = set(drops)
        self._for_ever = always
        self._number = 0

    def skip(self, _):
        return Dropping.__new__(Dropping)._copy(self)

    def _copy(self, dataset):
        self.__dict__ = dataset.__dict__
        self._number = 0
        self._fresh = self._stream.skip(0)
        return self

    def load_state_dict(self, state):
        self._number = state["number"]
        self._fresh.load_state_dict(state["stream"])

    def state_dict(self):
        return {"number": self._number, "stream": self._fresh.state_dict()}

    def __iter__(self):
        for row in self._fresh:
            if self._number in self._drops:
                if not self._for_ever:
                    self._drops.remove(self._number)
                raise ConnectionError("reset by peer")
            self._number += 1
            yield row


@pytest.fixture
def waits(monkeypatch):
    waited = []
    monkeypatch.setattr("harvest.text.hub.time.sleep", waited.append)
    return waited


def documents(dataset, notes, **settings):
    settings = HarvestSettings(dataset="someone/text", **settings)
    return HubDocuments(dataset, settings, RowReader("text"), TextAccess(note=notes.append), "1" * 40)


TEXTS = [f"text {n}" for n in range(9)]


def test_a_dropped_stream_goes_on_at_the_same_row_with_a_note(waits):
    notes = []
    found = documents(Dropping(TEXTS, drops=(0, 4, 8)), notes)
    assert [text for text, _ in found.read(None)] == TEXTS
    assert waits == [2, 2, 2]
    assert notes[0] == "The stream of 'someone/text' dropped (ConnectionError): try 1 of 5 in 2 s."


def test_it_gives_up_after_five_tries(waits):
    with pytest.raises(DiskError, match=r"cannot be reached: ConnectionError: reset by peer"):
        list(documents(Dropping(TEXTS, drops=(4,), always=True), []).read(None))
    assert waits == [2, 4, 8, 16, 32]


def test_a_state_is_exact_and_one_of_an_older_version_is_read():
    states = [state for _, state in documents(Dropping(TEXTS), []).read(None)]
    again = documents(Dropping(TEXTS), [])
    assert [text for text, _ in again.read(states[3])] == TEXTS[4:]
    assert [text for text, _ in again.read(states[3]["dataset"])] == TEXTS[4:]
    assert states[3]["rows"] == 4


def test_a_bad_row_has_its_number_and_can_be_skipped():
    rows = [*TEXTS[:2], "half \ud83d", *TEXTS[2:]]
    dataset = Dropping(TEXTS)
    dataset._stream = [{"text": row} for row in rows]
    stream = documents(dataset, [])
    stream._rows = lambda _: ((n, {"text": row}, {"rows": n}) for n, row in enumerate(rows, start=1))
    with pytest.raises(UsageError, match="surrogate") as raised:
        list(stream.read(None))
    assert raised.value.where == "someone/text, row 3"
    skipping = documents(dataset, [], bad_rows="skip")
    skipping._rows = stream._rows
    assert [text for text, _ in skipping.read(None)] == TEXTS
    assert list(skipping.skipped) == ["someone/text, row 3"]
