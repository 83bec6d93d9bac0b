"""The cross-layer step against a dense definition in float64, differentiated by autograd."""

from dataclasses import replace

import pytest
import torch

from common.distributed import Ranks
from train.arrays.optim import Moments
from train.arrays.parameters import Parameters, random_parameters
from train.arrays.workspace import Workspace
from train.config import TrainSettings
from train.kinds.joint_state import JointState
from train.kinds.joint_step import JointRecipe, joint_step
from train.objective import Recipe
from train.resolved import resolve
from train.state import State
from train.step import train_step
from transcoder.cross_layer import Reach

LAYERS, WIDTH, DICT_SIZE, TOP_K, ROWS = 3, 6, 32, 4, 24
PREFIXES = (8, 32)


def settings_of(**changes: object):
    plain = {
        "prefixes": PREFIXES,
        "top_k": TOP_K,
        "steps": 10,
        "lr": 0.01,
        "warmup_steps": 0,
        "schedule": "constant",
        "dimension_balance": 0.0,
    }
    return resolve(TrainSettings(**plain | changes), model="", d_target=WIDTH)


def weights_of(layer: int, reach: Reach, generator: torch.Generator, dtype: torch.dtype) -> Parameters:
    weights = random_parameters(WIDTH, reach.wide(layer), dict_size=DICT_SIZE, seed=layer, dtype=dtype)
    weights.b_enc.copy_(torch.randn(DICT_SIZE, generator=generator) / 4)
    weights.b_dec[:WIDTH] = torch.randn(WIDTH, generator=generator)
    return weights


class Problem:
    """Weights, rows and a recipe; ``window`` 2 covers all three layers."""

    def __init__(self, window: int, *, over_layers: bool = False, dtype=torch.float64, **changes: object) -> None:
        self.settings = settings_of(**changes)
        generator = torch.Generator().manual_seed(0)
        self.reach = Reach(LAYERS, window, WIDTH)
        weights = [weights_of(layer, self.reach, generator, dtype) for layer in range(LAYERS)]
        if self.settings.skip:
            skips = torch.randn(LAYERS, WIDTH, WIDTH, generator=generator).to(dtype) / 4
            weights = [replace(layer, W_skip=skip.clone()) for layer, skip in zip(weights, skips, strict=True)]
        if self.settings.activation == "jumprelu":
            weights = [replace(layer, threshold=torch.full((DICT_SIZE,), 0.3, dtype=dtype)) for layer in weights]
        since = torch.zeros(DICT_SIZE, dtype=torch.int64)
        states = [State(layer, Moments.zero(layer), since.clone()) for layer in weights]
        self.state = JointState(tuple(states), tuple(range(LAYERS)))
        self.sources, self.targets = torch.randn(2, LAYERS, ROWS, WIDTH, generator=generator).to(dtype)
        self.variances = [torch.linspace(0.2, 1.8, WIDTH, dtype=torch.float64).roll(layer) for layer in range(LAYERS)]
        recipes = tuple(Recipe.from_settings(self.settings, variance=variance) for variance in self.variances)
        self.recipe = JointRecipe(recipes, self.reach, over_layers)
        rule = self.recipe.recipes[0].nested.rule
        self.workspaces = [Workspace.like(layer, rows=ROWS, rule=rule) for layer in weights]

    def step(self):
        given = {"recipe": self.recipe, "workspaces": self.workspaces, "ranks": Ranks()}
        return joint_step(self.state, list(self.sources), targets=list(self.targets), **given)


def definition(problem: Problem) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]], list[torch.Tensor]]:
    """The loss, its gradients, and every layer's FVU by prefix, from dense codes."""
    leaves = [
        {name: array.clone().requires_grad_() for name, array in layer.weights.tensors().items()}
        for layer in problem.state.layers
    ]
    pre = [x @ own["W_enc"].T + own["b_enc"] for x, own in zip(problem.sources, leaves, strict=True)]
    if problem.recipe.over_layers:
        side_by_side = torch.cat(pre, dim=1)
        threshold = side_by_side.topk(TOP_K * LAYERS, dim=1).values[:, -1:]
        codes = list((side_by_side.relu() * (side_by_side >= threshold)).split(DICT_SIZE, dim=1))
    else:
        codes = [values.relu() * (values >= values.topk(TOP_K, dim=1).values[:, -1:]) for values in pre]
    fvu = []
    for t in range(LAYERS):
        by_prefix = []
        for end in PREFIXES:
            y = leaves[t]["b_dec"][:WIDTH]
            if problem.settings.skip:
                y = y + problem.sources[t] @ leaves[t]["W_skip"]
            for s in range(t + 1):
                if t in problem.reach.written(s):
                    block = leaves[s]["W_dec"][:, (t - s) * WIDTH : (t - s + 1) * WIDTH]
                    y = y + codes[s][:, :end] @ block[:end]
            balance = problem.settings.dimension_balance
            counts = 1 - balance + balance / problem.variances[t]
            by_prefix.append(((y - problem.targets[t]).square() * counts).sum() / (ROWS * WIDTH))
        fvu.append(torch.stack(by_prefix))
    value = torch.stack(fvu).mean(dim=1).sum()
    names = [(layer, name) for layer, own in enumerate(leaves) for name in own]
    found = torch.autograd.grad(value, [leaves[layer][name] for layer, name in names])
    gradients: list[dict[str, torch.Tensor]] = [{} for _ in leaves]
    for (layer, name), gradient in zip(names, found, strict=True):
        gradients[layer][name] = gradient
    return value.detach(), gradients, [per_prefix.detach() for per_prefix in fvu]


