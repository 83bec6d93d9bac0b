"""The embedded models have learned: on held-out text their loss is clearly less than a bigram's."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harvest.text.split import is_held_out
from harvest.text.stdlib import stdlib_documents

MODELS = Path(__file__).resolve().parents[2] / "models"
FAMILIES = ["gpt2", "gemma2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_record_states_seed_curve_and_baselines(family: str) -> None:
    record = json.loads((MODELS / f"{family}-stdlib" / "training.json").read_text())
    nats = record["nats_per_token"]
    assert nats["held_out_bfloat16"] < nats["bigram"] - 0.5 < nats["unigram"] - 2.0
    assert len(record["curve"]) >= 40
    assert record["seed"] == 0
    assert set(record["corpus"]) == {"python", "files", "characters", "hash"}


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_loss_is_clearly_under_the_bigrams(family: str) -> None:
    folder = MODELS / f"{family}-stdlib"
    record = json.loads((folder / "training.json").read_text())
    split = {"fraction": record["held_out_fraction"], "seed": record["split_seed"]}
    texts = [text for _, text in stdlib_documents() if is_held_out(text.encode(), **split)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:255] for text in texts]
    rows = torch.tensor([[tokenizer.bos_token_id, *row] for row in ids if len(row) == 255])
    assert len(rows) >= 10
    with torch.no_grad():
        loss = model(rows, labels=rows).loss.item()
    assert loss < record["nats_per_token"]["bigram"] - 0.3
