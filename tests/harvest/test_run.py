"""The whole harvest into real caches: what they contain, resume, several layers, ranks, too little text."""

import json
import os
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cache.config import CacheSettings
from cache.open import open_cache
from cache.reader import CacheReader
from cache.tools.pack import pack_cache
from cache.tools.repair import repair_cache
from cache.tools.verify import verify_cache
from cache.tools.verify_remote import verify_remote
from common.errors import CapacityError, InUseError, MismatchError, UsageError
from common.progress import Silent
from harvest import run
from harvest.config import HarvestSettings
from harvest.probe.stage import harvest_probe
from harvest.request import HarvestRequest
from harvest.run import harvest_layers
from tests.helpers.progress import Notes

CACHE = CacheSettings(chunk_rows=16, shard_rows=64, segment_rows=128, held_out_fraction=0.3)
LARGE_SEGMENTS = {"shard_rows": 1024, "segment_rows": 2048}
DEVICES = ["cpu", *[pytest.param("cuda", marks=pytest.mark.gpu)] * torch.cuda.is_available()]
HARVEST = HarvestSettings(context=32, train_tokens=700, held_out_tokens=200, batch_contexts=4)


class StopError(Exception):
    """Stands for a crash."""


class Crash(Silent):
    """Raises after so many batches."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, amount, **values):
        self.left -= 1
        if self.left < 0:
            raise StopError


def documents_file(folder: Path, *, count: int = 60, words: str = "the quick brown fox ") -> Path:
    lines = [json.dumps({"text": f"document {n}: " + words * (n % 5), "n": n}) for n in range(count)]
    path = folder / "text.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def text(tmp_path) -> Path:
    return documents_file(tmp_path)


def harvest(model, folders, text, *, progress=None, fresh=False, rank=0, world=1, cache=CACHE, device="cpu", **changes):
    settings = HARVEST.model_copy(update={"dataset": str(text), **changes})
    request = HarvestRequest(str(model), folders, settings=settings, cache=cache, device=device, rank=rank, world=world)
    return harvest_layers(request, fresh=fresh, progress=progress)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file that is the same after any interruption: all but locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "locks" not in path.parts
    }


def test_the_cache_holds_what_plain_hugging_face_computes(model_folder, family, text, tmp_path):
    harvest(model_folder, {2: tmp_path / "c"}, text, packing="document", context=64)
    reader = CacheReader.open(tmp_path / "c")
    hugging = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    block = hugging.transformer.h[2] if family == "gpt2" else hugging.model.layers[2]
    seen = {}
    block.mlp.register_forward_pre_hook(lambda _, args: seen.__setitem__("source", args[0]))
    last = block.mlp if family == "gpt2" else block.post_feedforward_layernorm
    last.register_forward_hook(lambda _, __, out: seen.__setitem__("target", out))
    view = reader.split("held_out")
    rows = view.rows(slice(0, len(view)))
    starts = np.flatnonzero(rows.position == 0)
    for start, stop in zip(starts, [*starts[1:], len(view)], strict=True):
        with torch.inference_mode():
            hugging(torch.from_numpy(rows.tokens[start:stop].astype(np.int64))[None])
        for name in ("source", "target"):
            got, expected = getattr(rows, name)[start:stop].float(), seen[name][0].bfloat16().float()
            # Another batch size may round the last bit of the float32 sums the other way.
            assert torch.allclose(got, expected, rtol=2**-7, atol=1e-4)


def test_rows_identity_and_side_tables(model_folder, family, text, tmp_path):
    (result,) = harvest(model_folder, {1: tmp_path / "c"}, text).values()
    reader = CacheReader.open(tmp_path / "c")
    assert (len(reader.split("train")), len(reader.split("held_out"))) == (700, 200)
    assert result["rows"] == 900
    assert result["fingerprint"] == reader.fingerprint
    identity = reader.identity
    assert identity["architecture"] == family
    assert (identity["layer"], identity["source_site"], identity["target_site"]) == (1, "mlp_in", "mlp_out")
    assert identity["proof"]["errors"]["mlp(mlp_in) = mlp_out"] == 0.0
    assert reader.arrays["gain"].shape == (64,)
    assert json.loads(bytes(reader.arrays["tokenizer.json"]))["model"]["type"] == "BPE"
    train, held_out = (set(np.unique(reader.split(name).document)) for name in ("train", "held_out"))
    assert not train & held_out


def test_every_context_begins_with_bos(model_folder, text, tmp_path):
    harvest(model_folder, {1: tmp_path / "c"}, text)
    reader = CacheReader.open(tmp_path / "c")
    view = reader.split("train")
    bos = reader.identity["bos"]
    assert (np.asarray(view.tokens)[np.asarray(view.position) == 0] == bos).all()
    assert bos in reader.special_ids


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_a_crash_and_a_rerun_give_the_same_bytes(model_folders, text, tmp_path, after):
    model = model_folders["gpt2"]
    harvest(model, {1: tmp_path / "whole"}, text)
    with pytest.raises(StopError):
        harvest(model, {1: tmp_path / "cut"}, text, progress=Crash(after))
    harvest(model, {1: tmp_path / "cut"}, text)
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_harvest_again_has_the_same_bytes(model_folders, text, tmp_path, device):
    for name in ("once", "again"):
        harvest(model_folders["gpt2"], {1: tmp_path / name}, text, device=device)
    assert tree(tmp_path / "once") == tree(tmp_path / "again")


def test_two_layers_in_one_pass_are_those_of_two_passes(model_folder, text, tmp_path):
    harvest(model_folder, {1: tmp_path / "a1", 3: tmp_path / "a3"}, text)
    harvest(model_folder, {1: tmp_path / "b1"}, text)
    harvest(model_folder, {3: tmp_path / "b3"}, text)
    assert tree(tmp_path / "a1") == tree(tmp_path / "b1")
    assert tree(tmp_path / "a3") == tree(tmp_path / "b3")


def test_layers_that_stopped_at_different_cursors_are_finished_in_one_run(model_folders, text, tmp_path):
    model = model_folders["gemma2"]
    harvest(model, {1: tmp_path / "w1", 2: tmp_path / "w2"}, text)
    with pytest.raises(StopError):
        harvest(model, {1: tmp_path / "c1"}, text, progress=Crash(6))
    with pytest.raises(StopError):
        harvest(model, {2: tmp_path / "c2"}, text, progress=Crash(3))
    harvest(model, {1: tmp_path / "c1", 2: tmp_path / "c2"}, text)
    assert tree(tmp_path / "c1") == tree(tmp_path / "w1")
    assert tree(tmp_path / "c2") == tree(tmp_path / "w2")


@pytest.mark.parametrize("given", [{}, {"dtype": "int8", "codec": "zstd"}, {"target": "recompute"}], ids=str)
def test_a_harvest_killed_in_the_middle_of_a_segment_goes_on_there(
    model_folders, text, tmp_path, monkeypatch, remote, given
):
    cache = remote[0].model_copy(update={"segment_rows": 1024, **given})
    undisturbed = {layer: tmp_path / "whole" / f"layer{layer:02d}" / "cache" for layer in (1, 3)}
    cut = {layer: tmp_path / "cut" / f"layer{layer:02d}" / "cache" for layer in (1, 3)}
    harvest(model_folders["gpt2"], undisturbed, text, cache=cache)
    monkeypatch.setattr("cache.drafts._SECONDS", 0.0)
    monkeypatch.setattr("cache.drafts._SHARE", float("inf"))
    with pytest.raises(StopError):
        harvest(model_folders["gpt2"], cut, text, cache=cache, progress=Crash(6))
    again = harvest(model_folders["gpt2"], cut, text, cache=cache)
    for layer in (1, 3):
        assert again[layer]["rows"] < 800, "no segment was full when the crash came, and yet rows were kept"
        assert tree(cut[layer]) == tree(undisturbed[layer])
        assert verify_remote(f"memory://bucket/cut/layer{layer:02d}/cache").complete


def test_a_finished_layer_is_not_changed(model_folders, text, tmp_path):
    model = model_folders["gpt2"]
    harvest(model, {1: tmp_path / "c"}, text)
    before = tree(tmp_path / "c")
    (again,) = harvest(model, {1: tmp_path / "c"}, text).values()
    assert again["rows"] == 0
    assert tree(tmp_path / "c") == before


def test_a_cache_that_was_packed_since_is_finished_too(model_folders, text, tmp_path):
    harvest(model_folders["gpt2"], {1: tmp_path / "c"}, text)
    pack_cache(tmp_path / "c", tmp_path / "packed", codec="zstd")
    (result,) = harvest(model_folders["gpt2"], {1: tmp_path / "packed"}, text).values()
    assert result["rows"] == 0


def test_another_text_in_the_same_folder_is_refused(model_folders, text, tmp_path):
    model = model_folders["gpt2"]
    harvest(model, {1: tmp_path / "c"}, text)
    text.write_text(text.read_text() + json.dumps({"text": "more"}) + "\n")
    with pytest.raises(MismatchError, match="dataset"):
        harvest(model, {1: tmp_path / "c"}, text)
    harvest(model, {1: tmp_path / "c"}, text, fresh=True)


def test_too_little_text_is_refused_with_the_count(model_folders, text, tmp_path):
    with pytest.raises(UsageError, match="too short"):
        harvest(model_folders["gpt2"], {1: tmp_path / "c"}, text, train_tokens=100_000)
    given = {"train_tokens": 9000, "repeat": True, "cache": CACHE.model_copy(update=LARGE_SEGMENTS)}
    assert harvest(model_folders["gpt2"], {1: tmp_path / "d"}, text, **given)[1]["rows"] == 9200


def test_a_context_longer_than_the_models_is_refused(model_folders, text, tmp_path):
    with pytest.raises(UsageError, match="64 positions"):
        harvest(model_folders["gpt2"], {1: tmp_path / "c"}, text, context=65)


@pytest.mark.parametrize("world", [2, 3])
def test_all_ranks_have_each_document_once(model_folders, tmp_path, world):
    text = documents_file(tmp_path, count=200, words="fox ")
    cache = CACHE.model_copy(update={"segment_rows": 64})
    folder = tmp_path / "c"
    for rank in range(world):
        harvest(
            model_folders["gpt2"], {1: folder}, text, rank=rank, world=world, cache=cache, packing="document",
            context=64, train_tokens=2000, held_out_tokens=400,
        )  # fmt: skip
    reader = CacheReader.open(folder)
    for split, rows in (("train", 2000), ("held_out", 400)):
        view = reader.split(split)
        assert len(view) == rows
        places = set(zip(view.document.tolist(), view.position.tolist(), strict=True))
        assert len(places) == rows
        assert {document % world for document in np.unique(view.document)} == set(range(world))


def test_a_rerun_finishes_the_part_of_a_dead_rank_and_does_not_change_the_others(model_folders, tmp_path):
    text = documents_file(tmp_path, count=120)
    given = {"world": 2, "cache": CACHE.model_copy(update={"segment_rows": 64})}
    for rank in (0, 1):
        harvest(model_folders["gpt2"], {1: tmp_path / "whole"}, text, rank=rank, **given)
    harvest(model_folders["gpt2"], {1: tmp_path / "cut"}, text, rank=0, **given)
    with pytest.raises(StopError):
        harvest(model_folders["gpt2"], {1: tmp_path / "cut"}, text, rank=1, progress=Crash(3), **given)
    with pytest.raises(UsageError, match="not finished"):
        CacheReader.open(tmp_path / "cut")
    again = [harvest(model_folders["gpt2"], {1: tmp_path / "cut"}, text, rank=rank, **given)[1] for rank in (0, 1)]
    assert again[0]["rows"] == 0 < again[1]["rows"]
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


@pytest.fixture
def remote(monkeypatch, tmp_path):
    """A cache's settings with a remote URL, and the file system behind it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield CACHE.model_copy(update={"remote": "memory://bucket"}), system
    system.store.clear()


