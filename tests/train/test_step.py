"""A whole step on every device that is there: the same bits again, and on a GPU the CPU's numbers and no waiting."""

import pytest
import torch

from common.distributed import Ranks
from train.arrays.optim import Moments
from train.arrays.parameters import Parameters, random_parameters
from train.arrays.workspace import Workspace
from train.config import TrainSettings
from train.resolved import resolve
from train.step import Recipe, State, train_step

ROWS, WIDTH, DICT_SIZE = 64, 32, 256
GPU = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []


class Training:
    """Steps from the same beginning, with features 3 to 8 dead from the start where ``dead``."""

    def __init__(self, device: str, *, dead: bool = False, **changes: object) -> None:
        stated = TrainSettings(prefixes=(32, 96, DICT_SIZE), top_k=8, lr=0.001, steps=50, **changes)
        settings = resolve(stated, model="", d_target=WIDTH)
        self.recipe = Recipe.of(settings, target_variance=float(WIDTH))
        self.device = device
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

    def step(self, batch: int) -> None:
        source, target = self.batches[batch]
        given = {"recipe": self.recipe, "workspace": self.workspace, "ranks": Ranks()}
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
def test_bfloat16_is_near_float32(device: str) -> None:
    exact = Training(device).weights_after_all().W_dec
    rounded = Training(device, compute_dtype="bfloat16").weights_after_all().W_dec
    assert 0 < float((exact - rounded).norm() / exact.norm()) < 0.02


if torch.cuda.is_available():

    @pytest.mark.gpu
    @pytest.mark.parametrize("dead", [False, True])
    def test_a_step_is_that_of_the_cpu(dead: bool) -> None:
        expected = Training("cpu", dead=dead).weights_after_all().tensors()
        for name, array in Training("cuda", dead=dead).weights_after_all().tensors().items():
            torch.testing.assert_close(array.cpu(), expected[name], rtol=1e-3, atol=2e-4, msg=name)

    @pytest.mark.gpu
    def test_a_step_without_dead_features_waits_for_nothing() -> None:
        training = Training("cuda")
        training.step(0)  # compiles kernels, copies constants, and looks how long no feature can be dead
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            training.step(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
