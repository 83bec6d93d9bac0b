"""The first-letter probe: which words, which row, what is on disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from cache.format.manifest import read_manifest
from common.errors import MismatchError, UsageError
from common.progress import Silent
from harvest.config import HarvestSettings
from harvest.model.source import find_model
from harvest.model.tokenizer import load_tokenizer
from harvest.probe.stage import harvest_probe, plan_probe
from harvest.probe.words import choose_words, probe_contexts
from harvest.request import HarvestRequest
from harvest.run import harvest_layers
from tests.helpers.progress import StopAt, StoppedError

WORDS = [f"{a}{b}{c}" for a in "abcdef" for b in "aeiou" for c in "nt"]


@pytest.fixture(scope="module")
def folder(model_folders, tmp_path_factory) -> Path:
    """The tiny GPT-2 with a tokenizer that knows sixty words."""
    folder = tmp_path_factory.mktemp("worded")
    hugging = AutoModelForCausalLM.from_pretrained(model_folders["gpt2"])
    hugging.resize_token_embeddings(420)
    hugging.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" " + " ".join(WORDS)] * 50, trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n} " + " ".join(WORDS)}) + "\n" for n in range(40)))
    return path


def settings(text) -> HarvestSettings:
    return HarvestSettings(dataset=str(text), context=32, train_tokens=100, held_out_tokens=20)


def test_words_are_single_tokens_split_once(folder):
    tokenizer = load_tokenizer(find_model(str(folder)))
    words = choose_words(tokenizer)
    assert set(words.words) & set(WORDS)
    assert [tokenizer.backend.decode([token]).strip() for token in words.tokens] == list(words.words)
    assert 0.1 < sum(words.test) / len(words.test) < 0.3
    assert words == choose_words(tokenizer)


def test_a_context_ends_with_its_word_and_does_not_contain_it_before(folder):
    tokenizer = load_tokenizer(find_model(str(folder)))
    words = choose_words(tokenizer)
    for word, token, context in zip(
        words.words, words.tokens, probe_contexts(tokenizer, words, positions=64), strict=True
    ):
        assert context[0] == tokenizer.bos
        assert context[-1] == token
        assert len(context) <= 64
        assert f" {word} has" not in tokenizer.backend.decode(context.tolist())


def test_the_probe_is_the_model_at_the_word(folder, text, tmp_path):
    request = HarvestRequest(str(folder), {1: tmp_path / "cache"}, settings=settings(text), device="cpu")
    harvest_layers(request)
    out = tmp_path / "probe" / "first-letter"
    harvest_probe(request, folders={1: out})
    tensors, about = load_file(out / "probe.safetensors"), json.loads((out / "probe.json").read_text())
    assert about["fingerprint"] == read_manifest(tmp_path / "cache").fingerprint
    assert tensors["source"].dtype == torch.bfloat16
    assert [chr(97 + int(letter)) for letter in tensors["letter"]] == [word[0] for word in about["words"]]

    tokenizer = load_tokenizer(find_model(str(folder)))
    contexts = probe_contexts(tokenizer, choose_words(tokenizer), positions=64)
    hugging = AutoModelForCausalLM.from_pretrained(folder).eval()
    seen = {}
    hugging.transformer.h[1].mlp.register_forward_hook(lambda _, args, out: seen.update(source=args[0], target=out))
    for row in (0, len(contexts) - 1):
        with torch.inference_mode():
            hugging(contexts[row][None])
        for name in ("source", "target"):
            assert torch.allclose(tensors[name][row].float(), seen[name][0, -1], rtol=2**-7, atol=1e-3)


def test_a_probe_needs_the_cache_it_belongs_to(folder, text, model_folders, tmp_path):
    request = HarvestRequest(str(folder), {1: tmp_path / "cache"}, settings=settings(text), device="cpu")
    with pytest.raises(UsageError, match="no cache"):
        harvest_probe(request, folders={1: tmp_path / "p"})
    harvest_layers(replace(request, model=str(model_folders["gpt2"])))
    with pytest.raises(MismatchError, match="another model"):
        harvest_probe(request, folders={1: tmp_path / "p"})


def test_a_tokenizer_without_words_is_refused(model_folders):
    with pytest.raises(UsageError, match="no probe"):
        choose_words(load_tokenizer(find_model(str(model_folders["gemma2"]))))


@pytest.fixture
def finished_caches(folder, text, tmp_path):
    """Finished caches of two layers: the request, and the folders of a probe."""
    given = settings(text).model_copy(update={"probe_words": 9, "probe_examples": 2})
    request = HarvestRequest(str(folder), {n: tmp_path / f"cache{n}" for n in (1, 2)}, settings=given, device="cpu")
    harvest_layers(request)
    return request, {n: tmp_path / f"probe{n}" for n in (1, 2)}


def test_a_plan_measures_and_writes_nothing(finished_caches):
    request, folders = finished_caches
    plan = plan_probe(request, folders=folders)
    assert not any(folder.exists() for folder in folders.values())
    assert (plan.letters, plan.examples, plan.finished_layers) == (6, 2, [])
    assert plan.words <= 6 * 9
    assert plan.seconds == pytest.approx(plan.tokens / plan.tokens_per_second)
    harvest_probe(request, folders=folders)
    assert (folders[1] / "probe.safetensors").stat().st_size == pytest.approx(plan.bytes_per_layer, rel=0.15)
    again = plan_probe(request, folders=folders)
    assert (again.finished_layers, again.seconds) == ([1, 2], 0)


def files(folders):
    return {str(path): path.read_bytes() for f in folders.values() for path in sorted(f.rglob("*")) if path.is_file()}


def test_a_probe_goes_on_after_a_kill_and_is_not_changed_when_finished(finished_caches, monkeypatch):
    request, folders = finished_caches
    monkeypatch.setattr("harvest.probe.files.PIECE_WORDS", 8)
    harvest_probe(request, folders=folders)
    finished = files(folders)
    assert not any("pieces" in path for path in finished)
    monkeypatch.setattr("harvest.probe.stage.load_found", None)
    harvest_probe(request, folders=folders)  # finished: no model is loaded
    monkeypatch.undo()
    monkeypatch.setattr("harvest.probe.files.PIECE_WORDS", 8)
    with pytest.raises(StoppedError):
        harvest_probe(request, folders=folders, fresh=True, progress=StopAt(21))
    assert len(list((folders[1] / "pieces").iterdir())) == 2
    damaged = folders[2] / "pieces" / "000000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])

    begun = []

    class Begun(Silent):
        def begin(self, task, *, total, unit, done=0):
            begun.append(done)

    harvest_probe(request, folders=folders, progress=Begun())
    assert begun == [8]
    assert files(folders) == finished
