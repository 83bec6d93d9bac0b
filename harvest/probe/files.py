"""The files of a probe: what its folder has when it is complete, and the pieces of an unfinished one.

The folder, for each layer:

    probe.safetensors   source (words, d_source), target (words, d_target), bfloat16; letter (words,) int64, 0 for a;
                        split (words,) uint8, 0 train, 1 test
    probe.json          version, kind, words, prompt, examples, site_source, site_target, model, model_parameters,
                        layer, fingerprint of the activation cache that it belongs to, seed, weights (size and hash of
                        probe.safetensors), checksum of all these
    pieces/             finished pieces while the probe is not complete; the same command goes on from there
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cache.format.manifest import Manifest
from common import disk
from common.hashing import hash_bytes
from common.run_layout import PROBE_FILE, PROBE_WEIGHTS_FILE
from common.sealed.document import with_checksum
from harvest.config import Site
from harvest.model.source import ModelSource
from harvest.probe.words import PROMPT, SEED, ProbeWords
from harvest.request import HarvestRequest

VERSION = 2
"""Of probe.json. Another version is refused by its reader."""
KIND = "first-letter"
PIECE_WORDS = 512
"""Words of a piece, which is saved at once: about ten seconds of a small model on a CPU."""
_PIECES = "pieces"


@dataclass(frozen=True)
class Probe:
    """The request with its words and prompts, and the cache of each layer; its folder of each layer in ``folders``."""

    request: HarvestRequest
    folders: dict[int, Path]
    source: ModelSource
    words: ProbeWords
    contexts: list[Int[Tensor, " pos"]]
    manifests: dict[int, Manifest]

    def about(self, layer: int) -> dict[str, Any]:
        """The contents of the layer's ``probe.json``, without the hashes."""
        settings = self.request.settings
        return {
            "version": VERSION,
            "kind": KIND,
            "words": list(self.words.words),
            "prompt": PROMPT,
            "examples": settings.probe_examples,
            "site_source": settings.source,
            "site_target": settings.target,
            "model": self.source.name,
            "model_parameters": self.source.parameters,
            "layer": layer,
            "fingerprint": self.manifests[layer].fingerprint,
            "seed": SEED,
        }

    def is_finished(self, layer: int) -> bool:
        """Whether the layer's folder has this same probe; the model's name may be another path to it."""
        try:
            folder = self.folders[layer]
            found: Any = json.loads((folder / PROBE_FILE).read_bytes())
            sealed = with_checksum({key: value for key, value in found.items() if key != "checksum"}) == found
            size = (folder / PROBE_WEIGHTS_FILE).stat().st_size
            about = {key: found.get(key) for key in self.about(layer)}
            same = {**about, "model": self.source.name} == self.about(layer)
            return sealed and same and found["weights"]["bytes"] == size
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False

    @property
    def missing(self) -> list[int]:
        """The layers whose probe is not complete."""
        return [layer for layer in self.request.layers if not self.is_finished(layer)]

    @property
    def starts(self) -> range:
        """The first context of every piece."""
        return range(0, len(self.contexts), PIECE_WORDS)

    def piece(self, start: int) -> list[Int[Tensor, " pos"]]:
        """The contexts of the piece that begins with context ``start``."""
        return self.contexts[start : start + PIECE_WORDS]

    def has_piece(self, layer: int, start: int) -> bool:
        """Whether the layer's folder has this piece, undamaged and of this same probe."""
        return self._read_piece(layer, start) is not None

    def write_piece(self, layer: int, start: int, rows: Mapping[Site, Float[Tensor, "words d"]]) -> None:
        """Save the rows of a piece, by site."""
        tensors = {site: tensor.contiguous() for site, tensor in rows.items()}
        disk.write_file(self._piece_path(layer, start), save(tensors, {"about": json.dumps(self.about(layer))}))

    def _piece_path(self, layer: int, start: int) -> Path:
        return self.folders[layer] / _PIECES / f"{start:06d}.safetensors"

    def _read_piece(self, layer: int, start: int) -> dict[str, Tensor] | None:
        """A piece of this same probe; None when it is missing, damaged or of another."""
        try:
            data = self._piece_path(layer, start).read_bytes()
            # safetensors: 8 bytes with the length of the header, then the header.
            header: Any = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            tensors = load(data)
            same = json.loads(header["__metadata__"]["about"]) == self.about(layer)
            words = len(self.piece(start))
            complete = set(tensors) == set(self.request.settings.sites) and all(
                len(t) == words for t in tensors.values()
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, RecursionError):
            return None
        return tensors if same and complete else None

    def complete(self, layer: int) -> None:
        """Join a layer's pieces into the probe, and remove them."""
        settings = self.request.settings
        pieces = [self._read_piece(layer, start) for start in self.starts]
        rows = {site: torch.cat([piece[site] for piece in pieces if piece]) for site in settings.sites}
        self._write(layer, rows[settings.source], rows[settings.target])
        disk.remove(self.folders[layer] / _PIECES)

    def _write(
        self, layer: int, source: Float[Tensor, "words d_source"], target: Float[Tensor, "words d_target"]
    ) -> None:
        tensors = {
            "source": source.contiguous(),
            "target": target.contiguous(),
            "letter": torch.tensor(self.words.letters),
            "split": torch.tensor(self.words.test, dtype=torch.uint8),
        }
        data = save(tensors)
        weights = {"bytes": len(data), "xxh3_128": hash_bytes(data)}
        sealed = with_checksum(self.about(layer) | {"weights": weights})
        folder = self.folders[layer]
        disk.make_folder(folder)
        disk.write_file(folder / PROBE_WEIGHTS_FILE, data)
        # Last: without its description, a probe that a crash cut short is not read.
        disk.write_file(folder / PROBE_FILE, json.dumps(sealed, indent=1).encode() + b"\n")


def remove_probe(folder: Path) -> None:
    """Remove a probe, first its description, so that a half-removed probe is not read."""
    for name in (PROBE_FILE, PROBE_WEIGHTS_FILE, _PIECES):
        disk.remove(folder / name)