def test_a_finished_cache_is_published_when_a_remote_is_named_later(model_folders, text, tmp_path, remote):
    folder = tmp_path / "tiny" / "layer02" / "cache"
    harvest(model_folders["gpt2"], {2: folder}, text)
    harvest(model_folders["gpt2"], {2: folder}, text, cache=remote[0])
    assert verify_remote("memory://bucket/tiny/layer02/cache").complete


def test_a_fresh_harvest_begins_again_at_the_remote_url_too(model_folders, text, tmp_path, remote):
    folder = tmp_path / "tiny" / "layer02" / "cache"
    harvest(model_folders["gpt2"], {2: folder}, text, cache=remote[0])
    with pytest.raises(MismatchError):
        harvest(model_folders["gpt2"], {2: folder}, text, cache=remote[0], train_tokens=500)
    harvest(model_folders["gpt2"], {2: folder}, text, cache=remote[0], train_tokens=500, fresh=True)
    assert len(CacheReader.open(folder).split("train")) == 500
    assert open_cache("memory://bucket/tiny/layer02/cache").fingerprint == CacheReader.open(folder).fingerprint


def test_a_probe_finds_its_cache_at_the_remote_url(model_folders, text, tmp_path, remote):
    folder = tmp_path / "tiny" / "layer02" / "cache"
    harvest(model_folders["gpt2"], {2: folder}, text, cache=remote[0])
    shutil.rmtree(folder)
    for cache, words in ((remote[0], "no token that is a word"), (CACHE, "no cache here")):
        request = HarvestRequest(str(model_folders["gpt2"]), {2: folder}, settings=HARVEST, cache=cache, device="cpu")
        with pytest.raises(UsageError, match=words):
            harvest_probe(request, folders={2: tmp_path / "probe"})


