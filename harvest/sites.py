"""Which tensor a site is, in every supported architecture, three ways: as a module's end, a bridge hook, a formula.

    resid_mid      = resid_pre + attn_out
    ln2_normalized = normalise(resid_mid)              GPT-2: (x - mean) / std     Gemma-2: x / rms
    mlp_in         = ln2_normalized * gain + bias      Gemma-2: gain = 1 + weight, bias = 0
    mlp_out        = MLP(mlp_in)                       Gemma-2: after the post-feedforward norm
    resid_post     = resid_mid + mlp_out

A new architecture is an entry of ``FAMILIES`` and a tiny model in the tests; ``harvest.proof`` then checks it against
the bridge before a row is written.
"""

from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from harvest.config import Site

HOOKS: dict[Site, str] = {
    "mlp_in": "blocks.{layer}.mlp.hook_in",
    "ln2_normalized": "blocks.{layer}.ln2.hook_normalized",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "resid_post": "blocks.{layer}.hook_resid_post",
    "attn_out": "blocks.{layer}.hook_attn_out",
}
"""The plain TransformerLens 4 bridge's name of each site."""


@dataclass(frozen=True)
class End:
    """One end of a module inside a block: what goes ``in`` or comes ``out``; an empty path is the block itself."""

    path: str
    side: Literal["in", "out"]


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its blocks and, inside a block, the ends of modules that are sites."""

    blocks: str
    norm: str
    mlp: str
    post_norm: str | None
    attention_out: End
    centred: bool
    attention: str
    """Hugging Face's fast attention that computes the same function: Gemma-2's soft-cap rules sdpa out."""
    ends: dict[Site, End] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", {
            "mlp_in": End(self.mlp, "in"),
            "mlp_out": End(self.post_norm or self.mlp, "out"),
            "resid_pre": End("", "in"),
            "resid_mid": End(self.norm, "in"),
            "resid_post": End("", "out"),
            "attn_out": self.attention_out,
        })  # fmt: skip


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        blocks="h",
        norm="ln_2",
        mlp="mlp",
        post_norm=None,
        attention_out=End("attn", "out"),
        centred=True,
        attention="sdpa",
    ),
    "gemma2": Family(
        blocks="layers",
        norm="pre_feedforward_layernorm",
        mlp="mlp",
        post_norm="post_feedforward_layernorm",
        attention_out=End("post_attention_layernorm", "out"),
        centred=False,
        attention="eager",
    ),
}


def module_at(root: Any, path: str) -> Any:
    """The submodule at a dotted path; an empty path is ``root``."""
    return reduce(getattr, path.split("."), root) if path else root


def block_of(hugging: Any, layer: int) -> Any:
    """Transformer block ``layer`` of a Hugging Face model."""
    family = FAMILIES[hugging.config.model_type]
    return module_at(hugging.base_model, family.blocks)[layer]


@dataclass(frozen=True)
class Norm:
    """The norm in front of a layer's MLP, as ``normalise(x) * gain + bias``; float32."""

    gain: Float[Tensor, " d_source"]
    bias: Float[Tensor, " d_source"]
    epsilon: float
    centred: bool

    def normalise(self, resid_mid: Float[Tensor, "*batch d_source"]) -> Float[Tensor, "*batch d_source"]:
        """``ln2_normalized`` of a residual stream, in float32."""
        x = resid_mid.float()
        if self.centred:
            return functional.layer_norm(x, (x.shape[-1],), eps=self.epsilon)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)

    def apply(self, normalised: Float[Tensor, "*batch d_source"]) -> Float[Tensor, "*batch d_source"]:
        """``mlp_in`` of ``ln2_normalized``, in float32."""
        return normalised.float() * self.gain + self.bias


def norm_of(hugging: Any, layer: int) -> Norm:
    """The norm in front of the MLP of ``layer``."""
    family = FAMILIES[hugging.config.model_type]
    module = module_at(block_of(hugging, layer), family.norm)
    weight = module.weight.detach().float()
    if family.centred:
        return Norm(gain=weight, bias=module.bias.detach().float(), epsilon=float(module.eps), centred=True)
    return Norm(gain=1.0 + weight, bias=torch.zeros_like(weight), epsilon=float(module.eps), centred=False)
