"""The strongest documents of every feature, against sorting the dense code."""

import pytest
import torch

from evaluate.metrics.metric import Replayed, State
from evaluate.metrics.top_contexts import TopContexts
from transcoder.rules.topk import select_topk

CONTEXTS = 3


def table(pre: torch.Tensor, document: torch.Tensor, *, ends: tuple[int, ...]) -> State:
    metric = TopContexts(pre.shape[1], CONTEXTS)
    state = metric.start()
    for start, end in zip((0, *ends[:-1]), ends, strict=True):
        rows = torch.arange(start, end)
        selection = select_topk(pre[rows], top_k=5)
        batch = Replayed(pre[rows], pre[rows], document[rows], rows, selection, pre[rows][:, None], (12,))
        state = metric.combine(state, metric.measure(batch))
    return state


@pytest.mark.parametrize("ends", [(200,), (1, 37, 120, 200), tuple(range(10, 201, 10))])
def test_the_table_is_what_sorting_the_dense_code_gives(ends: tuple[int, ...]) -> None:
    pre = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    document = torch.arange(200) // 7
    code = pre.relu() * torch.zeros_like(pre).scatter_(1, pre.topk(5).indices, 1.0)
    found = table(pre, document, ends=ends)
    for feature in range(12):
        best: dict[int, tuple[float, int]] = {}
        for row in code[:, feature].argsort(descending=True).tolist():
            best.setdefault(int(document[row]), (float(code[row, feature]), row))
        expected = list(best.items())[:CONTEXTS]
        assert found["document"][feature].tolist() == [known for known, _ in expected]
        assert found["row"][feature].tolist() == [row for _, (_, row) in expected]
        assert found["value"][feature].tolist() == pytest.approx([value for _, (value, _) in expected])


def test_rows_on_which_nothing_fires_do_not_change_the_table() -> None:
    pre = torch.full((6, 8), -1.0)
    pre[4, 3] = 1.0
    found = table(pre, torch.arange(6), ends=(2, 4, 6))
    assert (found["row"] >= 0).sum() == 1
    assert int(found["row"][3, 0]) == 4


def test_a_feature_strong_in_fewer_documents_has_fewer_contexts() -> None:
    pre = torch.full((6, 8), -1.0)
    pre[[1, 2, 5], 0] = torch.tensor([1.0, 2.0, 3.0])
    found = table(pre, torch.tensor([0, 0, 0, 1, 1, 1]), ends=(2, 6))
    assert found["row"][0].tolist() == [5, 2, -1]
    assert found["document"][1].tolist() == [-1, -1, -1]
