"""Tiny real models, GPT-2 and Gemma-2 in form, with random weights and a byte-level tokenizer."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging as hugging_logging

SPECIAL = {"gpt2": ["<|endoftext|>"], "gemma2": ["<pad>", "<eos>", "<bos>"]}


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    special = SPECIAL[family]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    names = {"bos_token": special[-1], "eos_token": special[0]}
    if family == "gemma2":
        names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _model(family: str):
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=320, n_positions=64, n_embd=64, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0)
        )
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=320,
            max_position_embeddings=64,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=16,
            attn_logit_softcapping=2.0,
            bos_token_id=2,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory) -> dict[str, Path]:
    """A folder for each family; gains, biases and norms are random too, so that nothing cancels by being trivial."""
    hugging_logging.disable_progress_bar()
    folders = {}
    for seed, family in enumerate(SPECIAL):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        model = _model(family)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        folders[family] = tmp_path_factory.mktemp(family)
        model.save_pretrained(folders[family])
        _tokenizer(family).save_pretrained(folders[family])
    return folders


@pytest.fixture(params=["gpt2", "gemma2"])
def family(request) -> str:
    return request.param


@pytest.fixture
def model_folder(model_folders, family) -> Path:
    return model_folders[family]


@pytest.fixture(autouse=True)
def short_timing(monkeypatch) -> None:
    """A plan measures the model's speed for three seconds, which no test needs."""
    for module in ("plan", "probe.stage"):
        monkeypatch.setattr(f"harvest.{module}._TIMED_SECONDS", 0.2)