def test_a_small_array_that_was_damaged_is_written_again(model_folders, text, tmp_path):
    folder = tmp_path / "cache"
    harvest(model_folders["gpt2"], {2: folder}, text)
    before = tree(folder)
    (folder / "rows.zarr/parameters/gain/c.0").write_bytes(b"x" * 8)
    repair_cache(folder)
    harvest(model_folders["gpt2"], {2: folder}, text)
    shutil.rmtree(folder / "quarantine")
    assert tree(folder) == before
    assert not verify_cache(folder).faults


def test_a_compressed_cache_needs_less_room_than_a_plain_one(model_folders, text, tmp_path, monkeypatch):
    packed = CACHE.model_copy(update={"codec": "zstd"})
    plain = harvest(model_folders["gpt2"], {2: tmp_path / "plain"}, text)[2]["cache"]
    size = sum(path.stat().st_size for path in Path(plain).rglob("rows.zarr/**/c.*") if path.is_file())
    monkeypatch.setattr("common.disk.free_bytes", lambda _: int(0.8 * size))
    with pytest.raises(CapacityError):
        harvest(model_folders["gpt2"], {2: tmp_path / "again"}, text)
    harvest(model_folders["gpt2"], {2: tmp_path / "packed"}, text, cache=packed)
    assert CacheReader.open(tmp_path / "packed").fingerprint == CacheReader.open(plain).fingerprint


