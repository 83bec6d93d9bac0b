"""Two layers at once: the numbers of two plain splices, one in the other; caches of other texts are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import nestcoder
from cache.reader import CacheReader
from common.errors import MismatchError
from evaluate.spliced.all_layers import check_same_text
from evaluate.spliced.contexts import held_out_contexts
from harvest.model.language_model import load_model
from nestcoder.cli import command_line

MODEL = Path(__file__).parents[3] / "models" / "gpt2-stdlib"
SMALL = (
    "harvest.train_tokens=1200", "harvest.held_out_tokens=400", "harvest.context=64", "cache.held_out_fraction=0.3",
    "train.steps=8", "train.warmup_steps=2", "train.batch_rows=64", "train.held_out_rows=128",
    "train.prefixes=[16, 64]", "train.top_k=4", "evaluate.bootstrap=10", "evaluate.lm_tokens=256",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together") / "runs"
    settings = nestcoder.load_settings(overrides=[*SMALL, f"model={MODEL}", f"runs={folder}"])
    nestcoder.run_harvest(settings, [4, 8], device="cpu")
    nestcoder.run_train(settings, [4, 8], device="cpu")
    return folder


def test_the_table_says_what_one_splice_inside_another_does(runs: Path) -> None:
    options = [item for setting in (*SMALL, f"model={MODEL}", f"runs={runs}") for item in ("--set", setting)]
    done = CliRunner().invoke(command_line, [*options, "evaluate", "--together", "--device", "cpu"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert "Layers 4, 8 spliced into" in done.output
    report = runs / "gpt2-stdlib" / "together" / "main"
    assert {"metrics.json", "summary.txt", "checksums.json"} == {path.name for path in report.iterdir()}
    settings = nestcoder.load_settings(overrides=[*SMALL, f"model={MODEL}", f"runs={runs}"])
    found = nestcoder.run_together(settings, [4, 8], device="cpu")["language_model"]

    model = load_model(str(MODEL), device="cpu", dtype="float32")
    base = runs / "gpt2-stdlib"
    dictionaries = {layer: nestcoder.load_transcoder(base / f"layer0{layer}/transcoder/main") for layer in (4, 8)}
    reader = CacheReader.open(base / "layer04" / "cache")
    for index, prefix in enumerate((16, 64)):
        losses, clean = [], []
        for contexts in held_out_contexts(reader, tokens=256, batch_tokens=1, device="cpu"):
            counted = ~torch.isin(contexts.tokens, torch.tensor(reader.special_ids))[0, :-1]
            following = contexts.tokens[0, 1:]
            with torch.no_grad():
                own = model.hugging(input_ids=contexts.tokens).logits[0, :-1]
                with (
                    nestcoder.splice(model, {4: dictionaries[4]}, prefix=prefix),
                    nestcoder.splice(model, {8: dictionaries[8]}, prefix=prefix),
                ):
                    both = model.hugging(input_ids=contexts.tokens).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(both, following, reduction="none")[counted])
            clean.append(torch.nn.functional.cross_entropy(own, following, reduction="none")[counted])
        expected = float(torch.cat(losses).mean() - torch.cat(clean).mean())
        assert found["per_prefix"][index]["delta"] == pytest.approx(expected, abs=1e-4)


def test_an_autoencoder_of_mlp_in_is_spliced_alone_and_with_another(runs: Path, tmp_path: Path) -> None:
    """Against plain Hugging Face hooks on the MLP's input."""
    shutil.copytree(runs, tmp_path / "runs")
    overrides = [*SMALL, f"model={MODEL}", f"runs={tmp_path / 'runs'}", "train.kind=sae"]
    settings = nestcoder.load_settings(overrides=overrides)
    nestcoder.run_train(settings, [4, 8], name="sae", device="cpu")
    alone = nestcoder.run_evaluate(settings, [8], name="sae", device="cpu", lm=True)[8]["language_model"]
    both = nestcoder.run_together(settings, [4, 8], name="sae", device="cpu")["language_model"]

    model = load_model(str(MODEL), device="cpu", dtype="float32")
    base = tmp_path / "runs" / "gpt2-stdlib"
    saes = {layer: nestcoder.load_transcoder(base / f"layer0{layer}/transcoder/sae") for layer in (4, 8)}
    reader = CacheReader.open(base / "layer08" / "cache")
    special = torch.tensor(reader.special_ids)

    def loss(tokens: torch.Tensor, layers: tuple[int, ...]) -> torch.Tensor:
        ordinary = ~torch.isin(tokens, special)

        def hook(sae: nestcoder.Transcoder) -> Callable[..., tuple[torch.Tensor]]:
            def replace(_: object, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
                found = args[0].clone()
                found[ordinary] = sae.reconstructions(args[0][ordinary])[:, -1]
                return (found,)

            return replace

        mlps = {layer: model.hugging.transformer.h[layer].mlp for layer in layers}
        handles = [mlp.register_forward_pre_hook(hook(saes[layer])) for layer, mlp in mlps.items()]
        with torch.no_grad():
            logits = model.hugging(input_ids=tokens).logits[0, :-1]
        for handle in handles:
            handle.remove()
        return torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")[ordinary[0, :-1]]

    contexts = [context.tokens for context in held_out_contexts(reader, tokens=256, batch_tokens=1, device="cpu")]
    replaced = ((), (8,), (4, 8))
    clean, single, pair = (torch.cat([loss(tokens, layers) for tokens in contexts]).mean() for layers in replaced)
    assert alone["per_prefix"][-1]["delta"] == pytest.approx(float(single - clean), abs=1e-4)
    assert both["per_prefix"][-1]["delta"] == pytest.approx(float(pair - clean), abs=1e-4)
    assert abs(float(single - clean)) > 1e-3


def test_caches_of_other_text_are_refused(runs: Path, tmp_path: Path) -> None:
    base = runs / "gpt2-stdlib"
    readers = {layer: CacheReader.open(base / f"layer0{layer}" / "cache") for layer in (4, 8)}
    check_same_text(readers)
    shutil.copytree(base / "layer08" / "cache", tmp_path / "cache")
    reader = CacheReader.open(tmp_path / "cache")
    reader.identity = reader.identity | {"weights_hash": "another"}
    with pytest.raises(MismatchError, match="layers 4 and 8 are not of the same model and text"):
        check_same_text({4: readers[4], 8: reader})
