"""An autoencoder fine-tuned in the model, at the site that it reconstructs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import nestcoder

Settings = Callable[..., nestcoder.PipelineSettings]


def test_an_autoencoder_is_tuned_as_it_is_spliced(trained: Path, settings_in: Settings, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(trained, runs)
    settings = settings_in(
        runs, "finetune.tokens=1280", "finetune.lr=0.004", "finetune.kl_weight=5", "evaluate.lm_tokens=400"
    )
    metrics = nestcoder.run_finetune(settings, [8], name="sae", device="cpu")
    old, new = (metrics["language_model"][which]["per_prefix"] for which in ("before", "after"))
    for before, after in zip(old, new, strict=True):
        assert after["kl"] < 0.95 * before["kl"]
    result = nestcoder.load_transcoder(runs / "gpt2-stdlib/layer08/transcoder/sae-finetuned")
    assert (result.kind, result.column) == ("sae", "source")
    assert result.config["finetuned"]["from"] == "sae"
    report = nestcoder.run_evaluate(settings, [8], name="sae-finetuned", device="cpu", lm=True)[8]
    assert report["fvu_per_prefix"] == metrics["layers"][0]["after"]["fvu_per_prefix"]
