"""One dictionary while it is fine-tuned: its arrays in the units of training, their moments, and its update.

The update is training's own (``train/arrays/optim.py``): clipped, Adam, decoder rows of norm 1. Its rates hold in
training's units, so weights and gradients are carried there and back:

    W = factor * W'        dL/dW' = factor * dL/dW
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cache.reader import CacheReader
from common.errors import UsageError
from train.arrays.optim import Moments, remove_parallel_, update_
from train.arrays.parameters import Parameters
from train.arrays.units import Units, units_of
from train.resolved import ResolvedSettings
from transcoder.transcoder import Transcoder

_UNIT = 1e-3
"""How far from 1 the norm of a decoder row may be: files in bfloat16 are off by a few thousandths at most."""


@dataclass
class Tuned:
    """``transcoder`` is what the model is spliced with: always ``factors`` times ``weights``."""

    transcoder: Transcoder
    weights: Parameters
    moments: Moments
    factors: dict[str, Tensor]

    @staticmethod
    def begin(transcoder: Transcoder, reader: CacheReader) -> "Tuned":
        """From a trained dictionary, on its device. Raises UsageError where its rows are not of norm 1."""
        norms = transcoder.W_dec.detach().norm(dim=1)
        if float((norms - 1).abs().max()) > _UNIT:
            what = f"The decoder rows of {transcoder.name} are not of norm 1, which fine-tuning keeps them at."
            raise UsageError(what, remedy="Fine-tune one that nestcoder trained.")
        factors = _factors(units_of(reader, transcoder.source_view), transcoder)
        arrays = {name: array.detach().clone() / factors[name] for name, array in transcoder.arrays().items()}
        weights = Parameters(**arrays)
        own = transcoder.replaced(**{name: array.detach().clone() for name, array in transcoder.arrays().items()})
        tuned = Tuned(own.requires_grad_(), weights, Moments.zero(weights), factors)
        tuned.show()
        return tuned

    @torch.no_grad()
    def show(self) -> None:
        """Bring ``transcoder`` up to the weights."""
        for name, array in self.transcoder.arrays().items():
            array.copy_(self.weights.tensors()[name] * self.factors[name])

    def in_training_units(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of the arrays as gradients of the weights, the decoder's without what points along its rows."""
        scaled = {name: gradient * self.factors[name] for name, gradient in gradients.items()}
        remove_parallel_(scaled["W_dec"], self.weights.W_dec)
        return scaled

    @torch.no_grad()
    def update(self, gradients: dict[str, Tensor], *, settings: ResolvedSettings, step: int) -> None:
        """Take a step by gradients in training's units, which are used up."""
        contiguous = {name: gradient.contiguous() for name, gradient in gradients.items()}
        update_(self.weights, Parameters(**contiguous), moments=self.moments, settings=settings, step=step)
        self.show()


def _factors(units: Units, transcoder: Transcoder) -> dict[str, Tensor]:
    """What ``Units.folded`` multiplies each array by, of a shape that broadcasts over it."""
    d_source = transcoder.d_source
    ones = Parameters(
        W_enc=torch.ones(1, d_source),
        b_enc=torch.ones(1),
        W_dec=torch.ones(1, 1),
        b_dec=torch.ones(1),
        W_skip=torch.ones(d_source, 1),
    )
    return {name: array.to(transcoder.b_enc.device) for name, array in units.folded(ones).tensors().items()}
