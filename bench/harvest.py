"""What a harvest costs over the bare model: end to end (tokenise, run, write, fsync) against the truncated forward.

    python -m bench.harvest --tokens 8192 --contexts 128 256 1024
    python -m bench.harvest --peers DIR                      # SAELens's CacheActivationsRunner as well (bench/peers.sh)

The model has the true shape of GPT-2 small (12 x 768) with random weights; layer 8, one CPU thread, float32, rows in
bfloat16. Printed are CPU seconds a thousand tokens, which other processes disturb less than wall seconds, as the median
of alternating rounds. Loading and the first proof are left out on either side; the proofs on a sample are in.

SAELens caches one hook a run, in float32, so source and target take it two runs; what the first of them cost is shown
too. It is measured with HookedTransformer, its default, and with Hugging Face's model, which it runs with sdpa and
stops at the hook.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from common.progress import Silent
from harvest.config import HarvestSettings
from harvest.request import HarvestRequest
from harvest.run import harvest_layers
from harvest.text.stdlib import stdlib_documents

LAYER, WIDTH = 8, 768
TOKENIZER = Path(__file__).parents[1] / "models" / "gpt2-stdlib"


Timings = dict[str, float]
"""What a way cost: CPU ``seconds``, for how many ``tokens``, and more of our own."""


class Clock(Silent):
    """CPU seconds between the first token and the last."""

    seconds = 0.0

    def begin(self, task: str, **_: object) -> None:  # noqa: ARG002
        self._started = time.process_time()

    def end(self) -> None:
        self.seconds = time.process_time() - self._started


def make_model(folder: Path) -> Path:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_ctx=1024)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    return folder


def bare(folder: Path, context: int, tokens: int, batch: int) -> Timings:
    """The model's own blocks up to the layer, by Hugging Face, with sdpa and nothing kept."""
    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    model.h = model.h[: LAYER + 1]
    ids = torch.randint(0, 2048, (tokens // context, context))
    with torch.inference_mode():
        model(ids[:1], use_cache=False)
        started = time.process_time()
        for contexts in ids.split(batch):
            model(contexts, use_cache=False)
        return {"seconds": time.process_time() - started, "tokens": tokens}


def nestcoder_timings(folder: Path, context: int, tokens: int, batch: int, layers: list[int]) -> Timings:
    """The harvest, from text to fsynced shards."""
    # Whole contexts on either side, so that the model sees as many tokens as the bare one.
    clock, held_out = Clock(), context
    with tempfile.TemporaryDirectory() as scratch:
        request = HarvestRequest(
            model=str(folder),
            folders={layer: Path(scratch) / str(layer) for layer in layers},
            settings=HarvestSettings(
                context=context, train_tokens=tokens - held_out, held_out_tokens=held_out, batch_contexts=batch
            ),
            device="cpu",
        )
        done = harvest_layers(request, progress=clock)[LAYER]
    return {
        "seconds": clock.seconds,
        "tokens": tokens,
        "waited": done["waited_for_text_seconds"] / done["seconds"],
        "text": done["text_cpu_seconds"] / clock.seconds,
        "disk": done["disk_cpu_seconds"] / clock.seconds,
    }


def peer(python: Path, folder: Path, context: int, tokens: int, batch: int, model_class: str) -> Timings:
    """SAELens's CacheActivationsRunner, once for the target and once for the source, in an environment of its own."""
    script, text = Path(__file__).with_name("support") / "harvest_saelens.py", folder / "text.jsonl"
    with text.open("w", encoding="utf-8") as file:
        for _, document in itertools.islice(stdlib_documents(), 40):
            file.write(json.dumps({"text": document}) + "\n")
    command = [str(python), str(script), str(folder), str(context), str(tokens), str(batch), str(text), model_class]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def ways_of(folder: Path, context: int, args: argparse.Namespace) -> dict[str, Callable[[], Timings]]:
    given = folder, context, args.tokens, max(1, 2048 // context)
    ways: dict[str, Callable[[], Timings]] = {
        "bare": lambda: bare(*given),
        "nestcoder": lambda: nestcoder_timings(*given, [LAYER]),
        "nestcoder, 3 layers": lambda: nestcoder_timings(*given, [LAYER - 2, LAYER - 1, LAYER]),
    }
    if args.peers:
        python = args.peers / "sae-lens" / "bin" / "python"
        for model_class in ("HookedTransformer", "AutoModelForCausalLM"):
            ways[f"SAELens, {model_class}"] = lambda name=model_class: peer(python, *given, name)
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 256, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, help="the folder that bench/peers.sh filled")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch))
        for context in args.contexts:
            ways = ways_of(folder, context, args)
            report(context, [{name: way() for name, way in ways.items()} for _ in range(args.rounds)])


def report(context: int, rounds: list[dict[str, Timings]]) -> None:
    def median(value: Callable[[dict[str, Timings]], float]) -> float:
        return statistics.median(value(round_) for round_ in rounds)

    def cost(round_: dict[str, Timings], name: str) -> float:
        return round_[name]["seconds"] / round_[name]["tokens"]

    print(f"context {context}, CPU seconds a thousand tokens, load {os.getloadavg()[0]:.1f}")
    own_ms = 1000 * median(lambda round_: cost(round_, "nestcoder"))
    for name in rounds[0]:
        each = 1000 * median(lambda round_, name=name: cost(round_, name))
        beside = [
            f"{median(lambda round_, name=name, floor=floor: cost(round_, name) / cost(round_, floor)):5.2f} x {floor}"
            for floor in ("bare", "nestcoder")
        ]
        alone = ""
        if "one" in rounds[0][name]:
            share = median(lambda round_, name=name: round_[name]["one"] / round_[name]["seconds"])
            alone = f"   target alone {share * each:7.3f}, {each * share / own_ms:5.2f} x nestcoder"
        print(f"  {name:30s} {each:7.3f}   {'   '.join(beside)}{alone}", flush=True)
    further = median(lambda round_: cost(round_, "nestcoder, 3 layers") / cost(round_, "nestcoder") - 1) / 2
    shares = {name: median(lambda round_, name=name: round_["nestcoder"][name]) for name in ("waited", "text", "disk")}
    print(
        f"  each further layer in the same pass: {further:.1%}; the model waited for text {shares['waited']:.1%} of "
        f"the time\n  of nestcoder's CPU time the reading thread took {shares['text']:.1%} (the tokeniser's own "
        f"threads apart), the writing thread {shares['disk']:.1%}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
