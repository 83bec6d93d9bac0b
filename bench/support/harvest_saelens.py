"""SAELens's CacheActivationsRunner on a local model, in SAELens's own environment; prints CPU seconds as JSON.

<its python> harvest_saelens.py FOLDER CONTEXT TOKENS BATCH TEXT MODEL_CLASS

MODEL_CLASS is HookedTransformer, SAELens's default, or AutoModelForCausalLM, which is kinder to it at long contexts.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig
from transformer_lens import loading_from_pretrained

# A local folder is a model that HookedTransformer can load but has no official name for.
loading_from_pretrained.get_official_model_name = str
HOOKS = {
    "HookedTransformer": ("blocks.8.hook_mlp_out", "blocks.8.ln2.hook_normalized"),
    "AutoModelForCausalLM": ("transformer.h.8.mlp", "transformer.h.8.ln_2"),
}
folder, context, tokens, batch, text, model_class = sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:7]
torch.set_num_threads(1)
with Path(text).open(encoding="utf-8") as file:
    documents = [json.loads(line)["text"] for line in file]


def run(hook: str) -> tuple[float, int]:
    """CPU seconds, and tokens written."""
    with tempfile.TemporaryDirectory() as scratch:
        config = CacheActivationsRunnerConfig(
            dataset_path="",
            model_name=folder,
            model_class_name=model_class,
            model_batch_size=batch,
            hook_name=hook,
            d_in=768,
            training_tokens=tokens,
            context_size=context,
            new_cached_activations_path=f"{scratch}/cache",
            shuffle=False,
            dtype="float32",
            device="cpu",
            buffer_size_gb=tokens * 768 * 4 / 1e9,  # one buffer of just the tokens asked for
        )
        runner = CacheActivationsRunner(config, override_dataset=Dataset.from_dict({"text": documents}))
        started = time.process_time()
        runner.run()
        seconds = time.process_time() - started
        rows = sum(len(Dataset.from_file(str(path))) for path in Path(f"{scratch}/cache").rglob("*.arrow"))
        return seconds, rows * context


(target, written), (source, again) = (run(hook) for hook in HOOKS[model_class])
assert written == again
print(json.dumps({"seconds": target + source, "tokens": written, "one": target}))
