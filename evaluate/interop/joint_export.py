"""Writes a cross-layer transcoder for circuit-tracer, the one other tool that has a form for it here.

    OUT/circuit_tracer/...        what it loads; OUT/circuit_tracer-p288/... where one prefix was asked for
    .../EXPORT.json               what was done; FVU and L0 of every layer before and after, on held-out rows

As with dictionaries of one layer, top-k becomes a threshold for every feature, everything that may be refused is
refused first, and what was written is read back before it takes its place.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.config import CacheSettings
from common import disk
from common.device import choose_device
from common.errors import NumericalError, UsageError
from common.norm import NormAffine
from common.processes import locks
from common.progress import Progress
from evaluate.config import EvaluateSettings
from evaluate.interop.convert import reading
from evaluate.interop.export import EXPORT_FILE, LOCK, TOLERANCE, VERSION, Planned, now, refuse_another
from evaluate.interop.layer import ExportRequest
from evaluate.interop.thresholds import calibration_source, matched_thresholds
from evaluate.joint.opened import JointSource, Opened
from evaluate.joint.rows import JointRows
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.about import About
from transcoder.formats.peers.circuit_tracer_clt import read_circuit_tracer_clt, write_circuit_tracer_clt
from transcoder.rules.threshold import JumpReLU
from transcoder.transcoder import SourceView, Transcoder

FORMAT = "circuit-tracer"
_CHECKED_ROWS = 256


def export_cross_layer(
    source: JointSource,
    request: ExportRequest,
    *,
    device: str,
    progress: Progress,
    cache_settings: CacheSettings | None = None,
) -> list[dict[str, Any]]:
    """What EXPORT.json says, with its ``folder``. Raises as ``export_layers``."""
    made = _Export(source, request, progress, cache_settings, str(choose_device(device)))
    made.check()
    with locks.lock(request.out / LOCK):
        return [made.write()]


def plan_cross_layer(
    source: JointSource,
    request: ExportRequest,
    *,
    device: str,
    progress: Progress,
    cache_settings: CacheSettings | None = None,
) -> list[Planned]:
    """What ``export_cross_layer`` would write, after it has refused what it would refuse."""
    made = _Export(source, request, progress, cache_settings, str(choose_device(device)))
    made.check()
    return [made.planned()]


@dataclass
class _Export:
    source: JointSource
    request: ExportRequest
    progress: Progress
    cache_settings: CacheSettings | None
    device: str

    @cached_property
    def _opened(self) -> Opened:
        return Opened.from_source(self.source, self.cache_settings, device=self.device)

    @property
    def _trained(self) -> CrossLayerTranscoder:
        return self._opened.dictionary

    @cached_property
    def _size(self) -> int:
        """Features a layer of what is written."""
        return self.request.wish.prefix or self._trained.dict_size

    @cached_property
    def _about(self) -> About:
        """Of the first of its layers, as the file will read it."""
        identity = self._opened.readers[0].identity
        return About(
            model=str(identity.get("model")),
            layer=self._trained.layers[0],
            source_site=self._view,
            target_site="mlp_out",
            architecture=str(identity.get("architecture") or ""),
            layers_of_model=identity.get("layers_of_model"),
        )

    @property
    def _view(self) -> SourceView:
        return self.request.wish.source_view or "ln2_normalized"

    @property
    def _folder(self) -> Path:
        is_prefix = self._size < self._trained.dict_size
        return self.request.out / (f"circuit_tracer-p{self._size}" if is_prefix else "circuit_tracer")

    @property
    def _identity(self) -> dict[str, Any]:
        """What two exports share if one may take the other's place."""
        size = self.request.wish.prefix
        return {
            "format": FORMAT,
            "of": {str(layer): self.source.transcoder.name for layer in self._trained.layers},
            "kind": "cross-layer",
            "model": self._about.model_name,
            "prefix": size if size != self._trained.dict_size else None,
        }

    def check(self) -> None:
        """Refuse what cannot be exported, before anything is measured."""
        unsupported = [name for name in self.request.to if name != FORMAT]
        if unsupported or not self.request.to:
            what = f"{', '.join(unsupported) or 'Nothing'} holds dictionaries of one layer each."
            raise UsageError(what, remedy=f"A cross-layer transcoder goes to {FORMAT} alone: --to {FORMAT}.")
        if self._trained.has_skip:
            what = f"{FORMAT} has no place for the skips of a cross-layer transcoder."
            raise UsageError(what, where=self.source.transcoder, remedy="Train one with train.skip: false.")
        if self._size not in self._trained.prefixes:
            what = f"{self._size} is not a prefix of this transcoder; it has {list(self._trained.prefixes)}."
            raise UsageError(what, where=self.source.transcoder)
        sites = [self._opened.stacked_reader.identity.get(name) for name in ("source_site", "target_site")]
        if sites != ["mlp_in", "mlp_out"]:
            what = f"It goes from {sites[0]} to {sites[1]}; {FORMAT} has a form for the MLP's input and output."
            raise UsageError(what, where=self.source.transcoder)
        refuse_another(self._folder, self._identity, fresh=self.request.fresh)

    def planned(self) -> Planned:
        """The one folder."""
        layers = self._about.layers_of_model or max(self._trained.layers) + 1
        first = self._trained.piece(0)
        blocks = layers * (layers + 1) // 2
        numbers = self._size * (layers * (first.d_source + 2) + blocks * self._trained.d_target)
        silent = layers - len(self._trained.layers)
        return Planned(FORMAT, str(self._folder), self._trained.layers, silent, 4 * numbers)

    def write(self) -> dict[str, Any]:
        """Convert, measure, write aside, read back, and rename."""
        made = self._converted()
        records = self._records(made)
        about = replace(self._about, record=records[str(self._trained.layers[0])] | {"prefixes": list(made.prefixes)})
        top = self.request.out / f".{FORMAT}.exporting"
        aside = top / self._folder.name
        disk.remove(top)
        silent = write_circuit_tracer_clt(aside, made, about)
        self._check_written(aside, made)
        document = {
            "version": VERSION,
            "written_by": "nestcoder",
            "exported_at": now(),
            **self._identity,
            "window": self._trained.reach.window,
            "never_firing_layers": silent,
            "layers": records,
        }
        disk.write_file(aside / EXPORT_FILE, (json.dumps(document, indent=1) + "\n").encode())
        disk.remove(self._folder)
        disk.move(aside, self._folder)
        disk.remove(top)
        return document | {"folder": str(self._folder)}

    def _converted(self) -> CrossLayerTranscoder:
        """With thresholds, cut to the prefix, reading what the file shall."""
        trained = self._trained
        pieces: list[Transcoder] = []
        for number, threshold in enumerate(self._thresholds()):
            piece = trained.piece(number)
            cut = {name: getattr(piece, name).detach()[: self._size] for name in ("W_enc", "b_enc", "W_dec")}
            prefixes = tuple(prefix for prefix in piece.prefixes if prefix <= self._size)
            rule = JumpReLU(threshold[: self._size])
            small = piece.replaced(**cut, rule=rule, prefixes=prefixes, prefix=self._size)
            norm = NormAffine.of_arrays(self._opened.readers[number].arrays)
            pieces.append(small if small.source_view == self._view else reading(self._view, small, norm))
        return CrossLayerTranscoder(
            pieces, layers=trained.layers, window=trained.reach.window, name=trained.name, config=trained.config
        )

    def _thresholds(self) -> list[torch.Tensor]:
        """For every layer: those that the rule has, or where it is a matter of rows, matched on training rows."""
        if self._floors is not None:
            return [floor.clone() for floor in self._floors]
        trained = self._trained
        pieces = [trained.piece(number) for number in range(len(trained.layers))]
        sources = [
            calibration_source(reader, piece, rows=self.request.calibration_rows, device=self.device)
            for reader, piece in zip(self._opened.readers, pieces, strict=True)
        ]
        codes = trained.codes(sources)
        return [
            matched_thresholds(piece, source, progress=self.progress, code=code).threshold
            for piece, source, code in zip(pieces, sources, codes, strict=True)
        ]

    @cached_property
    def _floors(self) -> list[torch.Tensor] | None:
        """Of every layer, where a feature fires by its own value alone; None where that depends on others."""
        pieces = [self._trained.piece(number) for number in range(len(self._trained.layers))]
        floors = [piece.rule.floor(piece.b_enc.detach()) for piece in pieces]
        found = [floor for floor in floors if floor is not None]
        return found if len(found) == len(pieces) and not self._trained.over_layers else None

    def _records(self, made: CrossLayerTranscoder) -> dict[str, dict[str, Any]]:
        """Of every layer: what was done, and FVU and L0 before and after."""
        before, after = (self._measured(which) for which in (self._trained, made))
        steps = _steps(self._floors is None, made, self._trained, self._view)
        records: dict[str, dict[str, Any]] = {}
        for number, layer in enumerate(self._trained.layers):
            per_prefix = [
                {"prefix": prefix, "before": _pair(before, number, index), "after": _pair(after, number, index)}
                for index, prefix in enumerate(made.prefixes)
            ]
            records[str(layer)] = {
                "exactness": "approximate" if self._floors is None else "exact up to rounding",
                "steps": steps,
                "model": self._about.model,
                "source_site": self._view,
                "target_site": "mlp_out",
                "activation": "jumprelu",
                "prefix": None if made.dict_size == self._trained.dict_size else {"size": made.dict_size},
                "held_out": {
                    "rows": before["tokens_used"],
                    "before": per_prefix[-1]["before"],
                    "after": per_prefix[-1]["after"],
                    "per_prefix": per_prefix,
                },
                "transcoder": {
                    "name": self.source.transcoder.name,
                    "activation": self._trained.piece(0).rule.name,
                    "top_k": self._trained.top_k,
                    "dict_size": self._trained.dict_size,
                    "weights": self._trained.config.get("weights"),
                },
                "caveat": None,
            }
        return records

    def _measured(self, dictionary: CrossLayerTranscoder) -> dict[str, Any]:
        settings = EvaluateSettings(bootstrap=0)
        opened = self._opened
        rows = JointRows(opened.stacked_reader, opened.readers, settings, device=self.device, progress=self.progress)
        return rows.measure(dictionary)

    def _check_written(self, folder: Path, made: CrossLayerTranscoder) -> None:
        """Raises NumericalError unless what lies in ``folder`` computes what was measured."""
        read = read_circuit_tracer_clt(folder).on(self.device)
        sources = self._checked_rows(made)
        meant, found = (dictionary.reconstructions(sources) for dictionary in (made, read))
        far = float((meant - found).abs().max() / meant.abs().max().clamp_min(1e-30))
        if far > TOLERANCE or read.layers != made.layers:
            what = f"What was written for {FORMAT} computes something else than was measured: {far:.1e} of the largest."
            raise NumericalError(what, where=folder)

    def _checked_rows(self, made: CrossLayerTranscoder) -> list[torch.Tensor]:
        """A few sources of every layer. A special token's is large, and would hide errors."""
        rows: list[torch.Tensor] = []
        for reader in self._opened.readers:
            held_out = reader.split("held_out")
            index = np.flatnonzero(held_out.is_ordinary(held_out.tokens))[:_CHECKED_ROWS].astype(np.int64)
            source = held_out.rows(index, view=made.piece(0).source_view).source
            rows.append(source.to(self.device).float())
        return rows


def _steps(
    is_approximate: bool, made: CrossLayerTranscoder, trained: CrossLayerTranscoder, view: SourceView
) -> Sequence[str]:
    """What was done, in words."""
    rule = trained.piece(0).rule.name
    steps = ["top-k became thresholds, matched per feature to its own firing rate on training rows"]
    if not is_approximate:
        steps = [] if rule == "jumprelu" else [f"{rule} written as thresholds, which select the same"]
    if made.dict_size != trained.dict_size:
        steps.append(f"prefix of {made.dict_size:,} features of every layer: the arrays were cut after it")
    if trained.piece(0).source_view != view:
        steps.append(f"the norm's gain and bias were folded into the encoders, which now read {view}")
    return steps


def _pair(measured: Mapping[str, Any], number: int, index: int) -> dict[str, float]:
    return {name: measured[f"{name}_per_layer_and_prefix"][number][index] for name in ("fvu", "l0")}
