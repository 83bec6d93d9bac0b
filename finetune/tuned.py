"""One dictionary during fine-tuning: its arrays in training's units, their moments, and its update.

The update is that of training (``train/arrays/optim.py``): clipped, Adam, decoder rows of norm 1. Its learning rates
are for training's units, so weights and gradients are converted to them and back:

    W = factor * W'        dL/dW' = factor * dL/dW

A dictionary from elsewhere may have decoder rows of other norms n in those units. It is the same dictionary as one with
rows of norm 1 whose features fire n times as strongly, and that one is updated: its factors have n, too, so that the
transcoder keeps its own activations, its rule and the norms of its rows.

    W_dec'[f] = W_dec[f] / (factor n_f)    W_enc'[f] = n_f W_enc[f] / factor    b_enc'[f] = n_f b_enc[f] / factor
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader
from train.arrays.optim import Moments, remove_parallel_, update_
from train.arrays.parameters import Parameters
from train.arrays.units import scaled, units_of
from train.resolved import ResolvedSettings
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.transcoder import Transcoder

_OF_FILE = ("weights", "seal", "completed_at", "held_out_fvu", "best_step", "dead", "saved_step")
"""Entries of config.json about the file itself or the training's last step; the result gets new ones."""
_UNIT = 1e-3
"""How far from 1 the norm of a decoder row may be: in bfloat16 it differs by less."""


@dataclass
class Tuned:
    """``transcoder`` is what the model is spliced with: always ``factors`` times ``weights``."""

    transcoder: Transcoder
    weights: Parameters
    moments: Moments
    factors: dict[str, Tensor]

    @staticmethod
    def begin(transcoder: Transcoder, factors: dict[str, Tensor]) -> "Tuned":
        """From a trained dictionary, on its device."""
        arrays = {name: array.detach().clone() / factors[name] for name, array in transcoder.arrays().items()}
        norms = arrays["W_dec"].norm(dim=1)
        if float((norms - 1).abs().max()) > _UNIT:
            factors = _with_norms(factors, norms)
            arrays = {name: array.detach().clone() / factors[name] for name, array in transcoder.arrays().items()}
            # A row of zeros writes nothing, whatever its direction: its factor is 0.
            arrays["W_dec"][norms == 0] = torch.eye(1, arrays["W_dec"].shape[1], device=norms.device)
        weights = Parameters(**arrays)
        own = transcoder.replaced(**{name: array.detach().clone() for name, array in transcoder.arrays().items()})
        tuned = Tuned(own.requires_grad_(), weights, Moments.zero(weights), factors)
        tuned.show()
        return tuned

    @torch.no_grad()
    def show(self) -> None:
        """Write the weights into ``transcoder``."""
        for name, array in self.transcoder.arrays().items():
            array.copy_(self.weights.tensors()[name] * self.factors[name])

    def in_training_units(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of the arrays as gradients of the weights, the decoder's without what points along its rows."""
        scaled = {name: gradient * self.factors[name] for name, gradient in gradients.items()}
        remove_parallel_(scaled["W_dec"], self.weights.W_dec)
        return scaled

    @torch.no_grad()
    def update(self, gradients: dict[str, Tensor], *, settings: ResolvedSettings, step: int) -> None:
        """Take a step by gradients in training's units, which are overwritten."""
        contiguous = {name: gradient.contiguous() for name, gradient in gradients.items()}
        update_(self.weights, Parameters(**contiguous), moments=self.moments, settings=settings, step=step)
        self.show()


def _with_norms(factors: Mapping[str, Tensor], norms: Float[Tensor, " features"]) -> dict[str, Tensor]:
    """The factors of the dictionary whose decoder rows have norm 1 and whose features fire ``norms`` times as strongly.

    A feature that writes nothing has no gradient, and fires as it is.
    """
    strength = torch.where(norms > 0, 1 / norms, 1.0)
    return {
        **factors,
        "W_enc": factors["W_enc"] * strength[:, None],
        "b_enc": factors["b_enc"] * strength,
        "W_dec": factors["W_dec"] * norms[:, None],
    }


def factors_of_layer(transcoder: Transcoder, reader: CacheReader) -> dict[str, Tensor]:
    """What ``Units.folded`` multiplies each array by, of a shape that broadcasts over it."""
    d_source = transcoder.d_source
    unscaled = Parameters(
        W_enc=torch.ones(1, d_source),
        b_enc=torch.ones(1),
        W_dec=torch.ones(1, 1),
        b_dec=torch.ones(1),
        W_skip=torch.ones(d_source, 1),
    )
    folded = units_of(reader, transcoder.source_view).folded(unscaled).tensors()
    return {name: array.to(transcoder.b_enc.device) for name, array in folded.items()}


def factors_of_piece(
    dictionary: CrossLayerTranscoder, number: int, readers: Sequence[CacheReader]
) -> dict[str, Tensor]:
    """The same for a source layer of a cross-layer transcoder, whose activations are in training's units already and
    whose rows are of norm 1 there over all that they write. ``readers`` are its layers'."""
    piece = dictionary.piece(number)
    units = [units_of(reader, piece.source_view) for reader in readers]
    scales = [1 / units[layer].target_scale for layer in dictionary.reach.written(number)]
    by_target = torch.tensor(scales).repeat_interleave(dictionary.d_target)
    factors = {
        "W_enc": scaled(torch.ones(1, piece.d_source), units[number].source_scale),
        "b_enc": torch.ones(1),
        "W_dec": by_target[None],
        "b_dec": by_target,
        "W_skip": scaled(torch.ones(1, piece.d_source), units[number].source_scale).T / units[number].target_scale,
    }
    return {name: array.to(piece.b_enc.device) for name, array in factors.items()}


def kept_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config.json that stay true after fine-tuning."""
    return {key: value for key, value in config.items() if key not in _OF_FILE}
