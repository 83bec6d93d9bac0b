"""Which tensor each site is, in every supported architecture: as input or output of a module, hook name and formula.

    resid_mid      = resid_pre + attn_out
    ln2_normalized = normalise(resid_mid)              GPT-2: (x - mean) / std     Gemma-2: x / rms
    mlp_in         = ln2_normalized * gain + bias      Gemma-2: gain = 1 + weight, bias = 0
    mlp_out        = MLP(mlp_in)                       Gemma-2: after the post-feedforward norm
    resid_post     = resid_mid + mlp_out

If attention and MLP both read the block's input (Pythia), there is no resid_mid: ln2_normalized is computed from
resid_pre, and resid_post = resid_pre + attn_out + mlp_out.

``FAMILIES`` lists two architectures; ``harvest.model.families`` derives the others. Before a row is written,
``harvest.model.proof`` checks with the model's own numbers that all of this is true.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from common.norm import NormAffine
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
    """The input (``in``) or output (``out``) of a module inside a block; an empty path is the block itself."""

    path: str
    direction: Literal["in", "out"]


@dataclass(frozen=True)
class Family:
    """Where an architecture has its blocks and, inside a block, the inputs and outputs of modules that are sites."""

    blocks: str
    """The path of the list of blocks in the causal language model; the other paths begin at a block."""
    norm: str
    """The norm before the MLP."""
    mlp: str
    attention_out: End
    centred: bool
    """Whether the norm subtracts the mean (LayerNorm) or not (RMSNorm)."""
    post_norm: str | None = None
    """A norm between the MLP and the residual stream."""
    offset: float = 0.0
    """What the norm adds to its weight to make the gain: 1 in Gemma."""
    parallel: bool = False
    """Whether attention and MLP both read resid_pre."""

    @property
    def ends(self) -> dict[Site, End]:
        """The module input or output that is each site; ``ln2_normalized`` is that input after normalisation."""
        ends: dict[Site, End] = {
            "mlp_in": End(self.mlp, "in"),
            "ln2_normalized": End(self.norm, "in"),
            "mlp_out": End(self.post_norm or self.mlp, "out"),
            "resid_pre": End("", "in"),
            "resid_post": End("", "out"),
            "attn_out": self.attention_out,
        }
        if not self.parallel:
            ends["resid_mid"] = End(self.norm, "in")
        return ends

    @property
    def summands(self) -> tuple[Site, ...]:
        """The sites whose sum is ``resid_post``."""
        return ("resid_pre", "attn_out", "mlp_out") if self.parallel else ("resid_mid", "mlp_out")


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        blocks="transformer.h",
        norm="ln_2",
        mlp="mlp",
        attention_out=End("attn", "out"),
        centred=True,
    ),
    "gemma2": Family(
        blocks="model.layers",
        norm="pre_feedforward_layernorm",
        mlp="mlp",
        attention_out=End("post_attention_layernorm", "out"),
        centred=False,
        post_norm="post_feedforward_layernorm",
        offset=1.0,
    ),
}


def module_at(root: Any, path: str) -> Any:
    """The submodule at a dotted path; an empty path is ``root``."""
    return reduce(getattr, path.split("."), root) if path else root


@dataclass(frozen=True)
class Norm(NormAffine):
    """The norm before a layer's MLP, as ``normalise(x) * gain + bias``; float32."""

    epsilon: float
    centred: bool

    def normalise(self, resid_mid: Float[Tensor, "*batch d_source"]) -> Float[Tensor, "*batch d_source"]:
        """``ln2_normalized`` of a residual stream, in float32."""
        x = resid_mid.float()
        if self.centred:
            return functional.layer_norm(x, (x.shape[-1],), eps=self.epsilon)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)


def read_norm(module: Any, family: Family, *, width: int) -> Norm:
    """The norm that a Hugging Face module computes; a norm without weights has gain 1 and bias 0."""
    weight = getattr(module, "weight", None)
    bias = getattr(module, "bias", None)
    zeros = torch.zeros(width)
    return Norm(
        gain=zeros + 1 if weight is None else family.offset + weight.detach().float(),
        bias=zeros if bias is None else bias.detach().float(),
        epsilon=epsilon_of(module),
        centred=family.centred,
    )


def epsilon_of(norm: Any) -> float:
    """What a norm adds to the variance, by either of Hugging Face's two names for it, or PyTorch's default."""
    # 1e-5 is PyTorch's default, for a norm whose epsilon has another name.
    return float(next((getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name)), 1e-5))
