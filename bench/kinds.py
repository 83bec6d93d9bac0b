"""Every kind of dictionary from one harvest of a model: the table of docs/dictionaries.md.

python -m bench.kinds FOLDER [--model models/gpt2-stdlib] [--steps N] ...: harvests all layers in one pass, trains an
autoencoder of either side of every layer, a transcoder a layer, and nested cross-layer transcoders with windows of 0, 2
and all layers, each from a cold start on the same rows; measures each on the same held-out rows and, all layers at
once, in the language model; fine-tunes them there and measures again. Prints two tables in Markdown: a line a kind, and
with ``--prefixes`` a line a prefix. A rerun goes on where an earlier one was stopped, and measures nothing twice.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent / "support"))

from lines import Lines

import nestcoder
from common.run_layout import CONFIG_FILE, METRICS_FILE, RunFolders, joint_folders, together_folder
from nestcoder.stages.folders import folders_of, layers_of_model

HEADING = "| model | dictionary | | features | mean FVU | 95 % | L0 | silent | crosses | top-1 | KL | delta CE | 95 % |"


class Kind(NamedTuple):
    """A dictionary of the table: what it is called there, and what its training sets."""

    name: str
    title: str
    train: dict[str, Any]

    @property
    def is_set(self) -> bool:
        """Whether every layer has a dictionary of its own."""
        return self.train.get("kind") != "cross-layer"


KINDS = (
    Kind("sae-in", "autoencoders of the MLPs' inputs", {"kind": "sae", "side": "source"}),
    Kind("sae-out", "autoencoders of the MLPs' outputs", {"kind": "sae", "side": "target"}),
    Kind("set", "a transcoder a layer", {}),
    Kind("clt-0", "cross-layer, window 0", {"kind": "cross-layer", "window": 0}),
    Kind("clt-2", "cross-layer, window 2", {"kind": "cross-layer", "window": 2}),
    Kind("clt-all", "cross-layer, all later layers", {"kind": "cross-layer"}),
)


class Bench:
    """One model's harvest and what comes of it."""

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        self._options = options
        self.settings = settings_of(model, options)
        self.layers = options.layers or layers_of_model(self.settings)
        self.progress = Lines()

    def rows(self) -> Iterator[dict[str, Any]]:
        """The figures of each kind, and of what fine-tuning made of it, as they come."""
        nestcoder.run_harvest(self.settings, self.layers, device="cpu", progress=self.progress)
        # What fine-tuning itself compares is measured here as well, in one way for all kinds.
        brief_evaluation = nestcoder.PipelineSettings(evaluate={"lm_tokens": 1024, "bootstrap": 0}).evaluate
        briefly = self.settings.model_copy(update={"evaluate": brief_evaluation})
        for kind in (kind for kind in KINDS if kind.name in self._options.kinds):
            self.progress.note(f"== {kind.title}")
            settings = self.settings.model_copy(update={"train": self.settings.train.model_copy(update=kind.train)})
            nestcoder.run_train(settings, self.layers, name=kind.name, device="cpu", progress=self.progress)
            yield self._row(kind, kind.name)
            if kind.name in self._options.finetune:
                nestcoder.run_finetune(briefly, self.layers, name=kind.name, device="cpu", progress=self.progress)
                yield self._row(kind, f"{kind.name}-finetuned")

    def _row(self, kind: Kind, name: str) -> dict[str, Any]:
        row = self._autoencoders(name) if kind.train.get("kind") == "sae" else self._joint(kind, name)
        return {"model": Path(self.settings.model).name, "title": kind.title, "name": name, **row}

    def _joint(self, kind: Kind, name: str) -> dict[str, Any]:
        """Of transcoders, a set or cross-layer: one report on the rows and in the model."""
        joint = joint_folders(Path(self.settings.runs), self.settings.model, self.layers)
        made = [folders_of(self.settings, layer) for layer in self.layers] if kind.is_set else [joint]
        metrics = self._once(
            joint.report(name),
            made,
            name,
            lambda: nestcoder.run_evaluate_joint(
                self.settings, self.layers, names=[name], device="cpu", lm=True, progress=self.progress
            ),
        )
        found = metrics["dictionaries"][name]
        l0 = found["l0_per_layer_and_prefix"]
        return {
            "prefixes": found["prefixes"],
            "fvu": found["fvu_per_prefix"],
            "fvu_interval": found["fvu_interval_per_prefix"],
            "l0": [mean(layer[index] for layer in l0) for index in range(len(found["prefixes"]))],
            "silent": mean(found["dead_per_layer"]),
            "crossing": found["crossing"],
            "spliced": found["language_model"]["per_prefix"],
        }

    def _autoencoders(self, name: str) -> dict[str, Any]:
        """Of autoencoders: a report a layer on its rows, and one in the model."""
        alone: list[dict[str, Any]] = []
        for layer in self.layers:
            folders = folders_of(self.settings, layer)
            alone.append(self._once(folders.report(name), [folders], name, self._evaluation(layer, name)))
        spliced = self._once(
            together_folder(Path(self.settings.runs), self.settings.model, name),
            [folders_of(self.settings, layer) for layer in self.layers],
            name,
            lambda: nestcoder.run_together(self.settings, self.layers, name=name, device="cpu", progress=self.progress),
        )

        silent = [found["dead_fraction_per_prefix"][-1] for found in alone]

        def averaged(key: str) -> list[float]:
            return [mean(values) for values in zip(*(found[key] for found in alone), strict=True)]

        return {
            "prefixes": alone[0]["prefixes"],
            "fvu": averaged("fvu_per_prefix"),
            "fvu_interval": None,  # an interval of the mean needs every layer's sums by document
            "l0": averaged("l0_per_prefix"),
            "silent": None if None in silent else mean(silent),  # none where there are too few rows to tell
            "crossing": None,
            "spliced": spliced["language_model"]["per_prefix"],
        }

    def _evaluation(self, layer: int, name: str) -> Callable[[], dict[str, Any]]:
        return lambda: nestcoder.run_evaluate(self.settings, [layer], name=name, device="cpu", progress=self.progress)[
            layer
        ]

    def _once(
        self, report: Path, made: Sequence[RunFolders], name: str, measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """What an earlier run measured of the same dictionaries, or what ``measure`` finds."""
        found = report / METRICS_FILE
        trained = max((folders.transcoder(name) / CONFIG_FILE).stat().st_mtime for folders in made)
        if found.is_file() and found.stat().st_mtime > trained:
            return json.loads(found.read_text())
        return measure()


def settings_of(model: str, options: argparse.Namespace) -> nestcoder.PipelineSettings:
    """What this benchmark sets; everything else is the default."""
    return nestcoder.PipelineSettings(
        model=model,
        runs=str(options.folder / "runs"),
        harvest={
            "dataset": options.dataset,
            "train_tokens": options.train_tokens,
            "held_out_tokens": options.held_out_tokens,
            # The standard library has some twenty held-out documents: none may have most of the rows.
            "held_out_document_tokens": options.held_out_document_tokens,
        },
        train={
            "batch_rows": options.batch_rows,
            "steps": options.steps,
            # A short run cannot wait for the usual million tokens to call a feature dead.
            "dead_after_tokens": max(1, options.steps * options.batch_rows // 8),
            "held_out_rows": 4096,
            "checkpoint_every": max(1, options.steps // 4),
        },
        evaluate={"lm_tokens": options.lm_tokens},
        finetune={"tokens": options.finetune_tokens, "batch_contexts": 4, "checkpoint_every": 10},
    )


def line_of(found: dict[str, Any], index: int = -1) -> str:
    """The table's line of a prefix, of the whole dictionary where none is given."""
    spliced = found["spliced"][index]
    is_whole = index in (-1, len(found["prefixes"]) - 1)
    cells = (
        found["model"],
        found["title"],
        "fine-tuned" if found["name"].endswith("-finetuned") else "",
        f"{found['prefixes'][index]:,}",
        f"{found['fvu'][index]:.4f}",
        _interval(found["fvu_interval"] and found["fvu_interval"][index], "{:.4f}"),
        f"{found['l0'][index]:.1f}",
        _share(found["silent"]) if is_whole else "",
        _share(found["crossing"]) if is_whole else "",
        _share(spliced["top1"]),
        f"{spliced['kl']:.4f}",
        f"{spliced['delta']:+.4f}",
        _interval(spliced["delta_interval"], "{:+.4f}"),
    )
    return f"| {' | '.join(cells)} |"


def _interval(bounds: Sequence[float] | None, form: str) -> str:
    return " - ".join(form.format(bound) for bound in bounds) if bounds else ""


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, help="where the runs go; 1.5 GB a model, kept out of git")
    made.add_argument("--model", action="append", help="a folder or Hub name; both embedded ones where not given")
    made.add_argument("--dataset", default="stdlib", help="text, as harvest.dataset takes it")
    made.add_argument("--layers", type=int, nargs="+", help="instead of all")
    names = [kind.name for kind in KINDS]
    made.add_argument("--kinds", nargs="+", choices=names, default=names, help="some of them")
    made.add_argument("--finetune", nargs="*", choices=names, default=names, help="which are fine-tuned too")
    made.add_argument("--prefixes", action="store_true", help="print a line a prefix as well")
    for name, value in {
        "train-tokens": 200_000,
        "held-out-tokens": 20_480,
        "held-out-document-tokens": 1536,
        "steps": 400,
        "batch-rows": 512,
        "lm-tokens": 20_480,
        "finetune-tokens": 51_200,
    }.items():
        made.add_argument(f"--{name}", type=int, default=value)
    return made


def main() -> None:
    options = parser().parse_args()
    found: list[dict[str, Any]] = []
    for model in options.model or ("models/gpt2-stdlib", "models/gemma2-stdlib"):
        for row in Bench(model, options).rows():
            found.append(row)
            print(line_of(row), file=sys.stderr, flush=True)
    rule = "|" + "---|" * (HEADING.count("|") - 1)
    print("\n".join([HEADING, rule, *(line_of(row) for row in found)]))
    if options.prefixes:
        lines = [line_of(row, index) for row in found for index in range(len(row["prefixes"]))]
        print("\n".join(["", HEADING, rule, *lines]))


if __name__ == "__main__":
    main()
