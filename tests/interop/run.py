"""``make interop``: other tools' own loaders on our files, each in an environment of its own, compared with ours.

    python tests/interop/run.py --environments .interop --runs runs --model models/gpt2-stdlib --layer 8 [TOOL ...]

The transcoder of a finished run is exported in every format, whole and one prefix of it, and so is an autoencoder that
is trained here on the run's cache (``exports.py``). Then a script of ``peers/`` is run by each tool's own interpreter
(``environments.py``) on held-out rows and in the model, and what it computed is compared with what we compute
(``comparison.py``). Prints the table of docs/interop.md; exit code 1 where anything differs by more than rounding, or a
tool could not be run.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from comparison import Comparison
from environments import ToolError, environment, run, say, step
from exports import Exported, export

import nestcoder

HERE = Path(__file__).resolve().parent
PEERS = ("saelens", "sparsify", "dictionary_learning", "circuit_tracer")
ROWS = 4096


def main() -> int:
    """The exit code."""
    options = _options()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    exported = export(
        model=options.model, runs=options.runs, layer=options.layer, name=options.name, out=out, keep=options.keep
    )
    rows = _rows(options, exported)
    torch.save(rows, out / "rows.pt")
    comparison = Comparison(exported, rows, model=options.model, layer=options.layer)
    failed: list[str] = []
    for number, peer in enumerate(options.peers, start=1):
        say(f"tool {number} of {len(options.peers)}: {peer}")
        try:
            found = _computed(options, out, peer)
        except ToolError as failure:
            # The others may still be right.
            say(str(failure))
            failed.append(peer)
            continue
        with step(f"{peer}: comparing"):
            comparison.add(found)
    comparison.show()
    for peer in failed:
        print(f"{peer} could not be run: see above")
    return 1 if failed or comparison.wrong or not comparison.right else 0


def _computed(options: argparse.Namespace, out: Path, peer: str) -> dict[str, Any]:
    """What the tool's script found. Raises ToolError."""
    python = environment(options.environments.resolve(), peer)
    script = [str(python), str(HERE / "peers" / f"load_in_{peer}.py"), str(out), str(options.model)]
    with step(f"{peer}: its own loader on our files, on {ROWS:,} rows and in the model"):
        run(script, log=out / f"{peer}.log", what=f"{peer}: loading", cwd=out)
    return torch.load(out / f"found.{peer}.pt", weights_only=True)


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
    if strangers := set(options.peers) - set(PEERS):
        parser.error(f"{', '.join(sorted(strangers))} is no tool that is tried here; there are {', '.join(PEERS)}")
    options.folder = options.runs / options.model.name / f"layer{options.layer:02d}"
    trained = options.folder / "transcoder" / options.name
    if not (trained / "config.json").is_file():
        parser.error(f"there is no trained transcoder in {trained}: run 'make demo' first")
    options.model = options.model.resolve()
    return options


def _rows(options: argparse.Namespace, exported: Exported) -> dict[str, Any]:
    """Held-out rows without special tokens, in both views, and which of them each exported folder reads."""
    view = nestcoder.open_cache(options.folder / "cache").split("held_out")
    kept = torch.from_numpy(view.is_ordinary(view.tokens).nonzero()[0][:ROWS]).numpy()
    seen = {name: view.rows(kept, view=name).source.float() for name in ("mlp_in", "ln2_normalized")}
    target = view.rows(kept).target.float()
    reads = {folder: record["source_site"] for folder, record in exported.records.items()}
    return {
        **seen,
        "mlp_out": target,
        "target": target,
        "reads": reads,
        "layer": options.layer,
        "context": _context(view),
    }


def _context(view: Any) -> torch.Tensor:
    """The first complete context of the held-out text, as the model saw it."""
    start = int((view.position == 0).nonzero()[0][0])
    later = (view.position[start + 1 :] == 0).nonzero()[0]
    end = start + 1 + int(later[0]) if len(later) else len(view)
    return torch.from_numpy(view.tokens[start:end].astype("int64"))[None]


if __name__ == "__main__":
    sys.exit(main())
