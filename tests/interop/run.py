"""``make interop``: other tools' own loaders on our files, each in an environment of its own, compared with ours.

    python tests/interop/run.py --environments .interop --runs runs --model models/gpt2-stdlib --layer 8

For every format: the transcoder of a finished run is exported, whole and one prefix of it, then a script of ``peers/``
is run by the tool's own interpreter on held-out rows, and what it computed is held against what we compute. Prints the
table of docs/interop.md; exit code 1 where features or reconstructions differ by more than rounding.
"""

import argparse
import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import nestcoder
from transcoder.formats.foreign import WRITERS, Wanted, read_foreign
from transcoder.transcoder import Transcoder

HERE = Path(__file__).resolve().parent
PEERS = ("saelens", "sparsify", "dictionary_learning", "circuit_tracer")
ROWS = 4096
CLOSE = 2e-5
"""Of the largest number: two orders of the same float32 sum differ by less."""
SAME_SUPPORT = 0.999
"""Share of rows whose features are the same ones: of two nearly equal pre-activations either may be the last."""


def main() -> int:
    """The exit code."""
    options = _options()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    settings = nestcoder.load_settings(overrides=[f"model={options.model}", f"runs={options.runs}"])
    kept = out / "records.json"
    exports = json.loads(kept.read_text()) if options.keep else _export(settings, options, out)
    trained = nestcoder.load_transcoder(options.transcoder)
    rows = _rows(options)
    torch.save(rows, out / "rows.pt")
    lines: list[list[str]] = []
    wrong = 0
    for peer in options.peers:
        python = _environment(options.environments.resolve(), peer)
        script = [str(python), str(HERE / "peers" / f"load_in_{peer}.py"), str(out), str(options.model)]
        subprocess.run(script, check=True, cwd=out)
        found = torch.load(out / f"found.{peer}.pt", weights_only=True)
        for place, theirs in found.items():
            if isinstance(theirs, dict) and "features" in theirs:
                line, is_right = _compared(out, place, theirs, rows, exports, trained, options)
                lines.append([str(found["peer"]), *line])
                wrong += not is_right
        if found.get("note"):
            print(f"note: {found['peer']}: {found['note']}")
        wrong += _in_model(found, options, rows["context"])
    heading = ["tool", "file", "class", "", "rows with the same features", "features", "output", "FVU", "before"]
    print("\n".join(f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(heading), *lines)))
    print(f"{len(lines) - wrong} passed, {wrong} failed")
    return 1 if wrong or not lines else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=Path, default=Path(".interop"), help="an environment a tool, kept there")
    parser.add_argument("--out", type=Path, default=Path(".interop/exported"), help="where the exports go")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--model", type=Path, default=Path("models/gpt2-stdlib"))
    parser.add_argument("--layer", type=int, default=8)
    parser.add_argument("--name", default="main")
    parser.add_argument("--keep", action="store_true", help="take the exports of the last time as they are")
    parser.add_argument("peers", nargs="*", default=list(PEERS), help=f"which of {', '.join(PEERS)}")
    options = parser.parse_args()
    options.folder = options.runs / options.model.name / f"layer{options.layer:02d}"
    options.transcoder = options.folder / "transcoder" / options.name
    if not (options.transcoder / "config.json").is_file():
        parser.error(f"there is no trained transcoder in {options.transcoder}: run 'make demo' first")
    options.model = options.model.resolve()
    return options


def _export(settings: Any, options: argparse.Namespace, out: Path) -> dict[str, dict[str, Any]]:
    """Everything that can be written, whole and cut to the second prefix; the records, by folder."""
    prefixes = nestcoder.load_transcoder(options.transcoder).prefixes
    second = {"prefix": prefixes[min(1, len(prefixes) - 1)]}
    wishes: list[tuple[Path, list[str], dict[str, Any]]] = [
        (out, list(WRITERS), {}),
        (out, ["saelens", "saelens-jumprelu", "sparsify", "circuit-tracer"], second),
        (out / "normalised", ["saelens", "saelens-jumprelu"], {"source_view": "ln2_normalized"}),
    ]
    records: dict[str, dict[str, Any]] = {}
    for folder, to, more in wishes:
        for result in nestcoder.run_export(
            settings, [options.layer], to=to, out=folder, name=options.name, device="cpu", fresh=True, **more
        ):
            place = str(Path(result["folder"]).relative_to(out))
            records[place] = result["layers"][str(options.layer)]
    (out / "records.json").write_text(json.dumps(records, indent=1))
    return records


