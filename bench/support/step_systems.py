"""The systems that bench/step.py compares, each made ready in a process of its own: python step_systems.py NAME SHAPE.

The process says ``{"idle_mb": ...}``, what it holds with its libraries loaded and no data, when it is ready; then it
takes one step for every line it reads and answers
``{"cpu_ms": ..., "wall_ms": ..., "peak_mb": ...}``. All see the same batch and start from the same weights. A peer's
step is what its own training loop does between two batches, logging left out.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import cross_layer_steps

Step = Callable[[], object]


@dataclass(frozen=True)
class Problem:
    """A shape, the batch, and the weights that everyone starts from (encoder and decoder: a row a feature)."""

    prefixes: tuple[int, ...]
    top_k: int
    source: torch.Tensor
    target: torch.Tensor
    encoder: torch.Tensor
    bias: torch.Tensor
    decoder: torch.Tensor

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.source.shape[0], self.source.shape[1], self.encoder.shape[0]


def problem(shape: str, device: str = "cpu") -> Problem:
    """``rows,width,top_k,prefix,prefix,...``. Firing rates are spread like a trained dictionary's by random biases."""
    rows, width, top_k, *prefixes = (int(number) for number in shape.split(","))
    random = partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
    source, target = random(2, rows, width)
    encoder, decoder = torch.nn.functional.normalize(random(2, prefixes[-1], width), dim=2)
    bias = 0.7 * random(prefixes[-1])
    return Problem(tuple(prefixes), top_k, source, target, encoder, bias, decoder)


def floor(problem: Problem, dtype: torch.dtype = torch.float32) -> Step:
    """The encoder's forward matrix product into a buffer that is there already."""
    source, encoder = problem.source.to(dtype), problem.encoder.to(dtype)
    out = torch.empty(source.shape[0], encoder.shape[0], dtype=dtype, device=source.device)
    return lambda: torch.mm(source, encoder.T, out=out)


