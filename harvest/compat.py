"""Everything that the harvest uses of other libraries and that they do not call public.

Written for the versions in constraints.txt. A release that renames one of these breaks here and nowhere else.
"""

from typing import Any

import torch


def attention_name(hugging: Any) -> str:
    """Which attention implementation a Hugging Face model runs with: ``eager``, ``sdpa``, ..."""
    return str(hugging.config._attn_implementation)


def describe_architecture(config: Any) -> tuple[dict[str, Any], str]:
    """TransformerLens's components of an architecture by name, and the name of the Hugging Face class that loads it.

    Raises what TransformerLens raises for an architecture that it does not know.
    """
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources import _bridge_builder as builder
    from transformer_lens.model_bridge.sources import transformers as sources

    name = sources.determine_architecture_from_hf_config(config)
    described = builder.build_bridge_config_from_hf(config, name, "", torch.float32)
    adapter = ArchitectureAdapterFactory.select_architecture_adapter(described)
    loader = sources.get_hf_model_class_for_architecture(name).__name__
    return dict(adapter.component_mapping or {}), loader
