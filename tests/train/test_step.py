"""A step on every available device: the same bits again, and on a GPU the CPU's numbers and no waiting."""

import dataclasses
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.distributed import Ranks
from tests.helpers.progress import Notes
from train.arrays import optim, update_kernel
from train.arrays.batch_share import BatchShare
from train.arrays.graphs import Graphs
from train.arrays.optim import Moments
from train.arrays.parameters import Parameters, random_parameters
from train.arrays.workspace import Workspace
from train.config import TrainSettings
from train.objective import Recipe
from train.resolved import resolve
from train.state import State
from train.step import StepForm, advance_, train_step
from transcoder import decode, kernels

ROWS, WIDTH, DICT_SIZE = 64, 32, 256
GPU = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []


class Training:
    """Steps from the same beginning; with ``dead``, features 3 to 8 are dead from the start."""

    def __init__(self, device: str, *, dead: bool = False, **changes: object) -> None:
        stated = TrainSettings(
            prefixes=(32, 96, DICT_SIZE),
            top_k=8,
            lr=0.001,
            steps=50,
            batch_rows=ROWS,
            dead_after_tokens=10**6,
            **changes,
        )
        settings = resolve(stated, model="", d_target=WIDTH)
        self.recipe = Recipe.from_settings(settings, variance=torch.ones(WIDTH), device=device)
        self.device = device
        self.graphs: Graphs | None = None
        weights = random_parameters(WIDTH, WIDTH, dict_size=DICT_SIZE, seed=3)
        since_fired = torch.zeros(DICT_SIZE, dtype=torch.int64)
        if dead:
            weights.b_enc[3:9] = -50.0
            since_fired[3:9] = settings.dead_after_tokens
        self.state = State(weights.to(device), Moments.zero(weights.to(device)), since_fired.to(device))
        dtype = getattr(torch, settings.compute_dtype)
        self.workspace = Workspace.like(self.state.weights, rows=ROWS, rule=self.recipe.nested.rule, dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        self.batches = torch.randn(4, 2, ROWS, WIDTH, generator=generator).to(device)

    def step(self, batch: int, *, rows: int = ROWS) -> None:
        source, target = self.batches[batch, :, :rows]
        given = {"recipe": self.recipe, "workspace": self.workspace, "ranks": Ranks(), "graphs": self.graphs}
        train_step(self.state, source, target=target, **given)

    def weights_after_all(self) -> Parameters:
        for batch in range(len(self.batches)):
            self.step(batch)
        return self.state.weights


@pytest.mark.parametrize("device", ["cpu", *GPU])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("activation", "dead"), [("topk", False), ("topk", True), ("batchtopk", True)])
def test_the_same_steps_give_the_same_bits(device: str, compute_dtype: str, activation: str, dead: bool) -> None:
    runs = [Training(device, dead=dead, compute_dtype=compute_dtype, activation=activation) for _ in range(2)]
    first, second = (run.weights_after_all().tensors() for run in runs)
    for name, array in first.items():
        assert array.isfinite().all(), name
        assert torch.equal(array, second[name]), name


@pytest.mark.parametrize("device", ["cpu", *GPU])
def test_bfloat16_is_close_to_float32(device: str) -> None:
    exact = Training(device).weights_after_all().W_dec
    rounded = Training(device, compute_dtype="bfloat16").weights_after_all().W_dec
    assert 0 < float((exact - rounded).norm() / exact.norm()) < 0.02


class Launches:
    """Instead of a Triton kernel: counts launches, and runs nothing."""

    def __init__(self) -> None:
        self.count = 0

    def __getitem__(self, grid: Any) -> Any:
        def launch(*_: Any, **__: Any) -> None:
            self.count += 1

        return launch


class NothingLeaves(TorchDispatchMode):
    """Fails if an array of another device is read or made: on a GPU that is a copy, and most copies wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        arrays = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        assert all(array.device.type == "meta" or array.dim() == 0 for array in arrays), func
        return result


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize("room", [0, 64, 128])
def test_a_step_on_a_card_waits_for_nothing(
    compute_dtype: str, activation: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, which has no numbers: code that waits for a number, or for its shape, raises."""
    launched = {"sums": Launches(), "grad_sums": Launches(), "dots": Launches(), "update": Launches()}
    for owner in (decode, optim):
        monkeypatch.setattr(owner, "uses_kernels", lambda _: True)
    for name in ("sums", "grad_sums", "dots"):
        monkeypatch.setattr(kernels, f"_{name}_kernel", launched[name])
    monkeypatch.setattr(kernels, "_add_pieces_kernel", Launches())
    monkeypatch.setattr(update_kernel, "_update_kernel", launched["update"])
    training = Training("meta", compute_dtype=compute_dtype, activation=activation, aux_top_k=8)
    form = StepForm(ROWS, room, is_exact=False, has_auxiliary=room > 0, revives=room > 0)
    inputs = (*training.batches[0], torch.empty(3, device="meta"), torch.empty(ROWS, dtype=torch.int64, device="meta"))
    given = {"recipe": training.recipe, "workspace": training.workspace, "share": BatchShare(ROWS, ROWS)}
    advance_(training.state, *inputs, form=form, **given)  # makes the constants
    with NothingLeaves():
        measured = advance_(training.state, *inputs, form=form, **given)
    assert all(array.device.type == "meta" for array in measured.values())
    assert {name: kernel.count for name, kernel in launched.items()} == {
        "sums": 2 * 3, "grad_sums": 2, "dots": 2, "update": 2 * 4,
    }  # fmt: skip


