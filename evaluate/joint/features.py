"""Evidence of the features of a cross-layer transcoder: a folder of pages for each layer that they read, and an index.

A layer's features fire by that layer's encoder, so what they fire on is evidence as of any transcoder. What they write
goes to several layers' targets, side by side here, each in units in which it varies by 1 a dimension; there a feature's
decoder row has norm 1. For the layers t that features of layer s write to,

    e_t,p        = y_t - b_dec_t (- skip) - sum over all s' of what the first p features of layer s' write to t
    fvu_lost(f)  = growth of sum over t of |e_t|^2 without f  /  sum over t of the squared distance of y_t from its mean
    share(f, t)  = |W_dec_s->t[f]|^2                 of the squared norm of the whole row

Relatives are among the features of one layer. The effect on logits is of all that a feature writes, since each target
is added to the residual stream; neurons are those of the layer that it reads.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.config import CacheSettings
from cache.reader import CacheReader
from common.device import choose_device
from common.distributed import Ranks
from common.errors import UsageError
from common.progress import Progress
from common.run_layout import CONFIG_FILE, FEATURES_PAGE, RunFolders
from evaluate.features.code import Errors
from evaluate.features.collect import Written, block_starts, encode_part, evidence_of
from evaluate.features.config import FeatureSettings
from evaluate.features.evidence import read_head
from evaluate.features.gather import gathered, share_of
from evaluate.features.history import formation_of
from evaluate.features.plan import FeaturesPlan, plan_of
from evaluate.features.run import read_logits, write_all
from evaluate.features.self_check import check_evidence
from evaluate.joint.features_index import write_index
from evaluate.joint.opened import JointSource, Opened
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.sparse_code import SparseCode
from transcoder.transcoder import Transcoder


@dataclass(frozen=True)
class JointFeatures:
    """What is asked for: ``layers`` are the folders of the dictionary's layers, ``joint`` its own."""

    source: JointSource
    layers: Mapping[int, RunFolders]
    joint: RunFolders
    name: str
    settings: FeatureSettings
    cache: CacheSettings | None = None

    def check(self) -> None:
        """Raises UsageError where a layer's folder of that name would be that of another dictionary."""
        for layer, folders in self.layers.items():
            if (folders.transcoder(self.name) / CONFIG_FILE).is_file():
                what = f"Layer {layer} has a transcoder '{self.name}' of its own, and its pages have that name too."
                raise UsageError(what, where=folders.transcoder(self.name), remedy="Move or rename one of the two.")


def features_of_layers(
    request: JointFeatures, *, device: str, lm: str | None, progress: Progress
) -> dict[int, dict[str, Any]]:
    """What each layer's evidence.json says, having written the evidence; the same in every process.

    Raises as ``features_of_layer``.
    """
    request.check()
    opened = Opened.from_source(request.source, request.cache, device=str(choose_device(device)))
    ranks = Ranks.current()
    for number, layer in enumerate(opened.dictionary.layers):
        piece = _Layer(opened, number, request.settings)
        starts = share_of(block_starts(piece.reader, request.settings), ranks)
        blocks = encode_part(
            piece.reader, piece.transcoder, request.settings, starts, progress=progress, errors=piece.errors
        )
        blocks = gathered(blocks, ranks, device=str(piece.transcoder.W_dec.device))
        if ranks.rank == 0:
            unembedding = read_logits(lm, piece.reader, opened.dictionary.within(number))
            evidence = evidence_of(
                blocks,
                piece.reader,
                piece.transcoder,
                request.settings,
                unembedding=unembedding,
                formation=formation_of(request.source.transcoder, piece.reader, layer),
                written=piece.written,
            )
            checked = check_evidence(evidence, piece.reader, piece.transcoder)
            out = request.layers[layer].features(request.name)
            index = os.path.relpath(request.joint.features(request.name) / FEATURES_PAGE, out)
            facts = {
                "transcoder": {**evidence.head["transcoder"], "name": request.name},
                "self_check": checked,
                "cautions": [piece.caution],
                "all_layers": Path(index).as_posix(),
            }
            write_all(out, replace(evidence, head={**evidence.head, **facts}), progress)
        ranks.wait()
    heads = {layer: read_head(folders.features(request.name)) for layer, folders in request.layers.items()}
    if ranks.rank == 0:
        folders = {layer: own.features(request.name) for layer, own in request.layers.items()}
        write_index(request.joint.features(request.name), request.name, heads, folders)
    ranks.wait()
    return heads


def plan_layers(request: JointFeatures, *, device: str, lm: str | None) -> dict[int, FeaturesPlan]:
    """What ``features_of_layers`` would take, layer by layer; it raises the same first."""
    request.check()
    opened = Opened.from_source(request.source, request.cache, device=str(choose_device(device)))
    plans: dict[int, FeaturesPlan] = {}
    for number, layer in enumerate(opened.dictionary.layers):
        piece = _Layer(opened, number, request.settings)
        unembedding = read_logits(lm, piece.reader, opened.dictionary.within(number))
        plans[layer] = plan_of(
            piece.reader,
            piece.transcoder,
            unembedding,
            out=request.layers[layer].features(request.name),
            settings=request.settings,
            errors=piece.errors,
            written=piece.written,
        )
    return plans


