"""What one step measures, and its names in the log."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class StepMetrics:
    """What one step measures, still on the device. ``batch_fvu`` is of the batch's rows, over the cache's variance;
    dimensions count as they do in the loss."""

    l2_loss: Float[Tensor, ""]
    aux_loss: Float[Tensor, ""]
    batch_fvu: Float[Tensor, " prefixes"]
    l0: Float[Tensor, " prefixes"]
    dead: Float[Tensor, ""]
    gradient_norm: Float[Tensor, ""]
    lr: float
    sparsity_loss: Float[Tensor, ""] | None = None
    batch_fvu_per_layer: Float[Tensor, " layers"] | None = None
    """Of the whole dictionary, where several layers are trained together: the others are then means over layers."""

    def as_dict(self) -> dict[str, Any]:
        """Names and plain numbers, as the log and W&B have them."""
        l2_loss = float(self.l2_loss)
        aux_loss = float(self.aux_loss)
        batch_fvu = self.batch_fvu.tolist()
        penalty = {} if self.sparsity_loss is None else {"sparsity_loss": float(self.sparsity_loss)}
        return {
            "loss": l2_loss + aux_loss + sum(penalty.values()),
            "l2_loss": l2_loss,
            "aux_loss": aux_loss,
            **penalty,
            "batch_fvu": batch_fvu[-1],
            "batch_fvu_min": min(batch_fvu),
            "batch_fvu_max": max(batch_fvu),
            "batch_fvu_mean": sum(batch_fvu) / len(batch_fvu),
            "batch_fvu_per_prefix": batch_fvu,
            **({} if self.batch_fvu_per_layer is None else {"batch_fvu_per_layer": self.batch_fvu_per_layer.tolist()}),
            "l0": float(self.l0[-1]),
            "l0_per_prefix": self.l0.tolist(),
            "dead": float(self.dead),
            "gradient_norm": float(self.gradient_norm),
            "lr": self.lr,
        }
