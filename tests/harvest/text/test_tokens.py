"""The stream of batches: split by document, exact cursors, exact counts, and a sentence when the text is too short."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from common.errors import UsageError
from harvest.text.split import is_held_out
from harvest.text.tokens import ContextStream, StreamSettings

BOS = 0
STREAM = StreamSettings(
    context=8, bos=BOS, alone=False, repeat=False, rows=(120, 40), batch_contexts=3,
    held_out_fraction=0.3, split_seed=0, vocabulary=300,
)  # fmt: skip


class Texts:
    """Documents from a list; the state is the index."""

    def identity(self):
        return {"kind": "list"}

    def __init__(self, texts):
        self.texts = texts

    def read(self, state):
        for index in range(state or 0, len(self.texts)):
            yield self.texts[index], index + 1


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: n + 1 for n, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


TOKENIZER = byte_tokenizer()
TEXTS = [f"document {n}: " + "abc " * (n % 7) for n in range(60)]


def stream(texts=TEXTS, *, cursor=None, **changes):
    return ContextStream(Texts(texts), TOKENIZER, settings=replace(STREAM, **changes), cursor=cursor)


def same(a, b):
    return (
        a.held_out == b.held_out
        and np.array_equal(a.tokens, b.tokens)
        and np.array_equal(a.documents, b.documents)
        and np.array_equal(a.kept, b.kept)
        and a.cursor == b.cursor
    )


def test_rows_are_exactly_those_asked_for():
    batches = list(stream())
    assert sum(b.rows for b in batches if not b.held_out) == 120
    assert sum(b.rows for b in batches if b.held_out) == 40


def test_every_batch_is_of_one_split_and_the_split_is_that_of_its_documents():
    for batch in stream():
        for document in np.unique(batch.documents[batch.kept]):
            assert is_held_out(TEXTS[document].encode(), fraction=0.3, seed=0) == batch.held_out


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    st.lists(st.text(alphabet="abc xyz", max_size=50), min_size=25, max_size=40, unique=True),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
)
def test_a_stream_goes_on_from_any_cursor_with_the_same_batches(texts, batch_contexts, alone, repeat):
    changes = {"batch_contexts": batch_contexts, "alone": alone, "repeat": repeat, "rows": (90, 30)}

    def collect(cursor=None):
        found, items = [], iter(stream(texts, cursor=cursor, **changes))
        while True:
            try:
                found.append(next(items))
            except StopIteration:
                return found
            except UsageError:
                return found

    batches = collect()
    for index, batch in enumerate(batches):
        rest = collect(json.loads(json.dumps(batch.cursor)))
        assert len(rest) == len(batches) - index
        assert all(same(a, b) for a, b in zip(rest, batches[index:], strict=True))


def test_too_little_text_is_an_error_with_the_count_after_every_row_was_given():
    seen = []
    with pytest.raises(UsageError, match=r"too short: it has [\d,]+ training"):
        seen.extend(batch.rows for batch in stream(rows=(10_000, 40)))
    assert sum(seen) > 1000


def test_repeat_reads_the_text_again_with_new_document_numbers():
    batches = list(stream(rows=(4000, 40), repeat=True))
    assert sum(b.rows for b in batches if not b.held_out) == 4000
    assert max(b.documents.max() for b in batches) >= len(TEXTS)


def test_repeat_ends_when_a_split_has_no_documents():
    with pytest.raises(UsageError, match="too short"):
        list(stream(repeat=True, held_out_fraction=0.0))


def test_ready_token_ids_are_taken_as_they_are():
    ids = [[5 + n % 7, 6, 7] * 9 for n in range(60)]
    batches = list(stream([[*document, 200 + n] for n, document in enumerate(ids)], rows=(60, 20)))
    assert batches[0].tokens[0, 1:4].tolist()[1:] == [6, 7]
    assert sum(b.rows for b in batches) == 80


def test_a_token_id_outside_the_vocabulary_is_named():
    with pytest.raises(UsageError, match="300"):
        list(stream([[1, 2, 300]] * 50))


def test_padding_of_short_contexts_is_not_stored():
    for batch in stream(alone=True):
        assert batch.kept[:, 0].all()
        assert (batch.tokens[~batch.kept] == BOS).all()


def test_document_positions_restart():
    for batch in stream():
        for row in range(len(batch.tokens)):
            document, position = batch.documents[row][batch.kept[row]], batch.document_positions[row][batch.kept[row]]
            restarts = np.flatnonzero(np.diff(document)) + 1
            assert (position[restarts] == 0).all()
