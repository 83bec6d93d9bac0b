"""Which family an architecture is: an entry of the table, or derived from TransformerLens's description of it.

TransformerLens's bridge describes, for every architecture that it wraps, which of Hugging Face's modules are a block's
attention, MLP and norms. A family derived from that is a claim. The site proof tries it on the model's own numbers
before a row is written, and what does not hold stops the run; what can be known to be wrong earlier is refused here.
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
    f"Known: {', '.join(FAMILIES)}, and what TransformerLens wraps of causal language models with one MLP and a norm "
    "before it in every block (Llama, Qwen, Mistral, Gemma, Phi, Pythia, ...)."
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
        raise refused(config, "TransformerLens describes no ordinary transformer blocks in it")
    modules = blocks.submodules
    parallel = isinstance(blocks, ParallelBlockBridge)
    mlp = modules.get("mlp")
    attention = modules.get("ln1_post") or modules.get("attn")
    # Where attention and MLP are parallel, one norm may serve both.
    norm = modules.get("ln2") or (modules.get("ln1") if parallel else None)
    if isinstance(mlp, MoEBridge):
        raise refused(config, "its MLPs are mixtures of experts, and a transcoder stands in for one MLP")
    if not (mlp and mlp.name and attention and attention.name):
        raise refused(config, "TransformerLens names no module in it that is a block's MLP, or none that is attention")
    if norm is None:
        raise refused(config, "no norm stands before its MLP, so it has neither mlp_in nor ln2_normalized apart")
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
    """Whether the gain is 1 + weight; TransformerLens 3 says it of all norms in the configuration alone."""
    of_every_norm = norm.uses_rms_norm and getattr(norm.config, "rmsnorm_uses_offset", False)
    return bool(getattr(norm, "uses_weight_offset", of_every_norm))


def _describe(config: Any) -> dict[str, Any]:
    """TransformerLens's components by name."""
    missing = [name for name in _WIDTHS if not isinstance(getattr(config, name, None), int)]
    if missing:
        raise refused(config, f"its configuration does not say {', '.join(missing)}")
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
    """Around the first proof of a derived family: what Hugging Face or TransformerLens raise there refuses it.

    Raises CapacityError when the proof does not fit the device.
    """
    try:
        yield
    except NestcoderError:
        raise
    except torch.OutOfMemoryError:
        raise CapacityError(
            "The site proof does not fit in the device's memory: the plain model keeps whole attention matrices.",
            remedy="Lower harvest.context, or free the device.",
        ) from None
    except Exception as error:
        if config.model_type in FAMILIES:
            raise
        first_line = str(error).splitlines()[0] if str(error) else ""
        why = f"the proof of its sites could not be computed ({type(error).__name__}: {first_line})"
        raise refused(config, why) from error
