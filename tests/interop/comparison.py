"""What a tool computed from our files, beside what we compute: on rows, and in the language model."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from exports import Exported
from transformers import AutoModelForCausalLM

import nestcoder
from transcoder.formats.foreign import Wanted, read_foreign
from transcoder.transcoder import Transcoder

CLOSE = 2e-5
"""Of the largest number: two orders of the same float32 sum differ by less."""
SAME_SUPPORT = 0.999
"""Share of rows whose features are the same ones: of two nearly equal pre-activations either may be selected."""
SAME_FVU = 1e-5
SAME_LOSS = 1e-4
"""Of a cross-entropy in nats, by another implementation of the same model."""
RESTORED = 1e-3
"""Of a logit: the difference that another order of the same sums makes after the following layers."""
HEADING = (
    "tool", "file", "class", "exactness", "rows with the same features", "features differ by", "output by",
    "FVU there", "here", "L0", "cross-entropy there", "here", "error term restores logits to",
)  # fmt: skip


@dataclass
class Comparison:
    """Lines of the table, and how many of them are right."""

    exported: Exported
    rows: dict[str, Any]
    model: Path
    layer: int
    lines: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    right: int = 0
    wrong: int = 0

    def add(self, found: dict[str, Any]) -> None:
        """Take what one tool found, by the folders that it read."""
        in_model = found.get("in_model") or {}
        for file, computed in found.items():
            if isinstance(computed, dict) and "features" in computed:
                folder = file.partition(" ")[0]
                on_rows, rows_right = self._on_rows(folder, computed)
                in_text, text_right = self._in_model(folder, in_model.get(folder))
                is_right = rows_right and text_right
                self.lines.append([str(found["peer"]), file, *on_rows, *in_text, "" if is_right else "WRONG"])
                self.right += is_right
                self.wrong += not is_right
        if "clean" in in_model:
            self.notes.append(f"{found['peer']}: cross-entropy {in_model['clean']['cross_entropy']:.4f} clean")
        if found.get("note"):
            self.notes.append(f"{found['peer']}: {found['note']}")

    def show(self) -> None:
        """Print the table, the notes, and the counts."""
        print("\n".join(f"| {' | '.join(line)} |" for line in (HEADING, ["---"] * len(HEADING), *self.lines)))
        for note in self.notes:
            print(note)
        print(f"{self.right} passed, {self.wrong} failed")

    def _on_rows(self, folder: str, computed: dict[str, Any]) -> tuple[list[str], bool]:
        """Cells, and whether the tool computes what we do: on exact files what the dictionary itself does, on others
        what we read from the file."""
        record = self.exported.records[folder]
        read = self._read(folder, computed["features"].shape[1])
        is_whole = record["exactness"].startswith("exact") and record["prefix"] is None
        ours = self.exported.made_of(folder) if is_whole else read
        source = self._source(folder, ours)
        features, output = ours.encode(source), ours(source)
        same = float(((features > 0) == (computed["features"] > 0)).all(dim=1).float().mean())
        limit = CLOSE * float(features.abs().max())
        close = float(((features - computed["features"]).abs().amax(dim=1) <= limit).float().mean())
        fvu = [_fvu(values, self.rows["target"]) for values in (computed["output"], output)]
        cells = [
            computed["class"],
            record["exactness"],
            f"{same:.2%}",
            f"{_far(features, computed['features']):.1e}",
            f"{_far(output, computed['output']):.1e}",
            *(f"{value:.5f}" for value in fvu),
            f"{float((computed['features'] > 0).sum(dim=1).float().mean()):.2f}",
        ]
        is_right = same >= SAME_SUPPORT and close >= SAME_SUPPORT and abs(fvu[0] - fvu[1]) < SAME_FVU
        return cells, is_right and computed.get("silent", True)

    def _source(self, folder: str, ours: Transcoder) -> torch.Tensor:
        """The rows that our side reads: an autoencoder its target, a transcoder its own view."""
        site = self.exported.records[folder]["source_site"]
        return self.rows[ours.source_view if site in ("mlp_in", "ln2_normalized") else site]

    def _in_model(self, folder: str, numbers: dict[str, float] | None) -> tuple[list[str], bool]:
        """The tool's own loss with the dictionary in the model beside ours, and what its error term restores."""
        if numbers is None:
            return ["", "", ""], True
        there, here = numbers["cross_entropy"], self._loss(folder)
        restored = numbers.get("largest_difference_with_error_term")
        is_right = abs(there - here) < SAME_LOSS and (restored is None or restored < RESTORED)
        return [f"{there:.4f}", f"{here:.4f}", "" if restored is None else f"{restored:.0e}"], is_right

    def _loss(self, folder: str) -> float:
        """Cross-entropy of the context with what we read from the file, by ``nestcoder.splice``."""
        dictionary, tokens = self._read(folder), self.rows["context"]
        with torch.no_grad(), nestcoder.splice(self._language_model, {self.layer: dictionary}, special_ids=()):
            logits = self._language_model(tokens).logits
        return float(torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]))

    @cached_property
    def _language_model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32).eval()

    def _read(self, folder: str, dict_size: int | None = None) -> Transcoder:
        return read_foreign(self.exported.out / folder, Wanted(self.layer, dict_size=dict_size, l0=1.0, force=True))


def _far(ours: torch.Tensor, computed: torch.Tensor) -> float:
    return float((ours - computed).abs().max())


def _fvu(output: torch.Tensor, target: torch.Tensor) -> float:
    errors = (target - output).double().square().sum()
    return float(errors / (target - target.mean(dim=0)).double().square().sum())
