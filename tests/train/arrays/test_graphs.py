"""A graph reads the inputs of its own step, is recorded once a form, and is not used if it cannot be recorded."""

import pytest
import torch

from common.distributed import Ranks
from common.progress import Silent
from tests.helpers.progress import Notes
from train import step as steps
from train.arrays.graphs import Graphs
from train.arrays.optim import Moments
from train.arrays.parameters import random_parameters
from train.arrays.workspace import Workspace
from train.config import TrainSettings
from train.objective import Recipe
from train.resolved import resolve
from train.state import State

ROWS, WIDTH, DICT_SIZE = 16, 8, 128


class Again(Graphs):
    """A graph on the CPU: does the recorded work again, on the arrays that it was recorded with."""

    recordings = 0

    def _record(self, work):
        self.recordings += 1
        return work


def double(inputs):
    return {"doubled": 2 * inputs[0]}


def test_the_first_steps_are_plain_and_the_others_read_their_own_inputs():
    graphs = Again("cpu", Silent())
    found = [graphs.play("form", (torch.tensor([float(turn)]), None), double) for turn in range(6)]
    assert found[:3] == [None] * 3
    assert [float(results["doubled"]) for results in found[3:]] == [6.0, 8.0, 10.0]
    assert graphs.recordings == 1
    assert graphs.recorded == ["form"]


def test_results_stay_valid_after_the_next_step():
    graphs = Again("cpu", Silent())
    results = [graphs.play("form", (torch.tensor([float(turn)]),), double) for turn in range(5)]
    assert float(results[3]["doubled"]) == 6.0


def test_every_form_is_recorded_separately():
    graphs = Again("cpu", Silent())
    for turn in range(8):
        graphs.play(turn % 2, (torch.ones(1 + turn % 2),), double)
    assert set(graphs.recorded) == {0, 1}


def test_batches_of_a_few_rows_less_read_from_the_same_memory_and_get_their_own_results():
    graphs = Again("cpu", Silent())
    found = {}
    for turn in range(12):
        rows = 300 - turn % 3
        found[turn] = graphs.play(rows, (torch.full((rows, 2), float(turn)), torch.tensor([float(turn)])), double)
    assert [found[turn] for turn in range(3)] == [None] * 3
    for turn in range(3, 12):
        assert torch.equal(found[turn]["doubled"], torch.full((300 - turn % 3, 2), 2.0 * turn))
    addresses = {recorded.inputs[0].data_ptr() for recorded in graphs._recorded.values()}
    assert len(addresses) == 1
    assert graphs.recordings == len(graphs.recorded) == 3


def test_a_larger_batch_gets_new_memory_and_earlier_forms_keep_theirs():
    graphs = Again("cpu", Silent())
    for turn, rows in enumerate([200] * 5 + [600] * 3 + [200, 600, 200, 600]):
        results = graphs.play(rows, (torch.full((rows,), float(turn)),), double)
        assert results is None or torch.equal(results["doubled"], torch.full((rows,), 2.0 * turn))
    assert graphs.recorded == [200, 600]
    small, large = (recorded.inputs[0] for recorded in graphs._recorded.values())
    assert small.data_ptr() != large.data_ptr()


def test_an_input_of_another_dtype_gets_memory_of_its_own():
    graphs = Again("cpu", Silent())
    for turn in range(8):
        dtype = torch.bfloat16 if turn % 2 else torch.float32
        results = graphs.play(dtype, (torch.full((4,), 1 + 2.0**-12, dtype=dtype),), double)
    assert results["doubled"].dtype == torch.bfloat16
    results = graphs.play(torch.float32, (torch.full((4,), 1 + 2.0**-12),), double)
    assert torch.equal(results["doubled"], torch.full((4,), 2 + 2.0**-11))


def test_a_form_that_came_only_once_is_not_recorded_and_there_are_not_too_many(monkeypatch):
    monkeypatch.setattr("train.arrays.graphs._MOST_GRAPHS", 2)
    graphs = Again("cpu", Silent())
    for form in (1, 1, 1, 1, 2, 3, 3, 4, 4, 4):
        graphs.play(form, (torch.ones(1),), double)
    assert graphs.recorded == [1, 3]


