"""A cross-layer transcoder in a language model's place: what a layer puts out is what all layers up to it wrote to it.

Layers run in order, so when the model comes to layer t, the features of every earlier one are known. They read the
sources of this very pass, which the spliced layers before have made, not those of the model alone.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from common.errors import UsageError
from evaluate.spliced.replace import Replacement
from evaluate.spliced.splice import as_read
from harvest.model.sites import Norm
from transcoder.cross_layer import CrossLayerTranscoder

NOT_CAUSAL = (
    "{name} cannot stand in for the model's layers: it selects over all of them at once, and the model comes to the "
    "later ones last"
)


class CrossLayerStandIn:
    """One pass's writes by the prefix of that ``index``; differentiable where gradients are on. ``norms`` are those of
    the dictionary's layers in the model.

    Raises UsageError for a dictionary that selects over layers, of which the model has not come to the later ones.
    """

    def __init__(self, dictionary: CrossLayerTranscoder, norms: Sequence[Norm], *, index: int) -> None:
        if dictionary.over_layers:
            raise UsageError(NOT_CAUSAL.format(name=dictionary.name), remedy="Train with train.select_over: layer.")
        self._dictionary = dictionary
        self._norms = norms
        self._prefix = dictionary.prefixes[index]
        self._written: dict[int, Tensor] = {}

    def replacements(self) -> dict[int, Replacement]:
        """By the layer's number in the model."""
        return {layer: self._replacement(number) for number, layer in enumerate(self._dictionary.layers)}

    def _replacement(self, number: int) -> Replacement:
        def replace(
            source: Float[Tensor, "rows d_source"],
            own: Float[Tensor, "rows d_target"],  # noqa: ARG001
        ) -> Float[Tensor, "rows d_target"]:
            """The target of layer ``number`` by all features that write to it; the model's own is not used."""
            dictionary = self._dictionary
            if number == 0:
                self._written = {}
            piece = dictionary.piece(number)
            seen = as_read(source, piece.source_view, self._norms[number], piece.b_enc.device)
            code = piece.select(seen) if torch.is_grad_enabled() else piece.sparse_code(seen)
            added = dictionary.writes_of_prefix(number, code, prefix=self._prefix)
            for layer, block in dictionary.reach.blocks(added, number):
                self._written[layer] = self._written[layer] + block if layer in self._written else block
            return self._written.pop(number) + dictionary.base(number, seen)

        return replace
