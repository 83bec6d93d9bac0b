"""A transcoder of a few numbers in every format, and what other tools' own loaders computed from it.

    python tests/interop/golden.py --environments .interop        writes golden.json again, with the tools

The suite has no other tool: it holds our writers against the bytes that the tools loaded then, and our arithmetic
against theirs (test_golden.py).
"""

import argparse
import hashlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from transcoder.formats.about import About
from transcoder.formats.foreign import WRITERS
from transcoder.rules.batchtopk import BatchTopK
from transcoder.rules.rule import Rule
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden.json"
_LAZY = "lazy=False"
WIDTH = 8
DICT_SIZE = 16
PEERS = ("saelens", "sparsify", "dictionary_learning", "circuit_tracer")


def numbers(*shape: int, phase: float) -> torch.Tensor:
    """The same in every release of every library."""
    count = torch.tensor(shape).prod()
    steps = torch.arange(int(count), dtype=torch.float64)
    return (steps * 12.9898 + phase).sin().float().reshape(shape)


def transcoder(rule: Rule) -> Transcoder:
    """With prefixes, biases, and rows that are not unit vectors."""
    arrays = (numbers(DICT_SIZE, WIDTH, phase=0), numbers(DICT_SIZE, phase=1), numbers(DICT_SIZE, WIDTH, phase=2))
    return Transcoder(*arrays, numbers(WIDTH, phase=3), rule=rule, prefixes=(4, DICT_SIZE))


def rules() -> dict[str, list[Rule]]:
    """The rules that each format is written with, each once."""
    thresholds = JumpReLU(numbers(DICT_SIZE, phase=4).abs())
    made: dict[str, Rule] = {"topk": TopK(3), "jumprelu": thresholds, "batchtopk": BatchTopK(3, 0.25)}
    return {name: [made[rule] for rule in made if rule in writer.rules] for name, writer in WRITERS.items()}


def source() -> torch.Tensor:
    return numbers(12, WIDTH, phase=5)


def write(folder: Path) -> dict[str, tuple[str, Rule, Path]]:
    """Every format and rule in a folder of its own; (format, rule, the folder), by the folder's path."""
    written: dict[str, tuple[str, Rule, Path]] = {}
    for name, kinds in rules().items():
        writer = WRITERS[name]
        for rule in kinds:
            made = transcoder(rule)
            site = writer.view or "mlp_in"
            about = About("toy", 1, site, "mlp_out", "gpt2", layers_of_model=2, record={"prefixes": [4, 16]})
            tool, _, rest = writer.folder(about, DICT_SIZE, 3.0).partition("/")
            own_folder = folder / f"{tool}-{rule.name}" / rest
            if writer.frame:
                writer.frame(own_folder, [about], made)
            writer.write(own_folder, made, about)
            written[own_folder.relative_to(folder).as_posix()] = (writer.format, rule, own_folder)
    return written


def digests(folder: Path) -> dict[str, str]:
    """Of every file that has the same bytes in every release: PyTorch's own archives do not."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in {".pt", ".lock"})
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def _recorded(found: dict[str, Any], name: str) -> dict[str, Any]:
    """What a tool computed from one folder, to six digits."""
    first = found.get(name) or found[f"{name} {_LAZY}"]
    return {
        "tool": found["peer"],
        "class": first["class"],
        "features": [[round(value, 6) for value in row] for row in first["features"].tolist()],
        "output": [[round(value, 6) for value in row] for row in first["output"].tolist()],
    }


def main() -> None:
    """Run the tools, and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=Path, default=Path(".interop"))
    environments = parser.parse_args().environments.resolve()
    outputs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        written = write(folder)
        files = digests(folder)
        rows = {"mlp_in": source(), "ln2_normalized": source(), "target": source(), "reads": {}, "layer": 1}
        torch.save(rows, folder / "rows.pt")
        for peer in PEERS:
            python = str(environments / peer / "bin" / "python")
            script = [python, str(HERE / "peers" / f"load_in_{peer}.py"), str(folder)]
            subprocess.run(script, check=True)
            found = torch.load(folder / f"found.{peer}.pt", weights_only=True)
            loaded = {name.partition(" ")[0] for name in found}
            outputs |= {name: _recorded(found, name) for name in written if name in loaded}
    assert set(outputs) == set(written), "a tool loaded every file"
    GOLDEN.write_text(json.dumps({"files": files, "outputs": outputs}) + "\n")


if __name__ == "__main__":
    main()
