"""SAELens's CacheActivationsRunner on a local model, in SAELens's own environment; prints CPU seconds as JSON.

<its python> harvest_saelens.py FOLDER CONTEXT TOKENS BATCH TEXT
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

folder, context, tokens, batch, text = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
torch.set_num_threads(1)
with Path(text).open(encoding="utf-8") as file:
    documents = [json.loads(line)["text"] for line in file]
with tempfile.TemporaryDirectory() as scratch:
    config = CacheActivationsRunnerConfig(
        dataset_path="",
        model_name=folder,
        model_class_name="AutoModelForCausalLM",
        model_batch_size=batch,
        hook_name="transformer.h.8.mlp",
        d_in=768,
        training_tokens=tokens,
        context_size=context,
        new_cached_activations_path=f"{scratch}/cache",
        shuffle=False,
        dtype="float32",
        device="cpu",
        buffer_size_gb=0.02,
    )
    runner = CacheActivationsRunner(config, override_dataset=Dataset.from_dict({"text": documents}))
    started = time.process_time()
    runner.run()
    print(json.dumps({"seconds": time.process_time() - started}))
