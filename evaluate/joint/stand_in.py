"""A cross-layer transcoder in a language model's place: what a layer puts out is what all layers up to it wrote to it.

Layers run in order, so when the model comes to layer t, the features of every earlier one are known, from the sources
of this very pass.
"""

from jaxtyping import Float
from torch import Tensor

from evaluate.spliced.replace import Replacement
from evaluate.spliced.splice import as_read
from harvest.model.sites import Norm
from transcoder.cross_layer import CrossLayerTranscoder


class CrossLayerStandIn:
    """One pass's writes, prefix ``index``. ``norms`` are those of the dictionary's layers in the model."""

    def __init__(self, dictionary: CrossLayerTranscoder, norms: list[Norm], *, index: int) -> None:
        self._dictionary = dictionary
        self._norms = norms
        self._index = index
        self._written: dict[int, Tensor] = {}

    def replacements(self) -> dict[int, Replacement]:
        """By the layer's number in the model."""
        return {layer: self._of(number) for number, layer in enumerate(self._dictionary.layers)}

    def _of(self, number: int) -> Replacement:
        def replace(
            source: Float[Tensor, "rows d_source"],
            own: Float[Tensor, "rows d_target"],  # noqa: ARG001
        ) -> Float[Tensor, "rows d_target"]:
            dictionary = self._dictionary
            if number == 0:
                self._written = {}
            piece = dictionary.piece(number)
            seen = as_read(source, piece.source_view, self._norms[number], piece.b_enc.device)
            added = dictionary.writes(number, piece.sparse_code(seen))[:, self._index]
            for place, layer in enumerate(dictionary.reach.written(number)):
                block = added[:, place * dictionary.d_target : (place + 1) * dictionary.d_target]
                self._written[layer] = self._written[layer] + block if layer in self._written else block
            return self._written.pop(number) + dictionary.b_dec(number)

        return replace
