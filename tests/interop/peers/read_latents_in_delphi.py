"""Runs in an environment of delphi: its own LatentDataset on our latent cache.

python read_latents_in_delphi.py FOLDER MODEL

Every firing that its buffers read is kept, and of every record that its constructor and sampler make the strongest
examples. Contexts without a firing are drawn by delphi itself.
"""

import contextlib
import io
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from delphi.config import ConstructorConfig, SamplerConfig
from delphi.latents import LatentDataset
from transformers import AutoTokenizer

exported = Path(sys.argv[1]).absolute()
dataset = LatentDataset(
    raw_dir=exported / "delphi" / "latents",
    sampler_cfg=SamplerConfig(n_examples_train=10, n_examples_test=10, n_quantiles=5),
    constructor_cfg=ConstructorConfig(min_examples=20, n_non_activating=5, example_ctx_len=32),
    tokenizer=AutoTokenizer.from_pretrained(sys.argv[2]),
)
firings = {}
for buffer in dataset.buffers:
    for latent in buffer:
        firings[latent.latent.latent_index] = latent.activation_data._asdict()
records = {}
# It prints a line for every latent with too few examples.
with contextlib.redirect_stdout(io.StringIO()):
    made = list(dataset)
for record in made:
    strongest = record.examples[:3]
    records[record.latent.latent_index] = {
        "frequency": record.per_token_frequency,
        "tokens": torch.stack([example.tokens for example in strongest]),
        "activations": torch.stack([example.activations for example in strongest]),
        "train": len(record.train),
        "test": len(record.test),
        "silent": len(record.not_active),
    }
found = {
    "peer": f"delphi {version('eai-delphi')}",
    "modules": dataset.modules,
    "tokens": dataset.tokens,
    "firings": firings,
    "records": records,
}
torch.save(found, exported / "found.delphi.pt")
