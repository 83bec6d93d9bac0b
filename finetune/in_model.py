"""Dictionaries in place of several layers of a language model: their arrays, and what they compute there.

    in the spliced model    a feature reads what the spliced layers before it have made, as under ``evaluate --lm``
    on rows                 it reads the sources of the clean model, as the cache holds them

A cross-layer transcoder is tuned piece by piece: source layer s is a transcoder with all that its features write.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from evaluate.joint.stand_in import CrossLayerStandIn
from evaluate.spliced.replace import Replacement
from evaluate.spliced.splice import StandIn, as_read
from harvest.model.sites import Norm
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.transcoder import Transcoder

Sources = Mapping[int, Float[Tensor, "rows d_source"]]
"""By layer, as the model has them."""


class InModel(ABC):
    """Dictionaries that replace targets in a pass of the model; differentiable if gradients are on."""

    def __init__(self, pieces: Mapping[int, Transcoder], *, prefix_count: int, name: str) -> None:
        self.pieces = pieces
        """What is tuned, by the layer that it reads."""
        self.prefix_count = prefix_count
        """How many prefixes all of them have."""
        self.name = name

    @abstractmethod
    def replacements(self, index: int, norms: Mapping[int, Norm]) -> dict[int, Replacement]:
        """Of one pass, by layer: the prefix of that index in each."""

    @abstractmethod
    def reconstructions(
        self, sources: Sources, norms: Mapping[int, Norm]
    ) -> dict[int, Float[Tensor, "rows prefixes d_target"]]:
        """Every layer's target by every prefix, from sources that are all there already."""


class SetInModel(InModel):
    """A dictionary for every layer, each by itself."""

    def __init__(self, pieces: Mapping[int, Transcoder]) -> None:
        fewest = min(len(piece.prefixes) for piece in pieces.values())
        name = " and ".join(dict.fromkeys(piece.name for piece in pieces.values()))
        super().__init__(pieces, prefix_count=fewest, name=name)

    def replacements(self, index: int, norms: Mapping[int, Norm]) -> dict[int, Replacement]:
        return {
            layer: StandIn(piece.truncate(piece.prefixes[index]), norms[layer]) for layer, piece in self.pieces.items()
        }

    def reconstructions(
        self, sources: Sources, norms: Mapping[int, Norm]
    ) -> dict[int, Float[Tensor, "rows prefixes d_target"]]:
        return {
            layer: piece.reconstructions(_seen(piece, sources[layer], norms[layer]))
            for layer, piece in self.pieces.items()
        }


class CrossLayerInModel(InModel):
    """One cross-layer transcoder."""

    def __init__(self, dictionary: CrossLayerTranscoder) -> None:
        pieces = {layer: dictionary.piece(number) for number, layer in enumerate(dictionary.layers)}
        super().__init__(pieces, prefix_count=len(dictionary.prefixes), name=dictionary.name)
        self.dictionary = dictionary

    def replacements(self, index: int, norms: Mapping[int, Norm]) -> dict[int, Replacement]:
        ordered = [norms[layer] for layer in self.dictionary.layers]
        return CrossLayerStandIn(self.dictionary, ordered, index=index).replacements()

    def reconstructions(
        self, sources: Sources, norms: Mapping[int, Norm]
    ) -> dict[int, Float[Tensor, "rows prefixes d_target"]]:
        seen = [_seen(piece, sources[layer], norms[layer]) for layer, piece in self.pieces.items()]
        codes = [piece.select(rows) for piece, rows in zip(self.pieces.values(), seen, strict=True)]
        return dict(zip(self.dictionary.layers, self.dictionary.reconstruct(codes, seen), strict=True))


def _seen(piece: Transcoder, source: Tensor, norm: Norm) -> Float[Tensor, "rows d_source"]:
    return as_read(source, piece.source_view, norm, piece.b_enc.device)
