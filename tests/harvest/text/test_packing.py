"""Contexts: no token is lost or doubled, boundaries are known."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from harvest.text.packing import Packer, pending_from_json, pending_to_json

BOS = 0
documents = st.lists(st.lists(st.integers(1, 99), max_size=40), max_size=12)


def pack(texts, *, context, alone=False):
    packer = Packer(context=context, bos=BOS, alone=alone)
    contexts = [c for n, text in enumerate(texts) for c in packer.add(n, np.asarray(text, dtype=np.int32))]
    return [*contexts, *packer.flush()]


def unpack(contexts, count):
    texts = [[] for _ in range(count)]
    for context in contexts:
        for token, document in zip(context.tokens, context.documents, strict=True):
            if token != BOS:
                texts[document].append(int(token))
    return texts


@given(documents, st.integers(2, 17), st.booleans())
def test_every_token_once_in_order(texts, context, alone):
    contexts = pack(texts, context=context, alone=alone)
    assert unpack(contexts, len(texts)) == texts
    assert all(c.tokens[0] == BOS for c in contexts)
    assert all(len(c) <= context for c in contexts)


@given(documents, st.integers(2, 17))
def test_packed_contexts_are_full_but_the_last(texts, context):
    assert all(len(c) == context for c in pack(texts, context=context)[:-1])


@given(documents, st.integers(2, 17))
def test_packing_alone_gives_one_document_a_context(texts, context):
    assert all(len(set(c.documents)) == 1 for c in pack(texts, context=context, alone=True))


@given(documents, st.integers(2, 17))
def test_document_positions_restart_where_the_document_changes(texts, context):
    for c in pack(texts, context=context):
        expected, last = [], None
        for document in c.documents:
            expected.append(0 if document != last else expected[-1] + 1)
            last = document
        assert c.document_positions().tolist() == expected


@given(documents, st.integers(2, 17), st.integers(0, 12))
def test_a_packer_goes_on_from_a_snapshot(texts, context, cut):
    first = Packer(context=context, bos=BOS, alone=False)
    head = [c for n, t in enumerate(texts[:cut]) for c in first.add(n, np.asarray(t, dtype=np.int32))]
    pending = pending_from_json(pending_to_json(first.pending))
    second = Packer(context=context, bos=BOS, alone=False, pending=pending)
    rest = enumerate(texts[cut:], start=len(texts[:cut]))
    tail = [c for n, t in rest for c in second.add(n, np.asarray(t, dtype=np.int32))]
    expected = pack(texts, context=context)
    got = [*head, *tail, *second.flush()]
    assert [c.tokens.tolist() for c in got] == [c.tokens.tolist() for c in expected]
    assert [c.begins for c in got] == [c.begins for c in expected]


def test_a_packed_context_reads_as_documented():
    first, second = pack([[1, 2], [3, 4, 5]], context=5)
    assert first.tokens.tolist() == [BOS, 1, 2, BOS, 3]
    assert first.documents.tolist() == [0, 0, 0, 1, 1]
    assert first.begins == (0, 3)
    assert second.tokens.tolist() == [BOS, 4, 5]


def test_a_bos_that_the_text_brings_is_not_doubled():
    (context,) = pack([[BOS, 7, 8]], context=5)
    assert context.tokens.tolist() == [BOS, 7, 8]
