"""A layer's MLP as plain weights, for a cache that computes targets from sources (``cache.storage.recompute``).

Found by the names that Hugging Face's models give an MLP's parts. Whether what is found is the MLP, the site proof says
before a row is written.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from cache.storage.recompute import Mlp
from common.errors import UsageError
from harvest.model.language_model import LanguageModel
from harvest.model.sites import epsilon_of, module_at

_PARTS = (
    ("up_proj", "down_proj"),
    ("c_fc", "c_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("fc1", "fc2"),
    ("fc_in", "fc_out"),
)
_ACTIVATIONS = ("hidden_activation", "activation_function", "hidden_act")


def mlp_of(model: LanguageModel, layer: int) -> Mlp:
    """The MLP of ``layer``, and the norm behind it where there is one, on the device where they lie.

    Raises UsageError for an MLP of another form.
    """
    family = model.family
    module = module_at(model.block(layer), family.mlp)
    parts = next(((up, down) for up, down in _PARTS if hasattr(module, up) and hasattr(module, down)), None)
    gate = getattr(module, "gate_proj", None)
    if parts is None or (gate is not None and gate.bias is not None):
        raise UsageError(
            f"The MLP of {model.source.name} is not of a form from which targets can be recomputed.",
            where=f"{type(module).__name__}: {', '.join(name for name, _ in module.named_children())}",
            remedy="Set cache.target to stored.",
        )
    up, down = (getattr(module, part) for part in parts)
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
    """GPT-2's Conv1D keeps its weight the other way round."""
    weight = linear.weight.detach()
    return weight.T.contiguous() if type(linear).__name__ == "Conv1D" else weight


def _bias(linear: Any) -> Float[Tensor, " out"] | None:
    return None if linear.bias is None else linear.bias.detach()
