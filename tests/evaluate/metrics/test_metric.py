"""What all metrics share: sums that merge, L0 by prefix, a hash that is the same everywhere, documents by number."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics import metric as module
from evaluate.metrics.metric import add, l0_by_prefix, mixed, numbered
from transcoder.rules.topk import select_topk


def test_states_merge_by_adding_in_place(monkeypatch) -> None:
    # Several blocks, of which the last is short.
    monkeypatch.setattr(module, "_ADDED", 4)
    total = {"rows": torch.tensor(2.0), "sums": torch.arange(10.0).view(5, 2).double(), "kept": torch.ones(2)}
    sums = total["sums"]
    assert add(total, {"rows": torch.tensor(3.0), "sums": torch.ones(5, 2)}) is total
    assert total["rows"] == 5
    assert total["sums"] is sums
    assert torch.equal(sums, torch.arange(10.0).view(5, 2).double() + 1)
    assert torch.equal(total["kept"], torch.ones(2))


@given(st.integers(0, 99), st.integers(1, 8))
def test_l0_by_prefix_is_its_definition(seed: int, top_k: int) -> None:
    """Features that are selected and are 0 do not fire."""
    code = select_topk(torch.randn(7, 12, generator=torch.Generator().manual_seed(seed)) - 0.5, top_k=top_k)
    dense = code.dense(12)
    expected = torch.stack([(dense[:, :prefix] > 0).sum(dim=1) for prefix in (3, 4, 12)], dim=1)
    assert torch.equal(l0_by_prefix(code, (3, 4, 12)), expected)


def test_mixed_is_splitmix64() -> None:
    """Against the first outputs of the generator with seed 1234567 in its author's implementation."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + golden * step) % (1 << 64) for step in range(3)], dtype=np.uint64)
    assert mixed(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_documents_are_numbered_within_the_batch() -> None:
    documents, index = numbered(torch.tensor([90, 7, 90, 1 << 40]))
    assert documents.tolist() == [7, 90, 1 << 40]
    assert documents.dtype == np.uint64
    assert index.tolist() == [1, 0, 1, 2]