def nestcoder_step(problem: Problem, *, dead_share: float = 0.0, **changes: object) -> Step:
    """nestcoder's whole training step."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from bench_ours import training_step

    return training_step(problem, dead_share=dead_share, **changes)


def dense(problem: Problem, *, by_group: bool = False, amp: bool = False, compiled: bool = False) -> Step:
    """The paper's loss written directly: a dense decode, autograd, fused Adam.

    The decode is one product for every prefix, or with ``by_group`` the least that is dense: a product for every group
    and a running sum. ``amp`` computes in bfloat16, ``compiled`` compiles forward and backward pass.
    """
    device = problem.source.device
    encoder, bias = problem.encoder.clone().requires_grad_(), problem.bias.clone().requires_grad_()
    decoder, b_dec = (
        problem.decoder.clone().requires_grad_(),
        torch.zeros(problem.sizes[1], device=device, requires_grad=True),
    )
    parameters = [encoder, bias, decoder, b_dec]
    optimiser = torch.optim.Adam(parameters, lr=1e-4, fused=True)
    variance = float(problem.target.var(dim=0).sum())

    def reconstructions(code: torch.Tensor) -> Iterator[torch.Tensor]:
        if not by_group:
            yield from (code[:, :p] @ decoder[:p] + b_dec for p in problem.prefixes)
            return
        total = b_dec
        for first, last in pairwise((0, *problem.prefixes)):
            total = total + code[:, first:last] @ decoder[first:last]
            yield total

    def loss() -> torch.Tensor:
        pre = torch.relu(problem.source @ encoder.T + bias)
        values, features = pre.topk(problem.top_k, dim=1, sorted=False)
        code = torch.zeros_like(pre).scatter(1, features, values)
        sse = [(y - problem.target).float().square().sum() for y in reconstructions(code)]
        return sum(sse) / (len(sse) * problem.sizes[0] * variance)

    forward = torch.compile(loss) if compiled else loss

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            value = forward()
        value.backward()
        with torch.no_grad():
            decoder.grad.sub_((decoder.grad * decoder).sum(dim=1, keepdim=True) * decoder)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            decoder.div_(decoder.norm(dim=1, keepdim=True))

    return step


def autoencoder(problem: Problem) -> Problem:
    """The same problem with the source for its target."""
    return replace(problem, target=problem.source)


def sae_lens(problem: Problem, *, amp: bool = False) -> Step:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes import matryoshka_batchtopk_sae as matryoshka
    from sae_lens.training.sae_trainer import SAETrainer

    rows, width, dict_size = problem.sizes
    device = str(problem.source.device)
    settings = matryoshka.MatryoshkaBatchTopKTrainingSAEConfig(
        d_in=width, d_sae=dict_size, k=problem.top_k, matryoshka_widths=list(problem.prefixes), device=device
    )
    sae = matryoshka.MatryoshkaBatchTopKTrainingSAE(settings)
    sae.W_enc.data.copy_(problem.encoder.T)
    sae.W_dec.data.copy_(problem.decoder)
    sae.b_enc.data.copy_(problem.bias)
    config = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=rows, lr_end=3e-5, device=device, autocast=amp
    )
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter(()))
    return lambda: trainer.step(problem.source)


def dictionary_learning(problem: Problem) -> Step:
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    _, width, dict_size = problem.sizes
    ends = (0, *problem.prefixes)
    fractions = [(last - first) / dict_size for first, last in pairwise(ends)]
    trainer = MatryoshkaBatchTopKTrainer(
        steps=10**6,
        activation_dim=width,
        dict_size=dict_size,
        k=problem.top_k,
        layer=0,
        lm_name="none",
        group_fractions=fractions,
        device=str(problem.source.device),
    )
    trainer.ae.W_enc.data.copy_(problem.encoder.T)
    trainer.ae.W_dec.data.copy_(problem.decoder)
    trainer.ae.b_enc.data.copy_(problem.bias)
    return lambda: trainer.update(2000, problem.source)  # past its first 1,000 steps, as most steps of a run are


def sparsify(problem: Problem, *, amp: bool = False, transcode: bool = True) -> Step:
    """No prefixes: an easier task. Adam, as its trainer offers it, rather than its default of signed descent."""
    from sparsify import SparseCoder, SparseCoderConfig

    rows, width, dict_size = problem.sizes
    device = problem.source.device
    coder = SparseCoder(
        width, SparseCoderConfig(num_latents=dict_size, k=problem.top_k, transcode=transcode), device=device
    )
    coder.encoder.weight.data.copy_(problem.encoder)
    coder.encoder.bias.data.copy_(problem.bias)
    coder.W_dec.data.copy_(problem.decoder)
    optimiser = torch.optim.Adam(coder.parameters(), lr=1e-4, fused=device.type == "cuda")
    fired = torch.zeros(dict_size, dtype=torch.bool, device=device)
    since_fired = torch.zeros(dict_size, dtype=torch.long, device=device)

    def step() -> None:
        if not transcode:
            coder.set_decoder_norm_to_unit_norm()
        variance = (problem.target - problem.target.mean(0)).pow(2).sum()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            out = coder(problem.source, problem.target, total_variance=variance)
        fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        out.fvu.backward()
        if not transcode:
            coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        since_fired.add_(rows)
        since_fired[fired] = 0
        fired.zero_()

    return step


SYSTEMS: dict[str, Callable[[Problem], Step]] = {
    "floor": floor,
    "ours": nestcoder_step,
    "ours-batchtopk": lambda problem: nestcoder_step(problem, activation="batchtopk"),
    "ours-1pct-dead": lambda problem: nestcoder_step(problem, dead_share=0.01),
    "ours-10pct-dead": lambda problem: nestcoder_step(problem, dead_share=0.1),
    "floor-bf16": lambda problem: floor(problem, torch.bfloat16),
    "ours-bf16": lambda problem: nestcoder_step(problem, compute_dtype="bfloat16"),
    "dense": dense,
    "ours-sae": lambda problem: nestcoder_step(autoencoder(problem), kind="sae"),
    "dense-sae": lambda problem: dense(autoencoder(problem)),
    "ours-clt": cross_layer_steps.nestcoder_step,
    "dense-clt": cross_layer_steps.Dense,
    "sparsify": sparsify,
    "sparsify-sae": lambda problem: sparsify(autoencoder(problem), transcode=False),
    "dictionary_learning-sae": dictionary_learning,
    "sae-lens-sae": sae_lens,
    "llamascopium-clt": cross_layer_steps.llamascopium,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a peer prints goes to the error stream
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    SYSTEMS[sys.argv[1]](problem("16,8,2,4,16"))()  # so that libraries are loaded before memory is counted
    idle_mb = _peak_mb()
    step = SYSTEMS[sys.argv[1]](problem(sys.argv[2]))
    print(json.dumps({"idle_mb": idle_mb}), file=answers)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        took = {"cpu_ms": (time.process_time() - cpu) * 1e3, "wall_ms": (time.perf_counter() - wall) * 1e3}
        print(json.dumps({**took, "peak_mb": _peak_mb()}), file=answers)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
