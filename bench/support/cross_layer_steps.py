"""One training step of a cross-layer transcoder over a problem of step_systems.py: nestcoder's, a dense one, a peer's.

Three layers: the features of each write to its own target and to those of all later layers. Layers differ in which row
of the problem's arrays comes first, so that one shape says everything.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

LAYERS = 3
WINDOW = LAYERS - 1


class Layer(NamedTuple):
    """Rows and first weights of one layer; a row of ``decoder`` is all that a feature writes, of norm 1."""

    source: torch.Tensor
    target: torch.Tensor
    encoder: torch.Tensor
    bias: torch.Tensor
    decoder: torch.Tensor


def layers_of(problem: Any) -> list[Layer]:
    """The problem, once for every layer."""
    made: list[Layer] = []
    for layer in range(LAYERS):
        written = min(WINDOW + 1, LAYERS - layer)
        decoder = torch.cat([problem.decoder.roll(layer + number, dims=0) for number in range(written)], dim=1)
        rows = (problem.source.roll(layer, dims=1), problem.target.roll(layer, dims=1))
        encoder = problem.encoder.roll(layer, dims=0)
        made.append(Layer(*rows, encoder, problem.bias.roll(layer), decoder / written**0.5))
    return made


def nestcoder_step(problem: Any, **changes: object) -> Callable[[], object]:
    """nestcoder's whole training step."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from bench_ours import joint_training_step

    return joint_training_step(problem, layers_of(problem), window=WINDOW, **changes)


class DenseLayer(NamedTuple):
    """What is trained of one layer."""

    encoder: torch.Tensor
    bias: torch.Tensor
    decoder: torch.Tensor
    b_dec: torch.Tensor

    @staticmethod
    def from_layer(layer: Layer) -> "DenseLayer":
        """Its first weights."""
        b_dec = torch.zeros_like(layer.target[0])
        arrays = (layer.encoder, layer.bias, layer.decoder, b_dec)
        return DenseLayer(*(array.clone().requires_grad_() for array in arrays))

    def code(self, source: torch.Tensor, top_k: int) -> torch.Tensor:
        """A row's activations, zeros and all."""
        pre = torch.relu(source @ self.encoder.T + self.bias)
        values, features = pre.topk(top_k, dim=1, sorted=False)
        return torch.zeros_like(pre).scatter(1, features, values)


class Dense:
    """The same loss written directly: dense codes, a product for every prefix and target, autograd, fused Adam."""

    def __init__(self, problem: Any) -> None:
        self._problem = problem
        self._layers = layers_of(problem)
        self.trained = [DenseLayer.from_layer(layer) for layer in self._layers]
        self._optimiser = torch.optim.Adam([array for own in self.trained for array in own], lr=1e-4, fused=True)
        self._variances = [float(layer.target.var(dim=0).sum()) for layer in self._layers]

    def __call__(self) -> None:
        """A step."""
        self._loss().backward()
        for own in self.trained:
            with torch.no_grad():
                own.decoder.grad.sub_((own.decoder.grad * own.decoder).sum(dim=1, keepdim=True) * own.decoder)
            torch.nn.utils.clip_grad_norm_(own, 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad()
        with torch.no_grad():
            for own in self.trained:
                own.decoder.div_(own.decoder.norm(dim=1, keepdim=True))

    def _loss(self) -> torch.Tensor:
        pairs = zip(self.trained, self._layers, strict=True)
        codes = [own.code(layer.source, self._problem.top_k) for own, layer in pairs]
        losses = [
            (self._reconstruction(codes, number, end) - layer.target).square().sum() / self._variances[number]
            for number, layer in enumerate(self._layers)
            for end in self._problem.prefixes
        ]
        return sum(losses) / (len(self._problem.prefixes) * self._problem.sizes[0])

    def _reconstruction(self, codes: list[torch.Tensor], number: int, end: int) -> torch.Tensor:
        """Of the target ``number`` by the prefix ``end``."""
        width = self._problem.sizes[1]
        found = self.trained[number].b_dec
        for source in range(max(0, number - WINDOW), number + 1):
            start = (number - source) * width
            found = found + codes[source][:, :end] @ self.trained[source].decoder[:end, start : start + width]
        return found


def llamascopium(problem: Any) -> Callable[[], object]:
    """Its trainer's step, logging left out. No prefixes: an easier task."""
    from llamascopium import CLTConfig, CrossLayerTranscoder, TrainerConfig
    from llamascopium.optim import clip_grad_norm
    from llamascopium.trainer import Trainer

    layers = layers_of(problem)
    _, width, dict_size = problem.sizes
    sources, targets = ([f"{role}{number}" for number in range(LAYERS)] for role in ("source", "target"))
    config = CLTConfig(
        hook_points_in=sources,
        hook_points_out=targets,
        d_model=width,
        expansion_factor=dict_size / width,
        act_fn="topk",
        top_k=problem.top_k,
        norm_activation="inference",
        device="cpu",
        dtype=torch.float32,
    )
    model = CrossLayerTranscoder(config)
    with torch.no_grad():
        for number, layer in enumerate(layers):
            model.W_E[number].copy_(layer.encoder.T)
            model.b_E[number].copy_(layer.bias)
            model.b_D[number].zero_()
            for offset, block in enumerate(layer.decoder.split(width, dim=1)):
                model.W_D[number + offset][number].copy_(block)
    batch = dict(zip(targets, (layer.target for layer in layers), strict=True))
    batch |= dict(zip(sources, (layer.source for layer in layers), strict=True))
    batch["tokens"] = torch.zeros(problem.sizes[0], dtype=torch.int64)  # which it only counts
    folder = tempfile.TemporaryDirectory()  # where its checkpoints would go
    settings = {"k_warmup_steps": 0, "l1_coefficient": None, "lr": 1e-4, "lr_scheduler_name": "constant"}
    trainer = Trainer(TrainerConfig(exp_result_path=folder.name, **settings))
    trainer._initialize_optimizer(model)

    def step() -> None:
        loss = trainer._training_step(model, model.normalize_activations(batch))["loss"]
        float(loss.detach())
        loss.backward()
        clip_grad_norm([array for array in model.parameters() if array.grad is not None], max_norm=1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    step.folder = folder
    return step
