"""Which family an architecture is: an entry of the table, or derived from TransformerLens's description of it.

For every architecture that it wraps, TransformerLens's bridge describes which of Hugging Face's modules are a block's
attention, MLP and norms. A family derived from that may be wrong. The site proof tests it on the model's own numbers
before a row is written, and a failure stops the run; architectures that cannot work are refused here.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from common.errors import CapacityError, NestcoderError, UsageError
from harvest.compat import describe_architecture
from harvest.model.sites import FAMILIES, End, Family, module_at

_WIDTHS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings")
_REMEDY = (
    f"Supported: {', '.join(FAMILIES)}, and causal language models that TransformerLens wraps and that have one MLP "
    "with a norm before it in every block (Llama, Qwen, Mistral, Gemma, Phi, Pythia, ...)."
)


def family_of(config: Any) -> Family:
    """The family of a Hugging Face configuration. Raises UsageError for one whose sites cannot be found."""
    return FAMILIES.get(config.model_type) or _derive(config)


def refused(config: Any, why: str) -> UsageError:
    """The error for an architecture whose sites cannot be found."""
    return UsageError(f"The architecture '{config.model_type}' is not supported: {why}.", remedy=_REMEDY)


def _derive(config: Any) -> Family:
    from transformer_lens.model_bridge.generalized_components import BlockBridge, MoEBridge, ParallelBlockBridge

    blocks = _describe(config).get("blocks")
    if not isinstance(blocks, BlockBridge):
        raise refused(config, "TransformerLens describes no usual transformer blocks in it")
    modules = blocks.submodules
    parallel = isinstance(blocks, ParallelBlockBridge)
    mlp = modules.get("mlp")
    attention = modules.get("ln1_post") or modules.get("attn")
    # If attention and MLP are parallel, one norm may serve both.
    norm = modules.get("ln2") or (modules.get("ln1") if parallel else None)
    if isinstance(mlp, MoEBridge):
        raise refused(config, "its MLPs are mixtures of experts, and a transcoder replaces one MLP")
    if not (mlp and mlp.name and attention and attention.name):
        raise refused(config, "TransformerLens names no module in it for a block's MLP, or none for its attention")
    if norm is None:
        raise refused(config, "there is no norm before its MLP, so mlp_in and ln2_normalized do not exist")
    post = modules.get("ln2_post")
    return Family(
        blocks=str(blocks.name),
        norm=str(norm.name),
        mlp=str(mlp.name),
        attention_out=End(str(attention.name), "out"),
        centred=not norm.uses_rms_norm,
        post_norm=post and str(post.name),
        offset=float(_adds_one(norm)),
        parallel=parallel,
    )


def _adds_one(norm: Any) -> bool:
    """Whether the gain is 1 + weight. TransformerLens 3 states it once for all norms, in the configuration."""
    shared_offset = norm.uses_rms_norm and getattr(norm.config, "rmsnorm_uses_offset", False)
    return bool(getattr(norm, "uses_weight_offset", shared_offset))


def _describe(config: Any) -> dict[str, Any]:
    """TransformerLens's components by name."""
    missing = [name for name in _WIDTHS if not isinstance(getattr(config, name, None), int)]
    if missing:
        raise refused(config, f"its configuration lacks {', '.join(missing)}")
    try:
        components, loader = describe_architecture(config)
    except Exception as error:
        raise refused(config, f"TransformerLens does not describe it ({type(error).__name__})") from None
    if loader != "AutoModelForCausalLM":
        raise refused(config, f"it is not a causal model of text alone ({loader} loads it)")
    return components


def check_modules(hugging: Any, family: Family) -> None:
    """Check that the loaded model has the family's modules. Raises UsageError that names what is missing."""
    try:
        for block in module_at(hugging, family.blocks):
            for path in (family.norm, family.mlp, family.post_norm or "", family.attention_out.path):
                module_at(block, path)
    except AttributeError as error:
        raise refused(hugging.config, f"TransformerLens names a module that it does not have ({error})") from None


@contextmanager
def first_proof(config: Any) -> Generator[None]:
    """For the first proof of a derived family: an error of Hugging Face or TransformerLens in the block refuses it.

    Raises CapacityError when the proof does not fit the device.
    """
    try:
        yield
    except NestcoderError:
        raise
    except torch.OutOfMemoryError:
        raise CapacityError(
            "The site proof does not fit in the device's memory: the plain model keeps complete attention matrices.",
            remedy="Lower harvest.context, or free the device.",
        ) from None
    except Exception as error:
        if config.model_type in FAMILIES:
            raise
        first_line = str(error).splitlines()[0] if str(error) else ""
        why = f"the proof of its sites could not be computed ({type(error).__name__}: {first_line})"
        raise refused(config, why) from error
