"""The stages themselves on one device: python -m bench.support.gpu_pipeline PART --folder DIR --device cuda [--toy]

    harvest   a random model of Gemma-2-2B's shape (9 blocks), from text to fsynced shards, beside the bare forward pass
              of those blocks and beside writing as many bytes to the same disk in order
    train     the whole loop on that cache, and a run of one step: what starting costs
    evaluate  a replay of rows in memory on the device and on the CPU, and the whole command on that cache

The parts follow one another in DIR. Commands run as a user runs them, in processes of their own.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.support.rows import Rows

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "models" / "gemma2-stdlib"


@dataclass(frozen=True)
class Sizes:
    """What is measured; a toy one says nothing about speed."""

    width: int
    blocks: int
    heads: int
    head_dim: int
    context: int
    batch_contexts: int
    tokens: int
    train: dict[str, Any]
    steps: int
    replay_rows: int
    replay: tuple[int, tuple[int, ...]]
    """Active features a row, and prefixes."""


FULL = Sizes(
    width=2304,
    blocks=9,
    heads=8,
    head_dim=256,
    context=1024,
    batch_contexts=16,
    tokens=655_360,
    train={"preset": "layer-18432", "batch_rows": 4096},
    steps=400,
    replay_rows=65_536,
    replay=(96, (1152, 3456, 8064, 18432)),
)
TOY = Sizes(
    width=64,
    blocks=2,
    heads=2,
    head_dim=32,
    context=32,
    batch_contexts=4,
    tokens=4096,
    train={"preset": "none", "prefixes": (16, 64), "top_k": 4, "batch_rows": 256},
    steps=6,
    replay_rows=512,
    replay=(4, (16, 64)),
)


@dataclass(frozen=True)
class Bench:
    """A folder, a device and sizes."""

    folder: Path
    device: str
    sizes: Sizes

    @property
    def layer(self) -> int:
        return self.sizes.blocks - 1

    @property
    def model(self) -> Path:
        return self.folder / "gemma-2-2b-shape"

    @property
    def cache(self) -> Path:
        return self.folder / "runs" / self.model.name / f"layer{self.layer:02d}" / "cache"

    def synchronise(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def command(self, stage: str, **settings: Any) -> tuple[dict[str, Any], float, float]:
        """What a command of nestcoder answers, its wall seconds until then, and how long it takes to leave."""
        sets = [f"--set={stage}.{key}={json.dumps(value)}" for key, value in settings.items()]
        given = ["--json", "--model", str(self.model), f"--set=runs={json.dumps(str(self.folder / 'runs'))}", *sets]
        options = ["--layer", str(self.layer), "--device", self.device]
        command = [sys.executable, "-m", "nestcoder", *given, stage, *options]
        started = answered = time.perf_counter()
        with (self.folder / f"{stage}.notes").open("w+") as notes:
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=notes, text=True)
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                answered = time.perf_counter()
            code = process.wait()
            left = time.perf_counter()
            if code:
                notes.seek(0)
                raise RuntimeError(f"{stage} left with {code}: {notes.read().strip()[-300:]}")
        answer = json.loads("".join(lines))
        return answer.get(str(self.layer), answer), answered - started, left - answered

    @cached_property
    def network(self) -> Any:
        """The random model, saved on first use with the tokenizer of an embedded one."""
        from transformers import Gemma2Config, Gemma2ForCausalLM

        sizes = self.sizes
        config = Gemma2Config(
            vocab_size=2048,
            hidden_size=sizes.width,
            intermediate_size=4 * sizes.width,
            num_hidden_layers=sizes.blocks,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.heads // 2,
            head_dim=sizes.head_dim,
            query_pre_attn_scalar=sizes.head_dim,
            max_position_embeddings=2048,
            **{key: json.loads((TOKENIZER / "config.json").read_text())[key] for key in _SPECIAL},
        )
        torch.manual_seed(0)
        with torch.device(self.device):
            network = Gemma2ForCausalLM(config).to(torch.bfloat16).eval()
        with torch.no_grad():  # gains other than the default's zero, which would hide a mistaken site
            for name, gain in network.named_parameters():
                if "norm" in name:
                    gain.normal_(0, 0.3)
        network.save_pretrained(self.model)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / name, self.model / name)
        return network


_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def measure_harvest(bench: Bench, rows: Rows) -> None:
    bare = rows.attempt("bare forward pass of the blocks", partial(bare_forward, bench)).get("value", 0.0)
    if bench.device.startswith("cuda"):  # compiling takes longer than a toy run
        rows.attempt("bare forward pass, blocks compiled", partial(bare_forward, bench, compiled=True))
    bench.__dict__.pop("network", None)  # its memory is wanted by the command
    if bench.device.startswith("cuda"):
        torch.cuda.empty_cache()
    sizes = bench.sizes
    settings = {
        "context": sizes.context,
        "train_tokens": sizes.tokens,
        "held_out_tokens": sizes.tokens // 8,
        "repeat": True,
    }
    done, wall, leaving = bench.command("harvest", **settings)
    speed = done["rows"] / done["seconds"]
    plain = rows.attempt("plain writes of as many bytes", partial(plain_writes, bench, done["rows"])).get("value", 0.0)
    floor = min(bare, plain)
    rows.attempt("writes of as many bytes, eight files at once", partial(plain_writes, bench, done["rows"], files=8))
    rows.say(
        "harvest, text to fsynced shards",
        round(speed),
        "tokens/s",
        over_slower_floor=round(speed / floor, 2) if floor else None,
        waited_for_text=f"{done['waited_for_text_seconds'] / done['seconds']:.1%}",
        waited_for_disk=f"{done['waited_for_disk_seconds'] / done['seconds']:.1%}",
        writing_thread_cpu=f"{done['disk_cpu_seconds'] / done['seconds']:.0%}",
    )
    later = (done["rows"] - done["first_segment_rows"]) / (done["seconds"] - done["first_segment_seconds"])
    over_floor = round(later / floor, 2) if floor else None
    rows.say("harvest, after its first segment", round(later), "tokens/s", over_slower_floor=over_floor)
    starting = done.pop("starting_seconds")
    parts = {name.removesuffix("_seconds"): value for name, value in done.items() if name.endswith("_seconds")}
    rows.say("harvest, seconds of its parts", round(done["seconds"], 2), "s", **rounded(parts))
    start = wall - done["seconds"]
    starting = {"importing": start - sum(starting.values()), **starting, "leaving": leaving}
    rows.say("harvest, start to first token", round(start, 1), "s", **rounded(starting))
    if bench.device.startswith("cuda"):  # a toy run has no time for it
        for module in ("torch", "harvest.run"):
            rows.attempt(f"import of {module} alone", partial(importing, module))


def importing(module: str) -> dict[str, Any]:
    """How long an import takes in a process of its own, and the modules that take longest without what they import."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    taken = time.perf_counter() - started
    found = re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)", done.stderr, re.MULTILINE)
    slowest = sorted(((int(each), name) for each, name in found), reverse=True)[:4]
    longest = ", ".join(f"{name} {each / 1e6:.2f}" for each, name in slowest)
    return {"value": round(taken, 1), "unit": "s", "modules": len(found), "longest": longest}


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in seconds.items()}