def _rows(options: argparse.Namespace) -> dict[str, Any]:
    """Held-out rows without special tokens, in both views."""
    view = nestcoder.open_cache(options.folder / "cache").split("held_out")
    kept = torch.from_numpy(view.is_ordinary(view.tokens).nonzero()[0][:ROWS]).numpy()
    seen = {name: view.rows(kept, view=name).source.float() for name in ("mlp_in", "ln2_normalized")}
    target = view.rows(kept).target.float()
    return {**seen, "target": target, "layer": options.layer, "context": _context(view)}


def _context(view: Any) -> torch.Tensor:
    """The first whole context of the held-out text, as the model saw it."""
    start = int((view.position == 0).nonzero()[0][0])
    later = (view.position[start + 1 :] == 0).nonzero()[0]
    end = start + 1 + int(later[0]) if len(later) else len(view)
    return torch.from_numpy(view.tokens[start:end].astype("int64"))[None]


def _in_model(found: dict[str, Any], options: argparse.Namespace, tokens: torch.Tensor) -> int:
    """Print what the tool's own splice costs beside ours; how many whole and exact files cost another number."""
    spliced = found.get("in_model")
    if not spliced:
        return 0
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    dictionary = nestcoder.load_transcoder(options.transcoder)
    with torch.no_grad(), nestcoder.splice(model, {options.layer: dictionary}, special_ids=()):
        loss = torch.nn.functional.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:])
    print(f"cross-entropy of {tokens.shape[1]} tokens, spliced by us: {float(loss):.4f}")
    wrong = 0
    # In the model these must cost what the transcoder costs.
    hook = f"saelens/blocks.{options.layer}.mlp_out"
    exact_wholes = (hook, f"normalised/{hook}", f"sparsify/h.{options.layer}.mlp")
    for place, numbers in spliced.items():
        print(f"  by {found['peer']}, {place}: " + ", ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
        if place in exact_wholes:
            wrong += abs(numbers["cross_entropy"] - float(loss)) > 1e-4
        wrong += numbers.get("largest_difference_with_error_term", 0) > 1e-3
    return wrong


def _environment(folder: Path, peer: str) -> Path:
    """The interpreter of the tool's environment, made where it is not there or of other versions."""
    python = folder / peer / "bin" / "python"
    wanted = (HERE / "requirements" / f"{peer}.txt").read_text()
    done = folder / peer / "requirements.txt"
    if not python.is_file() or not done.is_file() or done.read_text() != wanted:
        venv.create(folder / peer, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "-r", str(HERE / "requirements" / f"{peer}.txt")]
        subprocess.run(install, check=True)
        done.write_text(wanted)
    return python


def _compared(
    out: Path,
    place: str,
    theirs: dict[str, Any],
    rows: dict[str, Any],
    exports: dict[str, dict[str, Any]],
    trained: Transcoder,
    options: argparse.Namespace,
) -> tuple[list[str], bool]:
    """A line of the table, and whether the tool computes what we do: on exact files what the transcoder itself does,
    on others what we read from the file."""
    record = exports[place.partition(" ")[0]]
    read = read_foreign(
        out / place.partition(" ")[0],
        Wanted(options.layer, dict_size=theirs["features"].shape[1], l0=1.0, force=True),
    )
    exact = record["exactness"].startswith("exact") and record["prefix"] is None
    ours = trained if exact else read
    source = rows["mlp_in"] if exact else rows[read.source_view]
    features, output = ours.encode(source), ours(source)
    same = ((features > 0) == (theirs["features"] > 0)).all(dim=1).float().mean()
    far = [_far(features, theirs["features"]), _far(output, theirs["output"])]
    close = list(_close_rows(features, theirs["features"]))
    fvu = [_fvu(values, rows["target"]) for values in (output, theirs["output"])]
    line = [
        place,
        theirs["class"],
        record["exactness"],
        f"{same:.2%}",
        f"{far[0]:.1e}",
        f"{far[1]:.1e}",
        f"{fvu[1]:.5f}",
        f"{fvu[0]:.5f}",
    ]
    is_right = bool(same >= SAME_SUPPORT) and sum(close) >= SAME_SUPPORT * len(close) and theirs.get("silent", True)
    return line, is_right and abs(fvu[0] - fvu[1]) < 1e-5


def _far(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max())


def _close_rows(ours: torch.Tensor, theirs: torch.Tensor) -> Iterator[bool]:
    limit = CLOSE * float(ours.abs().max())
    yield from ((ours - theirs).abs().amax(dim=1) <= limit).tolist()


def _fvu(output: torch.Tensor, target: torch.Tensor) -> float:
    errors = (target - output).double().square().sum()
    return float(errors / (target - target.mean(dim=0)).double().square().sum())


if __name__ == "__main__":
    sys.exit(main())
