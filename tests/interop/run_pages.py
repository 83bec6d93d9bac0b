"""``make interop-features``: other tools' own readers on our feature evidence, compared with the evidence.

    python tests/interop/run_pages.py --environments .interop --runs runs --model models/gpt2-stdlib --layer 8

The evidence of a finished run (``nestcoder features``) is exported for each tool, then a script of ``peers/`` lets the
tool read it: circuit-tracer's model of a page and its viewer's JavaScript (node), delphi's LatentDataset, Neuronpedia's
import into a PostgreSQL with Neuronpedia's tables (node; its repository is cloned, or given by ``--neuronpedia``).
Exit code 1 where a field differs.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nestcoder
from common.run_layout import dictionaries_of_layer
from evaluate.features.evidence import Evidence, read_evidence
from evaluate.features.text.page import contexts, feature_page
from transcoder.sparse_code import entries_of

HERE = Path(__file__).resolve().parent
TOOLS = ("circuit-tracer", "delphi", "neuronpedia")
NEURONPEDIA = "https://github.com/hijohnnylin/neuronpedia"
COMMIT = "ebb8426f"
HALF = 2**-10
"""delphi keeps values as float16: they differ by less than this share."""


def main() -> int:
    """The exit code."""
    options = _options()
    out = options.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    evidence = read_evidence(options.folder / "features" / options.name)
    wrong = 0
    for tool in options.tools:
        _export(options, tool, out / tool)
        problems = {"circuit-tracer": _circuit_tracer, "delphi": _delphi, "neuronpedia": _neuronpedia}[tool](
            options, out, evidence
        )
        wrong += len(problems)
        print("\n".join(f"  {problem}" for problem in problems[:20]) or "  all of it agrees with the evidence")
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=Path(".interop"), help="an environment a tool, kept there")
    parser.add_argument("--out", type=Path, default=Path(".interop/features"), help="where the exports go")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--model", type=Path, default=Path("models/gpt2-stdlib"))
    parser.add_argument("--layer", type=int, default=8)
    parser.add_argument("--name", default="main")
    parser.add_argument("--neuronpedia", type=Path, help=f"a clone of {NEURONPEDIA}")
    parser.add_argument("tools", nargs="*", default=list(TOOLS), help=f"which of {', '.join(TOOLS)}")
    options = parser.parse_args()
    options.folder = options.runs / options.model.name / f"layer{options.layer:02d}"
    options.environments = options.environments.resolve()
    if not (options.folder / "features" / options.name / "evidence.json").is_file():
        parser.error(
            f"there is no evidence in {options.folder}: run 'nestcoder features --layer {options.layer}' first"
        )
    return options


def _export(options: argparse.Namespace, tool: str, folder: Path) -> None:
    settings = ["--model", str(options.model), "--set", f"runs={options.runs}"]
    command = ["features", "export", "--to", tool, "--layer", str(options.layer), "--name", options.name, str(folder)]
    subprocess.run([sys.executable, "-m", "nestcoder", *settings, *command], check=True)


def _run(options: argparse.Namespace, tool: str, script: str, *arguments: str) -> None:
    """Run a script of ``peers/`` in the tool's environment, which is made if it is missing."""
    environment = options.environments / tool
    wanted = "".join(path.read_text() for path in sorted((HERE / "requirements").glob(f"{tool}.*")))
    done = environment / "features.txt"
    if not done.is_file() or done.read_text() != wanted:
        _install(environment, tool)
        done.write_text(wanted)
    subprocess.run([str(environment / "bin" / "python"), str(HERE / "peers" / script), *arguments], check=True)


