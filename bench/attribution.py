"""Attribution graphs of exported dictionaries: how much of the model runs through features rather than their errors.

python -m bench.attribution FOLDER [--model models/gpt2-stdlib] [--names set set-finetuned ...] [--environment DIR]:
FOLDER is one that bench.kinds filled. Exports the dictionaries to circuit-tracer's format, runs its attribution in an
environment of its own (made at DIR where it is not there) over the prompts of bench/support/prompts.json, and prints
its two scores, replacement and completeness, a prompt and their means. Intervals resample prompts; the last rows are
differences from the first dictionary, prompt by prompt.
"""

import argparse
import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "support"))

from lines import Lines

import nestcoder
from nestcoder.stages.folders import harvested_layers

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "bench" / "support" / "prompts.json"
SCORES = ("replacement", "completeness")
RESAMPLINGS = 2000


def environment(folder: Path) -> Path:
    """The interpreter of circuit-tracer's environment, made where it is not there: of the versions that ``make
    interop`` tries."""
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
        requirements = ROOT / "tests" / "interop" / "requirements" / "circuit_tracer.txt"
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)
    return python


def exported(settings: nestcoder.PipelineSettings, name: str, out: Path) -> Path:
    """The folder of one dictionary in circuit-tracer's format; what is there of the same weights is kept."""
    layers = harvested_layers(settings)
    done = nestcoder.run_export(
        settings, layers, to=["circuit-tracer"], out=out / name, name=name, device="cpu", progress=Lines()
    )
    return Path(done[0]["folder"])


def scores(python: Path, model: Path, sets: Sequence[Path], prompts: Path) -> list[dict[str, Any]]:
    """What circuit-tracer says of every set and prompt, in that order."""
    script = ROOT / "bench" / "support" / "attribution_scores.py"
    command = [str(python), str(script), str(model), str(prompts), *map(str, sets)]
    found: list[dict[str, Any]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            found.append(json.loads(line))
            print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        sys.exit(f"circuit-tracer stopped with exit code {process.returncode}")
    return found


def table(found: Sequence[dict[str, Any]], names: Sequence[str], prompts: Sequence[str]) -> str:
    """Markdown: a line a prompt, the means with their intervals, and the differences from the first dictionary."""
    values = np.array([[scored[score] for score in SCORES] for scored in found]).reshape(len(names), len(prompts), 2)
    draws = np.random.default_rng(0).integers(len(prompts), size=(RESAMPLINGS, len(prompts)))
    lines = [
        f"| prompt | tokens |{''.join(f' {name} |' for name in names)}",
        f"|---|---|{'---|' * len(names)}",
    ]
    for index, prompt in enumerate(prompts):
        cells = [f"{values[n, index, 0]:.3f} / {values[n, index, 1]:.3f}" for n in range(len(names))]
        lines.append(f"| `{shown(prompt)}` | {found[index]['tokens']} | {' | '.join(cells)} |")
    lines.append(f"| **mean** | | {' | '.join(mean_of(scored, draws) for scored in values)} |")
    differences = [mean_of(scored - values[0], draws, sign="+") for scored in values[1:]]
    if differences:
        lines.append(f"| less {names[0]} | | | {' | '.join(differences)} |")
    return "\n".join(lines)


def shown(prompt: str) -> str:
    """One line that a table's cell can hold: the end of the prompt, which decides what is predicted."""
    line = " ".join(prompt.split()).replace("|", "\\|")
    return line if len(line) <= 40 else f"...{line[-37:]}"


def mean_of(values: np.ndarray, draws: np.ndarray, *, sign: str = "") -> str:
    """Both scores' means and their 95 % intervals."""
    bounds = np.quantile(values[draws].mean(axis=1), (0.025, 0.975), axis=0)
    means = values.mean(axis=0)
    return " / ".join(
        f"{mean:{sign}.3f} ({low:{sign}.3f} - {high:{sign}.3f})" for mean, low, high in zip(means, *bounds, strict=True)
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, help="what bench.kinds filled")
    made.add_argument("--model", type=Path, default=Path("models/gpt2-stdlib"), help="a GPT-2 or Gemma 2 in a folder")
    made.add_argument("--names", nargs="+", default=["set", "set-finetuned", "clt-all", "clt-all-finetuned"])
    made.add_argument("--prompts", type=Path, default=PROMPTS, help="a JSON list of strings")
    made.add_argument("--environment", type=Path, default=Path(".interop/circuit_tracer"), help="kept there")
    made.add_argument("--json", type=Path, help="write all that was found there too")
    return made


def main() -> None:
    options = parser().parse_args()
    settings = nestcoder.PipelineSettings(model=str(options.model), runs=str(options.folder / "runs"))
    out = options.folder / "exported" / options.model.name
    sets = [exported(settings, name, out) for name in options.names]
    found = scores(environment(options.environment), options.model, sets, options.prompts)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{options.model.name}: replacement / completeness\n")
    print(table(found, options.names, json.loads(options.prompts.read_text())))


if __name__ == "__main__":
    main()
