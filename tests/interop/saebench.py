"""Dictionaries of a finished run in SAEBench itself, through the adapter, on local text and a local model; no network.

    python tests/interop/saebench.py RUN MODEL AUTOENCODER

RUN is runs/<model>/layer08, AUTOENCODER the folder of an autoencoder of mlp_out on its cache (``make interop`` leaves
one below .interop/runs). It runs in an environment with sae-bench 0.6.0 and TransformerLens 3.9, whose pins exclude
ours (pip install --no-deps sae-bench, and what it imports), this checkout on PYTHONPATH, and JAXTYPING_DISABLE=1: the
shapes that its probe training declares contradict each other. What comes from the Hub there is given: the model (its
class reads our weights), tokens of held-out text, and, for sparse probing, texts of five packages of the standard
library in place of the data sets. Prints JSON; an assertion fails where SAEBench and we disagree.
"""

import json
import random
import sys
import sysconfig
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from sae_bench.evals.meta_structure import main as meta_structure
from sae_bench.evals.meta_structure.eval_config import MetaStructureEvalConfig
from sae_bench.evals.sparse_probing import main as probing
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
from sae_bench.sae_bench_utils import dataset_info, dataset_utils, general_utils
from transformer_lens import HookedTransformer
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from hooked import gpt2

from cache.open import open_cache
from common.errors import UsageError
from evaluate.spliced.saebench import SAEBenchAdapter
from transcoder.formats.native import load_transcoder

CONTEXTS = 16
CLASSES = ("asyncio", "email", "tkinter", "encodings", "unittest")
TEXTS = {"train": 120, "test": 60}
CHARACTERS = 400
DATASET = "standard-library"


class Tokens:
    """What ``run_evals`` asks of an activation store."""

    store_batch_size_prompts = CONTEXTS

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens
        self.context_size = tokens.shape[1]

    def get_batch_tokens(self, count: int) -> torch.Tensor:
        return self.tokens[:count]

    def reset_input_dataset(self) -> None:
        pass


def contexts(cache: Path) -> torch.Tensor:
    """The first complete contexts of held-out text."""
    view = open_cache(cache).split("held_out")
    starts = (view.position == 0).nonzero()[0]
    length = int((starts[1:] - starts[:-1]).max())
    full = [start for start, end in pairwise(starts) if end - start == length][:CONTEXTS]
    return torch.stack([torch.from_numpy(view.tokens[start : start + length].astype("int64")) for start in full])


def core(model: HookedTransformer, tokens: torch.Tensor, adapter: SAEBenchAdapter) -> dict[str, Any]:
    """SAEBench's core evaluation of the adapter's dictionary."""
    _, sae, _ = general_utils.load_and_format_sae("run", adapter, "cpu")
    config = CoreEvalConfig(
        model_name="gpt2",
        batch_size_prompts=len(tokens),
        n_eval_reconstruction_batches=1,
        n_eval_sparsity_variance_batches=1,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=False,
    )
    metrics, _ = run_evals(sae, Tokens(tokens), model, config)
    return metrics


def our_definitions(model: HookedTransformer, tokens: torch.Tensor, adapter: SAEBenchAdapter) -> dict[str, float]:
    """L0 and explained variance of the activations at the hook, and cross-entropy with them reconstructed."""
    name = adapter.cfg.hook_name
    seen = model.run_with_cache(tokens, names_filter=[name], prepend_bos=False)[1][name].flatten(0, 1)
    made = adapter.decode(adapter.encode(seen))
    loss = model.run_with_hooks(
        tokens, return_type="loss", fwd_hooks=[(name, lambda value, hook: adapter(value))], prepend_bos=False
    )
    errors = (seen - made).double().square().sum()
    return {
        "l0": float((adapter.encode(seen) > 0).sum(dim=1).float().mean()),
        "explained_variance": 1 - float(errors / (seen - seen.mean(dim=0)).double().square().sum()),
        "ce_loss_with_sae": float(loss),
    }