def _install(environment: Path, tool: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin" / "pip"), "install", "--quiet"]
    requirements = HERE / "requirements" / tool
    subprocess.run([*pip, "-r", f"{requirements}.txt"], check=True)
    # delphi asks for vllm, which its reader never imports and which is larger than everything else here.
    if (alone := Path(f"{requirements}.alone.txt")).is_file():
        subprocess.run([*pip, "--no-deps", "-r", str(alone)], check=True)
    if (node := Path(f"{requirements}.npm.txt")).is_file():
        packages = node.read_text().split()
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", *packages], check=True, cwd=environment)


def _circuit_tracer(options: argparse.Namespace, out: Path, evidence: Evidence) -> list[str]:
    _run(options, "circuit_tracer", "read_pages_in_circuit_tracer.py", str(out))
    found = json.loads((out / "found.circuit_tracer.json").read_text())
    pages = found["pages"][str(evidence.layer)]
    print(f"{found['peer']}: {len(pages):,} pages by its model and by its viewer")
    alive = np.flatnonzero(evidence.arrays["firings"]).tolist()
    problems = [] if [page["index"] for page in pages] == alive else ["other features than those that fire"]
    for page in pages:
        known = feature_page(evidence, page["index"])
        groups = [kind for kind in known["contexts"] if kind != "silent" and known["contexts"][kind]]
        effects = known["logits"] or {"raised": [], "lowered": []}
        shown = [[(entry["tokens"], entry["tokens_acts_list"], entry["train_token_ind"]) for entry in group["examples"]]
                 for group in page["examples_quantiles"]]  # fmt: skip
        stated = [
            [(entry["tokens"], entry["values"], entry["at"]) for entry in known["contexts"][kind]] for kind in groups
        ]
        agree = {
            "contexts": shown == stated,
            "act_max": page["act_max"] == known["largest"],
            "frequency": page["activation_frequency"] == float(f"{known['density']:.4g}"),
            "raised": page["top_logits"] == [entry["token"] for entry in effects["raised"]],
            "lowered": page["bottom_logits"] == [entry["token"] for entry in effects["lowered"]],
        }
        problems += [f"feature {page['index']}: {name}" for name, is_so in agree.items() if not is_so]
    return problems


def _delphi(options: argparse.Namespace, out: Path, evidence: Evidence) -> list[str]:
    """Every firing that delphi reads against the transcoder's own code of every row."""
    _run(options, "delphi", "read_latents_in_delphi.py", str(out), str(options.model.resolve()))
    found = torch.load(out / "found.delphi.pt", weights_only=True)
    firings, records = found["firings"], found["records"]
    entries = sum(len(firing["activations"]) for firing in firings.values())
    print(f"{found['peer']}: {len(firings):,} latents, {entries:,} firings, {len(records):,} records of examples")
    view = nestcoder.open_cache(options.folder / "cache").split(evidence.head["settings"]["split"])
    rows = view.rows(slice(0, evidence.head["rows"]))
    cells = _cells(rows.position)
    stored = torch.from_numpy(rows.tokens).long()
    problems = [] if torch.equal(found["tokens"][cells[:, 0], cells[:, 1]], stored) else ["other tokens"]

    trained = _trained(options)
    code = trained.sparse_code(rows.source)
    # delphi leaves out values that are 0 in float16.
    counts = torch.from_numpy(view.is_ordinary(rows.tokens))[code.rows().long()] & (code.values > 1e-5)
    code = entries_of(code, counts)
    order = code.features.long().argsort(stable=True)
    for feature, own in enumerate(order.split(code.features.long().bincount(minlength=trained.dict_size).tolist())):
        read = firings.get(feature, {"locations": torch.zeros(0, 3).long(), "activations": torch.zeros(0)})
        is_same = torch.equal(read["locations"][:, :2], cells[code.rows()[own].long()])
        if not is_same or not torch.allclose(read["activations"].float(), code.values[own], rtol=HALF, atol=1e-6):
            problems.append(f"feature {feature}: other firings")
    for feature, record in records.items():
        largest = float(evidence.arrays["largest"][feature])
        if abs(float(record["activations"].max()) - largest) > HALF * largest:
            problems.append(f"feature {feature}: delphi's strongest example is not the strongest")
    return problems if records else [*problems, "delphi made no record"]


def _trained(options: argparse.Namespace) -> nestcoder.Transcoder:
    """The layer's transcoder, or its features of a cross-layer one."""
    (folder,) = dictionaries_of_layer(options.runs, str(options.model), options.layer, options.name)
    if folder.is_relative_to(options.folder):
        return nestcoder.load_transcoder(folder)
    dictionary = nestcoder.load_cross_layer(folder)
    return dictionary.within(dictionary.layers.index(options.layer))


def _cells(position: np.ndarray) -> torch.Tensor:
    """Sequence and position of every row: a sequence begins where positions do not go on."""
    begins = np.diff(position.astype(np.int64), prepend=-1) != 1
    begins[0] = True
    return torch.from_numpy(np.stack([np.cumsum(begins) - 1, position.astype(np.int64)], axis=1))


def _neuronpedia(options: argparse.Namespace, out: Path, evidence: Evidence) -> list[str]:
    repository = options.neuronpedia or options.environments / "neuronpedia.git"
    if not repository.exists():
        subprocess.run(["git", "clone", "--quiet", "--bare", NEURONPEDIA, str(repository)], check=True)
    _run(options, "neuronpedia", "import_into_neuronpedia.py", str(out), str(repository.resolve()), COMMIT)
    found = json.loads((out / "found.neuronpedia.json").read_text())
    lines: dict[str, Any] = found["lines"]
    print(f"{found['peer']}, {found['migrations']} migrations: {lines}, {found['fields']:,} fields compared")
    problems = [f"no column: {name}" for name in found["unknown"]]
    problems += [f"refused: {feature}" for feature in found["refused"]] + [
        f"stored otherwise: {feature}" for feature in found["different"]
    ]
    kinds = [name.removeprefix("context_") for name in evidence.arrays if name.startswith("context_")]
    shown = [kind for kind in kinds if kind == "strongest" or kind.startswith("interval_")]
    alive = np.flatnonzero(evidence.arrays["firings"]).tolist()
    stated = sum(len(contexts(evidence, feature, kind)) for feature in alive for kind in shown)
    wanted = {"Neuron": evidence.dict_size, "Activation": stated}
    return problems + [
        f"{table}: {lines.get(table)} rows, not {count}" for table, count in wanted.items() if lines.get(table) != count
    ]


if __name__ == "__main__":
    sys.exit(main())