def test_the_proof_file_is_there_before_the_end_and_the_same_after_kills(model_folders, tmp_path, monkeypatch):
    monkeypatch.setattr("harvest.run._FIRST_SAMPLE", 2)
    text = documents_file(tmp_path, count=200)
    model = model_folders["gpt2"]
    harvest(model, {1: tmp_path / "whole"}, text)
    expected = (tmp_path / "whole" / "proof-00000.json").read_bytes()
    assert len(json.loads(expected)["samples"]) > 1
    for after in (3, 4):
        with pytest.raises(StopError):
            harvest(model, {1: tmp_path / "cut"}, text, progress=Crash(after))
        assert (tmp_path / "cut" / "proof-00000.json").exists()
    harvest(model, {1: tmp_path / "cut"}, text)
    assert (tmp_path / "cut" / "proof-00000.json").read_bytes() == expected


def test_the_model_s_own_loss_is_reported_and_kept_in_the_manifest(model_folders, text, tmp_path):
    notes = Notes()
    (result,) = harvest(model_folders["gpt2"], {1: tmp_path / "c"}, text, progress=notes).values()
    loss = CacheReader.open(tmp_path / "c").identity["proof"]["language_model_loss"]
    assert result["proof"]["language_model_loss"] == loss
    # A random network predicts worse than token frequencies do.
    assert loss["first_contexts"] > loss["unigram"] > 1
    assert any("own loss" in note for note in notes.texts)
    assert any(note.startswith("Warning") for note in notes.texts)


def test_a_model_by_another_path_is_the_same_cache(model_folders, text, tmp_path, monkeypatch):
    monkeypatch.chdir(model_folders["gpt2"].parent)
    harvest(model_folders["gpt2"].name, {1: tmp_path / "c"}, text)
    assert harvest(model_folders["gpt2"], {1: tmp_path / "c"}, text)[1]["rows"] == 0


def test_a_finished_cache_is_finished_for_any_number_of_processes(model_folders, text, tmp_path):
    cache = CACHE.model_copy(update={"segment_rows": 64})
    for rank in (0, 1):
        harvest(model_folders["gpt2"], {1: tmp_path / "c"}, text, rank=rank, world=2, cache=cache)
    assert harvest(model_folders["gpt2"], {1: tmp_path / "c"}, text, cache=cache)[1]["rows"] == 0
    harvest(model_folders["gpt2"], {1: tmp_path / "d"}, text, rank=0, world=2, cache=cache)
    with pytest.raises(MismatchError, match="partitions is 2, not 1") as raised:
        harvest(model_folders["gpt2"], {1: tmp_path / "d"}, text, cache=cache)
    assert raised.value.remedy.startswith("Run it with 2 processes")


def test_a_refusal_names_the_remedy_that_costs_nothing_first(model_folders, text, tmp_path):
    harvest(model_folders["gpt2"], {1: tmp_path / "c"}, text)
    for changes, first in (
        ({"context": 16}, "Set harvest.context to 32"),
        ({"train_tokens": 500}, "Set harvest.train_tokens to 700"),
    ):
        with pytest.raises(MismatchError) as raised:
            harvest(model_folders["gpt2"], {1: tmp_path / "c"}, text, **changes)
        assert raised.value.remedy.startswith(first)


