"""The private names of other libraries that the harvest uses are there in the installed releases."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from harvest.compat import attention_name, describe_architecture


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_the_attention_is_the_one_that_was_set(model_folders, kind):
    model = AutoModelForCausalLM.from_pretrained(model_folders["gpt2"], attn_implementation=kind)
    assert attention_name(model) == kind


def test_transformer_lens_names_a_blocks_modules(model_folder, family):
    components, loader = describe_architecture(AutoConfig.from_pretrained(model_folder))
    assert loader == "AutoModelForCausalLM"
    assert components["blocks"].name == {"gpt2": "transformer.h", "gemma2": "model.layers"}[family]
    assert components["blocks"].submodules["mlp"].name == "mlp"