@pytest.mark.parametrize("room", [6, 64, DICT_SIZE])
def test_memory_for_more_features_than_are_dead_changes_only_roundings(room: int) -> None:
    """A step on a GPU has a fixed size for dead features; entries that only fill it must not count."""
    exact, roomy = (Training("cpu", dead=True, aux_top_k=16, warmup_steps=0) for _ in range(2))
    for batch in range(3):
        exact.step(batch)
        before = dataclasses.replace(roomy.state)
        numbers = (None, torch.randperm(ROWS, generator=torch.Generator().manual_seed(batch)))
        form = StepForm(ROWS, room, is_exact=False, has_auxiliary=True, revives=True)
        given = {"recipe": roomy.recipe, "workspace": roomy.workspace, "share": BatchShare(ROWS, ROWS)}
        advance_(before, *roomy.batches[batch], *numbers, form=form, **given)
        roomy.state.step += 1
        assert torch.equal(roomy.state.since_fired, exact.state.since_fired)
    for name, array in exact.state.weights.tensors().items():
        torch.testing.assert_close(roomy.state.weights.tensors()[name], array, rtol=1e-5, atol=1e-6, msg=name)


if torch.cuda.is_available():

    @contextmanager
    def waiting_refused() -> Generator[None]:
        """Raise where the host waits for the GPU. PyTorch warns that it does not notice every wait."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode")
            try:
                torch.cuda.set_sync_debug_mode("error")
                yield
            finally:
                # Otherwise all later tests of this process would fail.
                torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.gpu
    @pytest.mark.parametrize("dead", [False, True])
    def test_a_step_is_that_of_the_cpu(dead: bool) -> None:
        expected = Training("cpu", dead=dead).weights_after_all().tensors()
        for name, array in Training("cuda", dead=dead).weights_after_all().tensors().items():
            torch.testing.assert_close(array.cpu(), expected[name], rtol=1e-3, atol=2e-4, msg=name)

    @pytest.mark.gpu
    @pytest.mark.parametrize("activation", ["topk", "batchtopk"])
    @pytest.mark.parametrize("dead", [False, True])
    def test_a_step_waits_for_nothing(activation: str, dead: bool) -> None:
        training = Training("cuda", dead=dead, activation=activation, revive=not dead)
        training.step(0)  # compiles kernels, copies constants, counts who can die for the first time
        torch.cuda.synchronize()
        with waiting_refused():
            for batch in range(1, 4):
                training.step(batch)

    @pytest.mark.gpu
    @pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize(("activation", "dead"), [("topk", False), ("topk", True), ("batchtopk", True)])
    def test_a_played_graph_gives_the_bytes_of_plain_steps(compute_dtype: str, activation: str, dead: bool) -> None:
        notes = Notes()
        plain, played = (
            Training("cuda", dead=dead, compute_dtype=compute_dtype, activation=activation) for _ in range(2)
        )
        played.graphs = Graphs("cuda", notes)
        for step in range(24):  # over the borders of windows, at which the size for dead features changes
            for training in (plain, played):
                training.step(step % 4, rows=ROWS - step // 4 % 2)
        assert not notes.texts
        assert played.graphs.recorded
        for name, array in plain.state.weights.tensors().items():
            assert torch.equal(array, played.state.weights.tensors()[name]), name
        assert torch.equal(plain.state.since_fired, played.state.since_fired)

    @pytest.mark.gpu
    def test_steps_that_cannot_be_recorded_are_plain_steps() -> None:
        notes = Notes()
        graphs = Graphs("cuda", notes)
        array = torch.ones(4, device="cuda")
        for _ in range(6):
            assert graphs.play("form", [array], lambda inputs: {"sum": torch.tensor(inputs[0].sum().item())}) is None
        assert len(notes.texts) == 1
        assert float((array + 1).sum()) == 8.0