def texts(split: str) -> dict[str, list[str]]:
    """Pieces of the sources of each package; no piece is in both splits."""
    found: dict[str, list[str]] = {}
    for label, name in enumerate(CLASSES):
        files = sorted((Path(sysconfig.get_path("stdlib")) / name).glob("*.py"))
        source = "".join(file.read_text(errors="replace") for file in files)
        pieces = [source[start : start + CHARACTERS] for start in range(0, len(source) - CHARACTERS, CHARACTERS)]
        random.Random(0).shuffle(pieces)
        first = 0 if split == "train" else TEXTS["train"]
        found[str(label)] = pieces[first : first + TEXTS[split]]
    return found


def sparse_probing(model: HookedTransformer, adapter: SAEBenchAdapter) -> dict[str, Any]:
    """SAEBench's sparse probing of the adapter's features, on our texts."""
    dataset_utils.get_multi_label_train_test_data = lambda *_, **__: (texts("train"), texts("test"))
    dataset_info.chosen_classes_per_dataset[DATASET] = [str(label) for label in range(len(CLASSES))]
    config = SparseProbingEvalConfig(
        dataset_names=[DATASET],
        context_length=64,
        probe_train_set_size=TEXTS["train"] * 2,
        probe_test_set_size=TEXTS["test"] * 2,
        llm_batch_size=32,
        llm_dtype="float32",
        model_name="gpt2",
        k_values=[1, 5],
    )
    _, sae, _ = general_utils.load_and_format_sae("run", adapter, "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        results, _ = probing.run_eval_single_sae(config, sae, model, "cpu", temporary, save_activations=False)
    return {key: value for key, value in results.items() if isinstance(value, float)}


def structure(adapter: SAEBenchAdapter) -> float:
    """SAEBench's fraction of the decoder's variance that a dictionary of its rows explains, after a few steps."""
    _, sae, _ = general_utils.load_and_format_sae("run", adapter, "cpu")
    config = MetaStructureEvalConfig(train_steps=100, train_batch_size=256, autocast=False, dtype="float32")
    found = meta_structure.run_eval_single_sae("run", "custom", sae, config, "cpu")
    return found.eval_result_metrics.meta_structure.decoder_fraction_variance_explained


def refusal(measure: Any) -> str:
    """The sentence with which the adapter refuses."""
    try:
        measure()
    except UsageError as error:
        return str(error)
    raise AssertionError("it was measured")


def main() -> None:
    """Run what can be run, and what must be refused."""
    torch.manual_seed(0)
    run, model_folder, autoencoder_folder = (Path(argument) for argument in sys.argv[1:4])
    model = gpt2(str(model_folder), HookedTransformer)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.tokenizer = tokenizer
    tokens = contexts(run / "cache")
    autoencoder = SAEBenchAdapter(load_transcoder(autoencoder_folder), model_name="gpt2")
    transcoder = SAEBenchAdapter(load_transcoder(run / "transcoder" / "main"), model_name="gpt2")
    with torch.no_grad():
        measured = core(model, tokens, autoencoder)
        expected = our_definitions(model, tokens, autoencoder)
        found = {
            "l0": measured["sparsity"]["l0"],
            "explained_variance": measured["reconstruction_quality"]["explained_variance"],
            "ce_loss_with_sae": measured["model_performance_preservation"]["ce_loss_with_sae"],
        }
    report = {"core of an autoencoder": measured, "ours": expected}
    print(json.dumps(report, indent=1, default=float))
    for key in ("l0", "ce_loss_with_sae"):
        assert abs(found[key] - expected[key]) < 1e-3, key
    report["sparse probing of a transcoder"] = sparse_probing(model, transcoder)
    report["sparse probing of an autoencoder"] = sparse_probing(model, autoencoder)
    report["core of a transcoder"] = refusal(lambda: core(model, tokens, transcoder))
    probe = torch.randn(1, transcoder.cfg.d_in)
    report["absorption of a transcoder"] = refusal(
        lambda: torch.nn.functional.cosine_similarity(probe, transcoder.W_dec, dim=-1)
    )
    print(json.dumps(report, indent=1, default=float))
    print(json.dumps({"meta-structure of a transcoder": structure(transcoder)}))


if __name__ == "__main__":
    main()
