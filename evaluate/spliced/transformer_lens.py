"""The same splice as hooks for TransformerLens, with TransformerLens's names of the sites.

    model.run_with_hooks(tokens, fwd_hooks=nestcoder.transformer_lens_hooks({8: transcoder}))

Nothing here imports TransformerLens: a hook is a function of (tensor, hook point). ``ln2.hook_normalized`` means the
same in every version and under every folding of weights; ``mlp.hook_in`` exists in bridges (TransformerLens 4) alone.
So what reads the MLP's input reads the former where the dictionary's config.json holds the norm's gain.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.errors import UsageError
from evaluate.spliced.replace import SitePair, rows_replaced
from evaluate.spliced.splice import Change, StandIn
from harvest.model.sites import HOOKS
from transcoder.transcoder import Transcoder

Hook = tuple[str, Callable[..., Any]]
"""A hook point's name and what to call there, as ``fwd_hooks`` takes them."""


def transformer_lens_hooks(
    transcoders: Mapping[int, Transcoder],
    *,
    prefix: int | None = None,
    error_term: bool = False,
    change: Mapping[int, Mapping[int, Change]] | None = None,
    ordinary: Bool[Tensor, "batch pos"] | None = None,
) -> list[Hook]:
    """Pairs for ``fwd_hooks`` of ``run_with_hooks`` or ``hooks``, with the arguments of ``nestcoder.splice``.

    A hook sees no tokens: ``ordinary`` says at which positions to replace (None: at all of them); training left out
    special tokens, so ``tokens != bos`` is what compares with ``nestcoder.splice``. Raises UsageError for a site that
    TransformerLens cannot replace.

        hooks = nestcoder.transformer_lens_hooks({8: transcoder}, ordinary=tokens != 0)
        logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks)
    """
    pairs: list[Hook] = []
    for layer, transcoder in transcoders.items():
        sites = SitePair.from_facts(transcoder.config, location=transcoder.name)
        if sites.target in ("ln2_normalized", "resid_mid"):
            what = f"TransformerLens replaces {sites.target} only for what the MLP reads, not for what comes after it."
            raise UsageError(what, remedy="Use nestcoder.splice on the Hugging Face model.")
        source, view = hook_read(transcoder, layer)
        used = transcoder if prefix is None else transcoder.truncate(prefix)
        # What comes out of ``view`` is what the dictionary reads: there is no norm to be undone.
        stand_in = StandIn(used.replaced(source_view="mlp_in"), None, (change or {}).get(layer), error_term=error_term)
        target = HOOKS[sites.target].format(layer=layer)
        pairs += _pair(source, target, stand_in=stand_in, view=view, ordinary=ordinary)
    return pairs


def _pair(
    source: str,
    target: str,
    *,
    stand_in: StandIn,
    view: Callable[[Tensor], Tensor],
    ordinary: Bool[Tensor, "batch pos"] | None,
) -> list[Hook]:
    """The hook that stores the source, and the hook that replaces the target. At one hook point they run in this
    order."""
    seen: dict[str, Tensor] = {}

    def remember(tensor: Tensor, hook: object = None) -> None:  # noqa: ARG001 - hooks are called by this name
        seen["source"] = view(tensor)

    def replace(tensor: Tensor, hook: object = None) -> Tensor:  # noqa: ARG001
        replaced = torch.ones(tensor.shape[:2], dtype=torch.bool) if ordinary is None else ordinary
        return rows_replaced(tensor, seen["source"], stand_in, replaced.to(tensor.device))

    return [(source, remember), (target, replace)]


def hook_read(transcoder: Transcoder, layer: int) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The hook point that a dictionary of this layer reads, and a function from its tensor to the dictionary's
    input."""
    site = SitePair.from_facts(transcoder.config, location=transcoder.name).source
    view = _itself
    if transcoder.source_view == "ln2_normalized":
        site = "ln2_normalized"
    elif site == "mlp_in" and transcoder.config.get("gain") is not None:
        site = "ln2_normalized"
        gain = torch.tensor(transcoder.config["gain"])
        bias = torch.tensor(transcoder.config.get("bias") or [0.0] * len(gain))
        view = _scaled(gain, bias)
    return HOOKS[site].format(layer=layer), view


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _scaled(gain: Float[Tensor, " d_source"], bias: Float[Tensor, " d_source"]) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.float() * gain.to(tensor.device) + bias.to(tensor.device)