@torch.inference_mode()
def bare_forward(bench: Bench, *, compiled: bool = False) -> dict[str, Any]:
    sizes = bench.sizes
    for block in bench.network.model.layers[:-1] if compiled else ():  # as harvest.compile does
        block.compile()
    ids = torch.randint(3, 2048, (sizes.batch_contexts, sizes.context), device=bench.device)
    for _ in range(3):
        bench.network.model(ids, use_cache=False)
    bench.synchronise()
    started = time.perf_counter()
    for _ in range(8):
        bench.network.model(ids, use_cache=False)
    bench.synchronise()
    return {"value": round(8 * ids.numel() / (time.perf_counter() - started)), "unit": "tokens/s"}


def plain_writes(bench: Bench, count: int, *, files: int = 1) -> dict[str, Any]:
    """Tokens a second, were source and target of each written to files in order and fsynced, and nothing else done."""
    size, piece = 2 * 2 * bench.sizes.width * count, os.urandom(2**24)

    def write(path: Path) -> None:
        with path.open("wb", buffering=0) as file:
            for _ in range(-(-size // files // len(piece))):
                file.write(piece)
            os.fsync(file.fileno())

    paths = [bench.folder / f"plain{number}" for number in range(files)]
    started = time.perf_counter()
    with ThreadPoolExecutor(files) as pool:
        list(pool.map(write, paths))
    taken = time.perf_counter() - started
    for path in paths:
        path.unlink()
    return {"value": round(count / taken), "unit": "tokens/s", "gb_per_s": round(size / taken / 1e9, 2)}


def measure_train(bench: Bench, rows: Rows) -> None:
    # In a random model a third of the features may die, which costs time that a real model's training does not take.
    alive = {"dead_after_tokens": 10**9}
    ways = {
        "bf16": ("highest", {"compute_dtype": "bfloat16", **alive}),
        "bf16, features may die": ("highest", {"compute_dtype": "bfloat16"}),
        "tf32": ("high", {"compute_dtype": "float32", **alive}),
        "fp32": ("highest", {"compute_dtype": "float32", **alive}),
    }
    for name, (precision, settings) in ways.items():
        torch.set_float32_matmul_precision(precision)
        rows.attempt(f"training loop, {name}", partial(training_loop, bench, name, settings))
    rows.attempt("train of one step, whole command", partial(one_step, bench))


def training_loop(bench: Bench, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    from bench.waiting import Watch
    from train import run as loop
    from train.config import LogSettings, TrainSettings

    watch, steps = Watch(), bench.sizes.steps
    loop.Loader = watch.make_loader
    fixed = {"steps": steps, "warmup_steps": 1, "held_out_rows": 0, "checkpoint_every": steps}
    chosen = TrainSettings(**bench.sizes.train, **fixed, **settings)
    given = {"settings": chosen, "device": bench.device, "fresh": True, "log": LogSettings()}
    made = loop.train_layer(cache=bench.cache, out=bench.folder / f"loop-{name}", progress=watch, **given)
    # From the middle on: the first steps compile kernels, and the first epoch reads cold pages.
    watch.marks = watch.marks[steps // 2 :]
    seconds, share = watch.seconds_and_share()
    peak = {"peak_mb": round(torch.cuda.max_memory_allocated() / 1e6)} if bench.device.startswith("cuda") else {}
    dead = f"{made['dead']:.1%}"
    return {
        "value": round(seconds * 1e3, 2),
        "unit": "ms a step",
        "waited_for_data": f"{share:.2%}",
        "dead": dead,
        **peak,
    }


def one_step(bench: Bench) -> dict[str, Any]:
    _, wall, leaving = bench.command("train", **bench.sizes.train, steps=1, warmup_steps=0, held_out_rows=0)
    return {"value": round(wall + leaving, 1), "unit": "s"}


def measure_evaluate(bench: Bench, rows: Rows) -> None:
    rows.attempt("evaluate, whole command", partial(whole_evaluation, bench))
    measured: dict[str, float] = {}
    for device in dict.fromkeys((bench.device, "cpu")):
        rows.attempt(f"replay with intervals and baselines, {device}", partial(replay, bench, device, measured))


def replay(bench: Bench, device: str, measured: dict[str, float]) -> dict[str, Any]:
    """Rows a second, and how far the FVU is from that of the device before."""
    from bench.evaluate import SparseReplay, in_memory
    from evaluate.memory import batch_rows_for
    from transcoder.rules.topk import TopK
    from transcoder.transcoder import Transcoder, random_arrays

    top_k, prefixes = bench.sizes.replay
    width, count = bench.sizes.width, bench.sizes.replay_rows if device != "cpu" else bench.sizes.replay_rows // 8
    arrays = random_arrays(width, width, dict_size=prefixes[-1])
    dictionary = Transcoder(**arrays, rule=TopK(top_k), prefixes=prefixes).to(device)
    same = in_memory(bench.sizes.replay_rows // 8, width)
    first = SparseReplay(same, dictionary, everything=True, device=device)
    first.rows(2048)
    batch_rows = batch_rows_for(dictionary, device)  # as the command takes them
    fvu = first.findings()[-1]
    speeds: list[float] = []
    for _ in range(3 if device != "cpu" else 1):
        timed = SparseReplay(in_memory(count, width), dictionary, everything=True, device=device)
        started = time.perf_counter()
        timed.rows(batch_rows)
        bench.synchronise()
        speeds.append(count / (time.perf_counter() - started))
    speed = median(speeds)
    found = {"value": round(speed), "unit": "rows/s", "rows_a_batch": batch_rows}
    if measured:
        found["times_slower"] = round(measured["speed"] / speed, 1)
        found["fvu_off_by"] = f"{abs(fvu - measured['fvu']):.1e}"
    measured |= {"speed": speed, "fvu": fvu}
    return found


def whole_evaluation(bench: Bench) -> dict[str, Any]:
    report, wall, leaving = bench.command("evaluate")
    return {"value": round(wall + leaving, 1), "unit": "s", "rows": report["tokens_used"]}


STAGES = {"harvest": measure_harvest, "train": measure_train, "evaluate": measure_evaluate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=STAGES)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    rows = Rows()
    STAGES[arguments.part](Bench(arguments.folder, arguments.device, TOY if arguments.toy else FULL), rows)


if __name__ == "__main__":
    main()