def test_a_second_process_is_refused_while_the_first_still_loads_its_model(model_folders, text, tmp_path, monkeypatch):
    """The folder contains only the lock, which the first process took before it began to load."""
    folders = {layer: tmp_path / "runs" / f"layer0{layer}" for layer in (1, 2)}
    load = run.load_and_measure

    def loading(*given):
        before = sorted(tmp_path.rglob("*"))
        child = os.fork()
        if child == 0:
            run.load_and_measure = lambda *_: os._exit(99)
            try:
                harvest(model_folders["gpt2"], {1: folders[1]}, text)
            except InUseError as error:
                os._exit(error.exit_code)
            finally:
                os._exit(98)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == InUseError.exit_code
        assert sorted(tmp_path.rglob("*")) == before
        return load(*given)

    monkeypatch.setattr(run, "load_and_measure", loading)
    harvest(model_folders["gpt2"], folders, text)
    assert len(CacheReader.open(folders[2]).split("train")) == 700


def test_a_model_that_does_not_load_leaves_nothing_behind(model_folders, text, tmp_path, monkeypatch):
    def fail(*given):
        raise CapacityError("No room.")

    monkeypatch.setattr(run, "load_and_measure", fail)
    with pytest.raises(CapacityError):
        harvest(model_folders["gpt2"], {1: tmp_path / "runs" / "layer01" / "cache"}, text)
    assert not (tmp_path / "runs").exists()


def test_skipped_rows_are_counted_beside_the_manifest_after_any_kill(model_folders, tmp_path):
    text = documents_file(tmp_path, count=80)
    lines = text.read_text().splitlines()
    for line in (3, 20, 21, 40):
        lines[line] = '{"text": 5}'
    text.write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match="cannot be used") as raised:
        harvest(model_folders["gpt2"], {1: tmp_path / "refused"}, text)
    assert raised.value.where == f"{text}, row 4"
    harvest(model_folders["gpt2"], {1: tmp_path / "whole"}, text, bad_rows="skip")
    assert json.loads((tmp_path / "whole" / "proof-00000.json").read_text())["skipped_rows"] >= 3
    with pytest.raises(StopError):
        harvest(model_folders["gpt2"], {1: tmp_path / "cut"}, text, bad_rows="skip", progress=Crash(5))
    harvest(model_folders["gpt2"], {1: tmp_path / "cut"}, text, bad_rows="skip")
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_the_rows_of_one_held_out_document_can_be_capped(model_folders, text, tmp_path):
    harvest(model_folders["gpt2"], {1: tmp_path / "c"}, text, held_out_document_tokens=8, held_out_tokens=80)
    view = CacheReader.open(tmp_path / "c").split("held_out")
    rows = view.rows(slice(0, len(view)))
    _, counts = np.unique(rows.document[rows.tokens != 0], return_counts=True)
    assert counts.max() == 8


def test_the_unembedding_is_in_every_layers_cache_but_not_in_one_that_was_begun_without(
    model_folder, text, tmp_path, monkeypatch
):
    harvest(model_folder, {1: tmp_path / "a", 2: tmp_path / "b"}, text)
    weight = AutoModelForCausalLM.from_pretrained(model_folder).get_output_embeddings().weight.detach()
    for name in ("a", "b"):
        reader = CacheReader.open(tmp_path / name)
        assert torch.equal(reader.unembedding().W_U, weight.bfloat16().float())
    monkeypatch.setattr("harvest.model.unembedding.bytes_beside", lambda *_, **__: 0)
    with pytest.raises(StopError):
        harvest(model_folder, {1: tmp_path / "begun"}, text, progress=Crash(3))
    monkeypatch.undo()
    harvest(model_folder, {1: tmp_path / "begun"}, text)
    begun = CacheReader.open(tmp_path / "begun")
    assert not begun.has_unembedding
    assert begun.fingerprint == CacheReader.open(tmp_path / "a").fingerprint
    assert not verify_cache(tmp_path / "begun").faults


def test_a_model_whose_unembedding_reads_no_norm_is_harvested_without(model_folder, text, tmp_path, monkeypatch):
    def none(_model):
        raise ValueError("no module returns the tensor that the unembedding reads")

    monkeypatch.setattr("harvest.model.unembedding.final_norm", none)
    harvest(model_folder, {1: tmp_path / "c"}, text)
    assert not CacheReader.open(tmp_path / "c").has_unembedding
