"""The arguments of every script of this folder: FOLDER with the exports and ``rows.pt``, and MODEL, if any."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

exported = Path(sys.argv[1]).absolute()
rows: dict[str, Any] = torch.load(exported / "rows.pt", weights_only=True)


def model() -> str | None:
    """The folder of the language model; None if none was named, or the tool's own code has no such model."""
    if not sys.argv[2:]:
        return None
    kind = json.loads((Path(sys.argv[2]) / "config.json").read_text())["model_type"]
    return sys.argv[2] if kind == "gpt2" else None


def source(folder: str) -> torch.Tensor:
    """The rows that the dictionary in this folder reads."""
    return rows[rows["reads"].get(folder, "mlp_in")]
