"""circuit-tracer's own loader on a cross-layer transcoder of ours, compared with what we compute from the same file.

    python tests/interop/run_clt.py --environments .interop --runs runs --model models/gpt2-stdlib --name clt

As ``run.py`` for dictionaries of one layer: the transcoder ``name`` of all layers of a finished run is exported, whole
and one prefix of it; exit code 1 where features or reconstructions differ by more than rounding.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from environments import environment, run

import nestcoder
from transcoder.formats.peers.circuit_tracer_clt import read_circuit_tracer_clt

HERE = Path(__file__).resolve().parent
ROWS = 1024
CLOSE = 2e-5
"""Of the largest number: two orders of the same float32 sum differ by less."""


def main() -> int:
    """The exit code."""
    options = _options()
    out = options.out.resolve()
    layers = list(range(options.layers))
    settings = nestcoder.load_settings(overrides=[f"model={options.model}", f"runs={options.runs}"])
    sources = [_rows(options, layer) for layer in layers]
    out.mkdir(parents=True, exist_ok=True)
    torch.save(torch.stack(sources), out / "clt_rows.pt")
    folders: dict[str, Path] = {}
    for prefix in (None, options.prefix):
        made = nestcoder.run_export(
            settings, layers, to=["circuit-tracer"], out=out / "clt", name=options.name, prefix=prefix, fresh=True
        )[0]
        folders[Path(made["folder"]).name] = Path(made["folder"])
        _say(made)
    python = environment(options.environments.resolve(), "circuit_tracer")
    script = [str(python), str(HERE / "peers" / "load_clt_in_circuit_tracer.py"), str(out)]
    run(script, log=out / "clt.log", what="circuit-tracer: cross-layer transcoders", cwd=out)
    found = torch.load(out / "found.clt.pt", weights_only=True)
    wrong = 0
    for name, computed in found.items():
        if not isinstance(computed, dict):
            continue
        ours = read_circuit_tracer_clt(folders[name.partition(" ")[0]])
        features = torch.stack([ours.piece(number).encode(source) for number, source in enumerate(sources)])
        output = ours.reconstructions(sources)[:, :, -1]
        same = ((features > 0) == (computed["features"] > 0)).all(dim=2).float().mean()
        far = [
            float((a - b).abs().max() / a.abs().max())
            for a, b in ((features, computed["features"]), (output, computed["output"]))
        ]
        print(f"{found['peer']} {name}: the same features fire on {same:.2%}; apart by {far[0]:.1e}, {far[1]:.1e}")
        wrong += same < 0.999 or max(far) > CLOSE
    print("equal" if not wrong else f"{wrong} differ")
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=Path, default=Path(".interop"))
    parser.add_argument("--out", type=Path, default=Path(".interop/exported"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--model", type=Path, default=Path("models/gpt2-stdlib"))
    parser.add_argument("--layers", type=int, default=12, help="how many the model has")
    parser.add_argument("--name", default="clt")
    parser.add_argument("--prefix", type=int, default=288)
    return parser.parse_args()


def _rows(options: argparse.Namespace, layer: int) -> torch.Tensor:
    """Sources of a layer's first held-out rows, as the file reads them."""
    view = nestcoder.open_cache(options.runs / options.model.name / f"layer{layer:02d}" / "cache").split("held_out")
    kept = torch.from_numpy(view.is_ordinary(view.tokens).nonzero()[0][:ROWS]).numpy()
    return view.rows(kept, view="ln2_normalized").source.float()


def _say(made: dict) -> None:
    """The mean over layers, before and after."""
    held_out = [record["held_out"] for record in made["layers"].values()]
    means = {
        f"{name} {when}": sum(record[when][name] for record in held_out) / len(held_out)
        for name in ("fvu", "l0")
        for when in ("before", "after")
    }
    print(made["folder"], json.dumps({key: round(value, 4) for key, value in means.items()}))


if __name__ == "__main__":
    sys.exit(main())