def test_work_that_cannot_be_recorded_is_noted_once_and_done_plainly():
    def work(_inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    notes = Notes()
    graphs = Again("cpu", notes)
    graphs._record = lambda call: call()
    assert all(graphs.play("form", (torch.ones(1),), work) is None for _ in range(6))
    assert graphs.recorded == []
    assert notes.texts == [
        "Steps cannot be recorded as CUDA graphs, so their kernels are launched one by one: "
        "operation not permitted when stream is capturing"
    ]


def test_where_one_form_more_cannot_be_recorded_the_memory_of_the_others_is_given_back():
    def work(inputs):
        if len(inputs[0]) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return double(inputs)

    graphs = Again("cpu", Notes())
    graphs._record = lambda call: call() or call
    for rows in (1, 1, 1, 1, 2, 2, 1):
        results = graphs.play(rows, (torch.ones(rows),), work)
    assert results is None
    assert not graphs._recorded
    assert not graphs._inputs


class OnOtherSteps(Again):
    """While it does the recorded work again, the step number is another one: a real graph would not see it."""

    state = None

    def _record(self, work):
        def replay():
            number, self.state.step = self.state.step, 10**6
            work()
            self.state.step = number

        return replay


def adam_(weights, gradients, *, moments, settings, step, numbers, rounded, shard):
    """The update kernel's twin: from ``numbers`` alone."""
    lr, step_size, root = numbers
    assert lr > 0
    for name, array in weights.tensors().items():
        gradient = gradients.tensors()[name]
        first, second = moments.first[name].lerp_(gradient, 0.1), moments.second[name].lerp_(gradient.square(), 0.001)
        array.sub_(step_size * first / (second.sqrt() / root + 1e-8))
        rounded.tensors()[name].copy_(array)
    return gradients.b_dec.norm()


def trained(activation, *, graphs):
    stated = TrainSettings(
        prefixes=(32, DICT_SIZE), top_k=4, lr=0.01, steps=60, batch_rows=ROWS, dead_after_tokens=40 * ROWS,
        activation=activation, compute_dtype="bfloat16", warmup_steps=2,
    )  # fmt: skip
    recipe = Recipe.from_settings(resolve(stated, model="", d_target=WIDTH), variance=torch.ones(WIDTH))
    weights = random_parameters(WIDTH, WIDTH, dict_size=DICT_SIZE, seed=3)
    weights.b_enc[::9] = -20.0
    state = State(weights, Moments.zero(weights), torch.zeros(DICT_SIZE, dtype=torch.int64))
    space = Workspace.like(weights, rows=ROWS, rule=recipe.nested.rule, dtype=torch.bfloat16)
    if graphs:
        graphs.state = state
    generator = torch.Generator().manual_seed(0)
    logged = []
    for batch in range(52):
        rows = ROWS - batch % 3  # as where the rows of special tokens are left out
        source, target = torch.randn(2, rows, WIDTH, generator=generator)
        given = {"recipe": recipe, "workspace": space, "ranks": Ranks(), "graphs": graphs}
        logged.append(steps.train_step(state, source, target=target, **given).as_dict())
    return state, logged


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_played_steps_are_the_plain_ones(activation, monkeypatch):
    monkeypatch.setattr(steps, "runs_ahead", lambda *_, **__: True)
    monkeypatch.setattr(steps, "in_one_pass", lambda _: True)
    monkeypatch.setattr(steps, "update_", adam_)
    graphs = OnOtherSteps("cpu", Silent())
    plain, plain_metrics = trained(activation, graphs=None)
    played, played_metrics = trained(activation, graphs=graphs)
    forms = graphs.recorded
    assert {form.rows for form in forms} == {ROWS, ROWS - 1, ROWS - 2}
    assert {form.room > 0 for form in forms} == {False, True}, "with and without dead features"
    assert any(step_metrics["dead"] > 0 for step_metrics in plain_metrics)
    assert any(step_metrics["aux_loss"] > 0 for step_metrics in plain_metrics)
    assert plain_metrics == played_metrics
    for name, array in plain.weights.tensors().items():
        assert torch.equal(array, played.weights.tensors()[name]), name
    assert torch.equal(plain.since_fired, played.since_fired)