@pytest.mark.parametrize("window", [0, 1, 2])
@pytest.mark.parametrize(
    ("over_layers", "balance", "skip"),
    [(False, 0.0, False), (False, 0.5, False), (True, 0.0, False), (False, 0.0, True)],
)
def test_loss_and_every_gradient_are_those_of_the_definition(
    window: int, over_layers: bool, balance: float, skip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the update, which is in float32: the gradients stay in the workspaces."""
    monkeypatch.setattr("train.step.update_", lambda *_, **__: torch.zeros(()))
    changes = {"dimension_balance": balance, "skip": skip, "aux_alpha": 0.0, "revive": False}
    problem = Problem(window, over_layers=over_layers, **changes)
    value, gradients, fvu = definition(problem)
    near = 1e-6 if balance else 1e-12  # the weights of dimensions are kept in float32
    before = [layer.weights.W_dec.clone() for layer in problem.state.layers]
    metrics = problem.step()
    assert float(metrics.l2_loss) * LAYERS == pytest.approx(float(value), rel=near)
    torch.testing.assert_close(metrics.batch_fvu, torch.stack(fvu).mean(dim=0), rtol=near, atol=0)
    torch.testing.assert_close(metrics.batch_fvu_per_layer, torch.stack(fvu)[:, -1], rtol=near, atol=0)
    for layer, expected in enumerate(gradients):
        # Rows of norm 1 over all that a feature writes: no part of the gradient along them.
        along = (expected["W_dec"] * before[layer]).sum(dim=1, keepdim=True)
        expected["W_dec"] = expected["W_dec"] - along * before[layer]
        expected["b_dec"][WIDTH:] = 0
        found = problem.workspaces[layer].gradients.tensors()
        for name, gradient in expected.items():
            torch.testing.assert_close(
                found[name], gradient, rtol=1e3 * near, atol=1e3 * near, msg=f"{name} of layer {layer}"
            )


@pytest.mark.parametrize(
    ("activation", "skip"), [("topk", False), ("batchtopk", False), ("jumprelu", False), ("topk", True)]
)
def test_a_window_of_0_trains_every_layer_alone_bit_for_bit(activation: str, skip: bool) -> None:
    changes = {"activation": activation, "skip": skip, "dead_after_tokens": ROWS, "dtype": torch.float32}
    problem = Problem(0, **changes)
    alone = Problem(0, **changes)
    for _ in range(4):
        problem.step()
        for layer, state in enumerate(alone.state.layers):
            given = {"recipe": alone.recipe.recipes[0], "workspace": alone.workspaces[layer], "ranks": Ranks()}
            train_step(state, alone.sources[layer], target=alone.targets[layer], **given)
    for joint, single in zip(problem.state.layers, alone.state.layers, strict=True):
        for name, array in joint.weights.tensors().items():
            assert torch.equal(array, single.weights.tensors()[name]), name
        assert torch.equal(joint.since_fired, single.since_fired)


def test_rows_keep_norm_1_over_all_that_they_write_and_biases_of_other_layers_stay_0() -> None:
    problem = Problem(2, dtype=torch.float32)
    for _ in range(3):
        problem.step()
    for layer in problem.state.layers:
        torch.testing.assert_close(layer.weights.W_dec.norm(dim=1), torch.ones(DICT_SIZE))
        assert not layer.weights.b_dec[WIDTH:].any()


def test_a_layer_that_only_a_cross_decoder_can_explain_is_learned() -> None:
    """The last target is a function of the first source alone."""
    losses = {}
    for window in (0, 2):
        problem = Problem(window, dtype=torch.float32, steps=60)
        problem.targets[2] = problem.sources[0].relu()
        for _ in range(60):
            metrics = problem.step()
        losses[window] = float(metrics.batch_fvu_per_layer[2])
    assert losses[2] < 0.8 * losses[0]
