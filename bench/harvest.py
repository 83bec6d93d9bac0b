"""What a harvest costs over the bare model: end to end (tokenise, run, write, fsync) against the truncated forward.

    python -m bench.harvest --tokens 8192 --contexts 128 256 1024
    python -m bench.harvest --peer /path/to/sae-lens-venv/bin/python       # SAELens's CacheActivationsRunner as well

The model has the true shape of GPT-2 small (12 x 768) with random weights; layer 8, one CPU thread, float32, rows in
bfloat16. Printed are CPU seconds a thousand tokens, which other processes disturb less than wall seconds, as the median
of alternating rounds. Loading and the first proof are left out on either side; the proofs on a sample are in.
"""

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from cache.config import CacheSettings
from cache.progress import Silent
from harvest.config import HarvestSettings
from harvest.run import harvest_layers
from harvest.stdlib import stdlib_documents

LAYER, WIDTH = 8, 768
TOKENIZER = Path(__file__).parents[1] / "models" / "gpt2-stdlib"


class Clock(Silent):
    """CPU seconds between the first token and the last."""

    seconds = 0.0

    def begin(self, task: str, **_: object) -> None:  # noqa: ARG002
        self._started = time.process_time()

    def end(self) -> None:
        self.seconds = time.process_time() - self._started


def make_model(folder: Path) -> Path:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    return folder


def bare(folder: Path, context: int, tokens: int, batch: int) -> float:
    """The model's own blocks up to the layer, by Hugging Face, with sdpa and nothing kept."""
    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    model.h = model.h[: LAYER + 1]
    ids = torch.randint(0, 2048, (tokens // context, context))
    with torch.inference_mode():
        model(ids[:1], use_cache=False)
        started = time.process_time()
        for part in ids.split(batch):
            model(part, use_cache=False)
        return time.process_time() - started


def ours(folder: Path, context: int, tokens: int, batch: int, layers: list[int]) -> float:
    """The harvest, from text to fsynced shards."""
    clock, held_out = Clock(), max(1, tokens // 20)
    with tempfile.TemporaryDirectory() as scratch:
        harvest_layers(
            model=str(folder),
            layers=layers,
            settings=HarvestSettings(
                context=context, train_tokens=tokens - held_out, held_out_tokens=held_out, batch_contexts=batch
            ),
            cache_settings=CacheSettings(),
            folders={layer: Path(scratch) / str(layer) for layer in layers},
            device="cpu",
            fresh=False,
            progress=clock,
        )
    return clock.seconds


def peer(python: str, folder: Path, context: int, tokens: int, batch: int) -> float:
    """SAELens's CacheActivationsRunner, one hook, in an environment of its own."""
    script, text = Path(__file__).with_name("support") / "harvest_saelens.py", folder / "text.jsonl"
    with text.open("w", encoding="utf-8") as file:
        for _, document in itertools.islice(stdlib_documents(), 40):
            file.write(json.dumps({"text": document}) + "\n")
    command = [python, str(script), str(folder), str(context), str(tokens), str(batch), str(text)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 256, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--several", action="store_true", help="also capture layers 6, 7 and 8 in one pass")
    parser.add_argument("--peer", help="the Python of an environment that has sae-lens")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch))
        for context in args.contexts:
            batch = max(1, 2048 // context)
            ways = {
                "bare": lambda c=context, b=batch: bare(folder, c, args.tokens, b),
                "nestcoder": lambda c=context, b=batch: ours(folder, c, args.tokens, b, [LAYER]),
            }
            if args.several:
                ways["nestcoder, 3 layers"] = lambda c=context, b=batch: ours(folder, c, args.tokens, b, [6, 7, LAYER])
            if args.peer:
                ways["SAELens"] = lambda c=context, b=batch: peer(args.peer, folder, c, args.tokens, b)
            rounds = [{name: way() for name, way in ways.items()} for _ in range(args.rounds)]
            report(context, args.tokens, rounds)


def report(context: int, tokens: int, rounds: list[dict[str, float]]) -> None:
    for name in rounds[0]:
        each = statistics.median(round_[name] for round_ in rounds) / tokens * 1000
        ratio = statistics.median(round_[name] / round_["bare"] for round_ in rounds)
        print(f"context {context:5d}  {name:20s} {each:8.3f} CPU s / 1,000 tokens   {ratio:5.2f} x bare", flush=True)


if __name__ == "__main__":
    sys.exit(main())
