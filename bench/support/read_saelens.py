"""SAELens's cache, read by SAELens in an environment of its own: <its python> read_saelens.py FOLDER ROWS WIDTH

Two caches are made in FOLDER, for it keeps one tensor each; in float16, for it has no bfloat16. Then, for every line of
standard input, an epoch of shuffled batches of 4,096 rows is drawn from both, and the seconds are printed as JSON.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import torch
from datasets import Array2D, Dataset, Features
from sae_lens.training.activations_store import ActivationsStore

CONTEXT, BATCH_ROWS, HOOK = 256, 4096, "hook"

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
folder, rows, width = Path(sys.argv[1]), *map(int, sys.argv[2:4])


def make(path: Path) -> None:
    """As CacheActivationsRunner saves it: a row a context."""

    def contexts():
        generator = torch.Generator().manual_seed(0)
        for _ in range(rows // CONTEXT):
            yield {HOOK: torch.randn(CONTEXT, width, generator=generator).half().numpy()}

    features = Features({HOOK: Array2D(shape=(CONTEXT, width), dtype="float16")})
    Dataset.from_generator(contexts, features=features, cache_dir=str(folder / "made")).save_to_disk(path)


def store(path: Path) -> ActivationsStore:
    return ActivationsStore(
        model=None,
        dataset=None,
        streaming=False,
        hook_name=HOOK,
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=width,
        n_batches_in_buffer=64,
        total_training_tokens=rows,
        store_batch_size_prompts=16,
        train_batch_size_tokens=BATCH_ROWS,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float16",
        cached_activations_path=str(path),
    )


paths = [folder / name for name in ("source", "target")]
for path in paths:
    make(path)
print(json.dumps({"ready": True}), flush=True)
for _ in sys.stdin:
    stores = [store(path) for path in paths]
    for one in stores:
        next(one)
    began, processor = time.perf_counter(), time.process_time()
    for _ in range(rows // BATCH_ROWS):
        for one in stores:
            next(one)
    seconds = {"wall": time.perf_counter() - began, "cpu": time.process_time() - processor}
    print(json.dumps(seconds), flush=True)
