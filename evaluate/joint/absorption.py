"""First-letter absorption of a cross-layer transcoder, layer by layer (``evaluate.absorption.score`` has the measure).

In the space where a layer's letters can be read, the features of that layer's space are scored:

    source of layer s    encoder rows of the features that read layer s
    target of layer t    decoder rows, at layer t, of all features that write to layer t, whichever layer they read

A target is the sum of all that is written to it, so that the features of one layer alone would seem to leave to others
what they never had. A prefix is the first p features of each of these layers. With a window of 0 every layer has its
own features in both spaces, and the scores are those of its transcoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader
from common.errors import MismatchError
from evaluate.absorption.dictionary import ENCODED_WORDS, Carriers, absorption_of, directions_of
from evaluate.absorption.first_letter import NO_PROBE
from evaluate.absorption.letters import LetterProbes, Readability, readability
from evaluate.absorption.probe_set import DESCRIPTION, ProbeSet, read_probe_set
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.sparse_code import SparseCode, stacked
from transcoder.transcoder import SourceView


class JointAbsorption:
    """Scores dictionaries of the layers whose caches ``readers`` open, on the probe caches in ``folders``."""

    def __init__(self, readers: Mapping[int, CacheReader], folders: Mapping[int, Path]) -> None:
        """Raises MismatchError where the probes of two layers are of different words."""
        self._readers = readers
        self._words = {
            layer: read_probe_set(folder, fingerprint=readers[layer].fingerprint)
            for layer, folder in folders.items()
            if (folder / DESCRIPTION).is_file()
        }
        _check_same_words(self._words, folders)
        self._seen = cache(self._read_as)
        self._readable = cache(self._readability)

    def scores(self, dictionary: CrossLayerTranscoder) -> list[dict[str, Any]]:
        """The ``absorption_first_letter`` fields of every layer of ``dictionary``, in its order."""
        scored = _Scored(dictionary.on("cpu"), self)
        return [scored.layer(number) for number in range(len(dictionary.layers))]

    def seen(self, layer: int, view: SourceView) -> ProbeSet | None:
        """The words of a layer, their source as an encoder of that ``view`` reads it; None where it has no probe."""
        return self._seen(layer, view) if layer in self._words else None

    def readable(self, layer: int, view: SourceView) -> Readability:
        """Where the letters of a layer can be read."""
        return self._readable(layer, view)

    def _read_as(self, layer: int, view: SourceView) -> ProbeSet:
        words = self._words[layer]
        return replace(words, source=self._readers[layer].as_view(words.source, view))

    def _readability(self, layer: int, view: SourceView) -> Readability:
        return readability(self._seen(layer, view))


def mean_scores(per_layer: Sequence[Mapping[str, Any]], *, prefixes: int) -> list[float | None]:
    """Of every prefix, the mean over the layers that have a score; None where none has."""
    found: list[float | None] = []
    for index in range(prefixes):
        entries = [fields["per_prefix"][index]["score"] for fields in per_layer if "per_prefix" in fields]
        scores = [score for score in entries if score is not None]
        found.append(sum(scores) / len(scores) if scores else None)
    return found


class _Scored:
    """One dictionary in main memory, and its codes on the words."""

    def __init__(self, dictionary: CrossLayerTranscoder, probes: JointAbsorption) -> None:
        self._dictionary = dictionary
        self._words = [probes.seen(layer, dictionary.piece(0).source_view) for layer in dictionary.layers]
        self._probes = probes
        self._code = cache(self._code_of_layer)

    def layer(self, number: int) -> dict[str, Any]:
        """The fields of a layer, counted from 0 among those of the dictionary."""
        dictionary = self._dictionary
        words = self._words[number]
        if words is None:
            return {"score": None, "reason": NO_PROBE}
        readable = self._probes.readable(dictionary.layers[number], dictionary.piece(0).source_view)
        members = self._members(number, readable.probes)
        needed = range(len(self._words)) if dictionary.over_layers else members
        missing = [dictionary.layers[member] for member in needed if self._words[member] is None]
        if missing:
            return {"score": None, "reason": f"of layer {missing[0]}, {NO_PROBE}"}
        carriers = self._carriers(number, members, words, readable.probes) if readable.probes else None
        features = len(members) * dictionary.dict_size
        fields = absorption_of(carriers, words, readable, prefixes=dictionary.prefixes, features=features)
        for entry in fields["per_prefix"]:
            for letter in entry.get("per_letter", {}).values():
                letter["main"] = [self._name(feature, members) for feature in letter["main"]]
        return fields

    def _members(self, number: int, probes: LetterProbes | None) -> list[int]:
        """The layers whose features are scored: those that write to its target, or itself for its source."""
        reach = self._dictionary.reach
        if probes is None or probes.space == "source":
            return [number]
        return [member for member in range(reach.layers) if number in reach.written(member)]

    def _carriers(self, number: int, members: Sequence[int], words: ProbeSet, probes: LetterProbes) -> Carriers:
        """The features of all members: the first group of each, then the second of each, and so on."""
        dictionary = self._dictionary
        codes = [self._code(member) for member in members]
        directions = [self._directions(member, number, words, probes) for member in members]
        indices = [self._merged_indices(position, len(members)) for position in range(len(members))]
        merged = torch.empty(len(members) * dictionary.dict_size, directions[0].shape[1])
        for index, rows in zip(indices, directions, strict=True):
            merged[index] = rows
        return Carriers(_merged(codes, indices), merged, tuple(len(members) * prefix for prefix in dictionary.prefixes))

    def _directions(
        self, member: int, number: int, words: ProbeSet, probes: LetterProbes
    ) -> Float[Tensor, "dict_size width"]:
        """Of the features that read layer ``member``, at layer ``number``."""
        piece = self._dictionary.piece(member)
        if probes.space == "source":
            return directions_of(piece, words, probes)
        blocks = dict(self._dictionary.reach.blocks(piece.W_dec.detach(), member))
        return blocks[number]

    def _code_of_layer(self, number: int) -> SparseCode:
        if self._dictionary.over_layers:
            return self._codes_over_layers[number]
        words = self._words[number]
        assert words is not None, "a layer without words is not scored"
        piece = self._dictionary.piece(number)
        return stacked([piece.sparse_code(rows) for rows in words.source.split(ENCODED_WORDS)])

    @cached_property
    def _codes_over_layers(self) -> list[SparseCode]:
        """Of all layers: which features of one fire depends on those of the others."""
        sources = [words.source for words in self._words if words is not None]
        blocks = zip(*(source.split(ENCODED_WORDS) for source in sources), strict=True)
        codes = [self._dictionary.codes(rows) for rows in blocks]
        return [stacked(list(by_block)) for by_block in zip(*codes, strict=True)]

    def _merged_indices(self, position: int, members: int) -> Tensor:
        """Where the features of the member at ``position`` stand among those of all."""
        indices: list[Tensor] = []
        for group in self._dictionary.piece(0).groups:
            begin = members * group.start + position * len(group)
            indices.append(torch.arange(begin, begin + len(group)))
        return torch.cat(indices)

    def _name(self, index: int, members: Sequence[int]) -> str:
        """The feature that stands there, as the commands call it: 8/123."""
        for group in self._dictionary.piece(0).groups:
            if index < len(members) * group.stop:
                position, within = divmod(index - len(members) * group.start, len(group))
                return f"{self._dictionary.layers[members[position]]}/{group.start + within}"
        raise AssertionError("a feature has a place")


def _merged(codes: Sequence[SparseCode], indices: Sequence[Tensor]) -> SparseCode:
    """The same rows with the features of all codes, each at its place, ascending within a row."""
    features = torch.cat([index[code.features.long()] for code, index in zip(codes, indices, strict=True)])
    rows = torch.cat([code.rows().long() for code in codes])
    order = (rows * sum(map(len, indices)) + features).argsort()
    lengths = torch.stack([code.offsets.diff() for code in codes]).sum(dim=0)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(codes[0].offsets.dtype)
    values = torch.cat([code.values for code in codes])
    return SparseCode(values[order], features[order].to(codes[0].features.dtype), offsets)


def _check_same_words(words: Mapping[int, ProbeSet], folders: Mapping[int, Path]) -> None:
    """Raises MismatchError unless a row of each is the same word."""
    known = list(words)
    for layer in known[1:]:
        if words[layer].about["words"] != words[known[0]].about["words"]:
            what = f"The probes of layers {known[0]} and {layer} are of different words."
            remedy = "Harvest both again with 'nestcoder harvest --probe first-letter'."
            raise MismatchError(what, where=folders[layer], remedy=remedy)
