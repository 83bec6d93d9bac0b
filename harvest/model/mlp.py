"""A layer's MLP as plain weights, for a cache that computes targets from sources (``cache.storage.recompute``).

The layers of the MLP are found by the names that Hugging Face's models give them. The site proof checks, before a row
is written, that they compute the target.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from cache.storage.recompute import Mlp
from common.errors import UsageError
from harvest.model.language_model import LanguageModel
from harvest.model.sites import epsilon_of, module_at

_LINEAR_NAMES = (
    ("up_proj", "down_proj"),
    ("c_fc", "c_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("fc1", "fc2"),
    ("fc_in", "fc_out"),
)
_ACTIVATIONS = ("hidden_activation", "activation_function", "hidden_act")


def mlp_of(model: LanguageModel, layer: int) -> Mlp:
    """The MLP of ``layer`` and the norm after it if there is one, on the model's device.

    Raises UsageError for an MLP of another form.
    """
    family = model.family
    module = module_at(model.block(layer), family.mlp)
    names = next(((up, down) for up, down in _LINEAR_NAMES if hasattr(module, up) and hasattr(module, down)), None)
    gate = getattr(module, "gate_proj", None)
    if names is None or (gate is not None and gate.bias is not None):
        raise UsageError(
            f"Targets cannot be recomputed with an MLP of the form that {model.source.name} has.",
            where=f"{type(module).__name__}: {', '.join(name for name, _ in module.named_children())}",
            remedy="Set cache.target to stored.",
        )
    up, down = (getattr(module, name) for name in names)
    config = model.source.config
    post = module_at(model.block(layer), family.post_norm) if family.post_norm else None
    return Mlp(
        activation=next(str(found) for name in _ACTIVATIONS if (found := getattr(config, name, None))),
        epsilon=epsilon_of(post) if post is not None else 0.0,
        up=_weight(up),
        down=_weight(down),
        gate=None if gate is None else _weight(gate),
        up_bias=_bias(up),
        down_bias=_bias(down),
        post_gain=None if post is None else family.offset + post.weight.detach().float(),
    )


def _weight(linear: Any) -> Float[Tensor, "out in"]:
    """GPT-2's Conv1D stores its weight transposed."""
    weight = linear.weight.detach()
    return weight.T.contiguous() if type(linear).__name__ == "Conv1D" else weight


def _bias(linear: Any) -> Float[Tensor, " out"] | None:
    return None if linear.bias is None else linear.bias.detach()