@dataclass(frozen=True)
class _Layer:
    """The features of one source layer, counted from 0 among those of the dictionary."""

    opened: Opened
    number: int
    settings: FeatureSettings

    @property
    def _dictionary(self) -> CrossLayerTranscoder:
        return self.opened.dictionary

    @property
    def reader(self) -> CacheReader:
        """The cache of the layer that they read."""
        return self.opened.readers[self.number]

    @property
    def _into(self) -> range:
        """The layers that they write to."""
        return self._dictionary.reach.written(self.number)

    @cached_property
    def _scales(self) -> Float[Tensor, " layers"]:
        """Of all layers, from the caches' units to those in which a target varies by 1 a dimension."""
        found = self._dictionary.config.get("target_scales") or [1.0] * len(self._dictionary.layers)
        return torch.tensor(found, device=self._dictionary.piece(0).b_enc.device)

    def _scaled(self, written: Float[Tensor, "*rows wide"]) -> Float[Tensor, "*rows wide"]:
        """What is written, side by side, in those units."""
        scales = self._scales[list(self._into)].repeat_interleave(self._dictionary.d_target)
        return written * scales

    @cached_property
    def transcoder(self) -> Transcoder:
        """The features as a transcoder whose target is all that they write to, in those units."""
        piece = self._dictionary.piece(self.number)
        name = f"{self._dictionary.name}, layer {self._dictionary.layers[self.number]}"
        config = {"weights": self._dictionary.config.get("weights")}
        W_dec = self._scaled(piece.W_dec.detach())
        b_dec = self._scaled(piece.b_dec.detach())
        return piece.replaced(W_dec=W_dec, b_dec=b_dec, W_skip=None, name=name, config=config)

    @cached_property
    def written(self) -> Written:
        """Where they write, and how much."""
        dictionary = self._dictionary
        blocks = dictionary.piece(self.number).W_dec.detach().unflatten(1, (-1, dictionary.d_target))
        squares = self.transcoder.W_dec.detach().unflatten(1, (-1, dictionary.d_target)).square().sum(dim=2)
        share = (squares / squares.sum(dim=1, keepdim=True).clamp_min(1e-30)).cpu().numpy()
        layers = tuple(dictionary.layers[layer] for layer in self._into)
        return Written(stream=blocks.sum(dim=1), own=blocks[:, 0], layers=layers, share=share)

    @property
    def caution(self) -> str:
        """What whoever reads the layer's pages must know."""
        layers = self._dictionary.layers
        read = layers[self.number]
        last = layers[self._into[-1]]
        into = f"layer {read}" if last == read else f"layers {read} to {last}"
        return (
            f"One layer of the cross-layer transcoder '{self._dictionary.name}': these features read layer {read} and "
            f"write to {into}. FVU is of all that they write to, with what other layers' features write there; "
            "relatives, nesting and clusters are among the features of this layer alone; the effect on logits is of "
            "all that a feature writes."
        )

    @property
    def errors(self) -> Errors:
        """What the whole dictionary misses of what these features write to."""
        dictionary = self._dictionary
        splits = [reader.split(self.settings.split) for reader in self.opened.readers]
        needed = [writer for writer in range(len(splits)) if set(dictionary.reach.written(writer)) & set(self._into)]

        def measured(
            start: int, end: int, kept: Int[np.ndarray, " kept"], code: SparseCode
        ) -> tuple[Float[Tensor, "rows prefixes wide"], Float[Tensor, "rows wide"]]:
            index = torch.from_numpy(kept)
            rows = {
                layer: splits[layer].rows(slice(start, end), view=dictionary.piece(0).source_view)
                for layer in sorted({*needed, *self._into})
            }
            device = code.values.device
            targets = torch.stack([rows[t].target[index].to(device).float() for t in self._into], dim=1)
            away = targets - torch.stack([dictionary.b_dec(t) for t in self._into])
            bases = [dictionary.base(t, rows[t].source[index].to(device)) for t in self._into]
            left = targets - torch.stack(bases, dim=1)
            errors = left[:, None].repeat(1, len(dictionary.prefixes), 1, 1)
            for writer in needed:
                source = rows[writer].source[index].to(device)
                found = code if writer == self.number else dictionary.piece(writer).sparse_code(source)
                for layer, block in dictionary.reach.blocks(dictionary.writes(writer, found), writer):
                    if layer in self._into:
                        errors[:, :, self._into.index(layer)] -= block
            return self._scaled(errors.flatten(2)), self._scaled(away.flatten(1))

        return measured
