"""Runs a model's first blocks and captures the requested sites, in two ways: with Hugging Face's modules or the bridge.

The fast way calls Hugging Face's own modules, cut after the last requested layer, with the fastest attention that
computes the same function, and captures the sites with hooks on the modules. The plain way is TransformerLens's bridge
with hook names; ``harvest.model.proof`` compares the two.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from common.errors import MismatchError
from harvest.compat import attention_name
from harvest.config import Site
from harvest.model.language_model import LanguageModel
from harvest.model.sites import HOOKS, module_at

Key = tuple[int, Site]
"""A layer and a site of it."""
Captured = dict[Key, Tensor]
"""The captured tensors of a forward pass: (batch, pos, d) in the model's dtype (``ln2_normalized`` in float32)."""


@torch.inference_mode()
def run_modules(
    model: LanguageModel,
    tokens: Int[Tensor, "batch pos"],
    *,
    keys: Sequence[Key],
    positions: Int[Tensor, "batch pos"] | None = None,
) -> Captured:
    """The requested sites, from Hugging Face's modules.

    ``positions`` that begin at 0 again inside a context keep attention inside the documents that they mark.
    Raises MismatchError when a hook captures nothing.
    """
    captured: Captured = {}
    with _recording(model, keys, captured):
        model.hugging.base_model(input_ids=tokens, position_ids=positions, use_cache=False)
    return _complete(captured, keys)


@torch.inference_mode()
def run_bridge(bridge: Any, tokens: Int[Tensor, "batch pos"], *, keys: Sequence[Key]) -> Captured:
    """The requested sites, from the plain bridge's hooks. Raises MismatchError when a hook captures nothing."""
    # If one norm serves attention and MLP, the bridge calls it ln1.
    norm = "ln2" if hasattr(bridge.blocks[0], "ln2") else "ln1"
    names = {key: HOOKS[key[1]].format(layer=key[0]).replace("ln2", norm) for key in keys}
    last = max(layer for layer, _ in keys)
    # Nothing stops a model that was cut after this layer, so it goes on to the logits. Those of one position do: of two
    # contexts of 1,024 tokens and a vocabulary of 256,000 all of them would be 2 GB in float32, several times.
    unembed = bridge.original_model.get_output_embeddings()
    shortened = unembed.register_forward_pre_hook(_last_position)
    # The bridge ignores a name that does not exist as long as another one exists, so completeness is checked below.
    try:
        _, cache = bridge.run_with_cache(
            tokens, names_filter=list(names.values()), return_type=None, stop_at_layer=last + 1
        )
    except KeyError:
        cache = {}
    finally:
        shortened.remove()
    return _complete({key: cache[name] for key, name in names.items() if name in cache}, keys)


def _last_position(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The arguments of an unembedding, for the last position alone."""
    return (args[0][..., -1:, :], *args[1:]) if args else None


def use_attention(model: LanguageModel, kind: str) -> None:
    """Switch Hugging Face's attention: ``eager`` or ``sdpa``."""
    model.hugging.set_attn_implementation(kind)


def attention_of(model: LanguageModel) -> str:
    """Which of Hugging Face's attention implementations the model uses."""
    return attention_name(model.hugging)


def compile_blocks(model: LanguageModel, keys: Sequence[Key]) -> None:
    """Compile every block from which nothing is captured: hooks inside a compiled block would break its graph."""
    captured = {layer for layer, _ in keys}
    for layer in set(range(model.last_layer + 1)) - captured:
        model.block(layer).compile()


@contextmanager
def _recording(model: LanguageModel, keys: Sequence[Key], captured: Captured) -> Generator[None]:
    handles = [_record(model, key, captured) for key in keys]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record(model: LanguageModel, key: Key, captured: Captured) -> Any:
    layer, site = key
    normalise = model.norm(layer).normalise if site == "ln2_normalized" else None
    return _hook(model, key, lambda tensor: captured.__setitem__(key, normalise(tensor) if normalise else tensor))


def _hook(model: LanguageModel, key: Key, keep: Callable[[Tensor], None]) -> Any:
    layer, site = key
    end = model.family.ends[site]
    module = module_at(model.block(layer), end.path)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(args[0] if args else kwargs["hidden_states"])

    def after(_: Any, __: Any, output: Any) -> None:
        keep(output[0] if isinstance(output, tuple) else output)

    if end.direction == "in":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _complete(captured: Captured, keys: Sequence[Key]) -> Captured:
    missing = [f"{site} of layer {layer}" for layer, site in keys if (layer, site) not in captured]
    if missing:
        raise MismatchError(
            f"The model gives no tensor for {', '.join(missing)}.",
            remedy="Install the versions of transformers and transformer_lens in constraints.txt: names have changed.",
        )
    return captured
