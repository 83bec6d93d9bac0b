"""Our own format: a saved transcoder is loaded as it was, and any change of either file is noticed."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import DamagedError, DiskError, MismatchError, NestcoderError
from common.sealed.tensors import FileSeal, write_tensors
from tests.helpers.progress import Notes
from train.arrays.parameters import random_parameters
from transcoder.formats import native
from transcoder.formats.native import load_transcoder, save_transcoder
from transcoder.rules.batchtopk import BatchTopK
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

PREFIXES = (8, 20, 48)


def make(*, skip: bool = False, threshold: float | None = None) -> Transcoder:
    weights = random_parameters(10, 7, dict_size=48, skip=skip, seed=2)
    weights.b_dec.add_(torch.linspace(-1, 1, 7))
    weights.b_enc.add_(0.1)
    if weights.W_skip is not None:
        weights.W_skip.add_(0.3)
    rule = TopK(5) if threshold is None else BatchTopK(5, threshold)
    return Transcoder(**weights.tensors(), rule=rule, prefixes=PREFIXES)


def sources(rows: int = 30) -> Tensor:
    return torch.randn(rows, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.8])
def test_a_saved_transcoder_is_loaded_as_it_was(tmp_path: Path, skip: bool, threshold: float | None) -> None:
    transcoder, source = make(skip=skip, threshold=threshold), sources()
    config = save_transcoder(transcoder, tmp_path, config={"layer": 8})
    again = load_transcoder(tmp_path)
    assert torch.equal(again(source), transcoder(source))
    assert (again.prefixes, again.top_k) == (PREFIXES, 5)
    assert again.rule.as_config() == transcoder.rule.as_config()
    assert (again.config, config["layer"]) == (config, 8)
    for name in ("transcoder.safetensors", "config.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644
    assert torch.equal(load_transcoder(tmp_path / "transcoder.safetensors")(source), transcoder(source))


def test_the_file_is_plain_safetensors_of_float32(tmp_path: Path) -> None:
    save_transcoder(make(skip=True), tmp_path, config={})
    arrays = load_file(tmp_path / "transcoder.safetensors")
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    assert shapes == {"W_enc": (10, 48), "b_enc": (48,), "W_dec": (48, 7), "b_dec": (7,), "W_skip": (10, 7)}
    assert {array.dtype for array in arrays.values()} == {torch.float32}
    torch.testing.assert_close(arrays["W_dec"].norm(dim=1), torch.ones(48))


@given(offset=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_of_the_weights_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, offset: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    save_transcoder(make(), folder, config={})
    data = bytearray((folder / "transcoder.safetensors").read_bytes())
    data[offset % len(data)] ^= 1 << bit
    (folder / "transcoder.safetensors").write_bytes(data)
    with pytest.raises(DamagedError, match="does not match its hash"):
        load_transcoder(folder)


def _config(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        """Changed as if it had been written so: the seal is that of the changed config."""
        config = json.loads((folder / "config.json").read_text())
        change(config)
        config["seal"] = native._seal_of(config)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def _shorter(folder: Path) -> None:
    data = (folder / "transcoder.safetensors").read_bytes()
    (folder / "transcoder.safetensors").write_bytes(data[:-1])


def _foreign_weights(folder: Path) -> None:
    save_file({"encoder": torch.zeros(3)}, folder / "transcoder.safetensors")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), DamagedError, "config.json is missing"),
        (lambda folder: (folder / "transcoder.safetensors").unlink(), DamagedError, "missing"),
        (_shorter, DamagedError, "bytes instead of"),
        (_foreign_weights, DamagedError, "bytes instead of"),
        (lambda folder: (folder / "config.json").write_text("{"), DamagedError, "Not a JSON file"),
        (lambda folder: (folder / "config.json").write_text("[]"), DamagedError, "JSON object was expected"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), DamagedError, "Not a JSON file"),
        (_config(lambda config: config.pop("format_version")), MismatchError, "not a nestcoder transcoder"),
        (_config(lambda config: config.update(format_version=99)), MismatchError, "version 99 is unknown"),
        (_config(lambda config: config.update(prefixes=[48, 20])), DamagedError, "prefixes"),
        (_config(lambda config: config.update(prefixes=[8, 20])), DamagedError, "prefixes and dict_size"),
        (_config(lambda config: config.update(top_k=-5)), DamagedError, "top_k"),
        (_config(lambda config: config.update(activation="softmax")), DamagedError, "activation"),
        (_config(lambda config: config.update(d_source=11)), MismatchError, r"W_enc has shape \(10, 48\)"),
        (_config(lambda config: config.update(skip=True)), MismatchError, "W_skip"),
        (_config(lambda config: config.update(weights={})), DamagedError, "size and hash"),
    ],
)
def test_damaged_and_foreign_files_are_typed_errors(
    tmp_path: Path, damage: Callable[[Path], object], error: type[NestcoderError], message: str
) -> None:
    save_transcoder(make(), tmp_path, config={})
    damage(tmp_path)
    with pytest.raises(error, match=message):
        load_transcoder(tmp_path)


def test_every_flipped_bit_of_the_config_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    save_transcoder(
        make(skip=True, threshold=0.25), tmp_path, config={"model": "gpt2", "layer": 8, "gain": [0.5, 1.25]}
    )
    path = tmp_path / "config.json"
    written = path.read_bytes()
    config = json.loads(written)
    for position in range(len(written)):
        for bit in range(8):
            flipped = bytearray(written)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                found = native.read_config(tmp_path)
            except NestcoderError:
                continue
            assert found == config, (position, bit)


@pytest.mark.parametrize("change", [{"top_k": 4}, {"prefixes": [9, 20, 48]}, {"source_view": "ln2_normalized"}])
def test_an_edited_config_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    save_transcoder(make(), tmp_path, config={})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(DamagedError, match="checksum differs"):
        load_transcoder(tmp_path)


def test_a_missing_seal_is_noticed(tmp_path: Path) -> None:
    save_transcoder(make(), tmp_path, config={})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["seal"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"top_k": 4}))
    with pytest.raises(DamagedError, match="checksum is missing"):
        load_transcoder(tmp_path)


def test_a_transcoder_of_an_earlier_release_is_read_with_a_note(tmp_path: Path) -> None:
    """Neither file has a seal, as before seals were introduced."""
    save_transcoder(make(), tmp_path, config={})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["seal"]
    seal = write_tensors(tmp_path / "transcoder.safetensors", load_file(tmp_path / "transcoder.safetensors"))
    config["weights"] = {"file": "transcoder.safetensors", **seal.as_dict()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    notes = Notes()
    again = load_transcoder(tmp_path, progress=notes)
    assert torch.equal(again(sources()), make()(sources()))
    assert len(notes.texts) == 1
    assert "has no checksum" in notes.texts[0]
    assert load_transcoder(tmp_path).config == config


@pytest.mark.parametrize("name", ["transcoder.safetensors", "config.json"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    save_transcoder(make(), tmp_path, config={})
    plain = Path.open

    def refused(self: Path, *args: object, **named: object) -> object:
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return plain(self, *args, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DiskError, match="cannot be read"):
        load_transcoder(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little"),
        b"\x02" + bytes(7) + b"[]",
        b"\x04" + bytes(7) + b"{\xff}}",
    ],
)
def test_a_header_that_cannot_be_read_is_named_with_any_seal(tmp_path: Path, header: bytes) -> None:
    save_transcoder(make(), tmp_path, config={})
    data = header + (tmp_path / "transcoder.safetensors").read_bytes()[len(header) :]
    (tmp_path / "transcoder.safetensors").write_bytes(data)
    damage = FileSeal(len(data), xxhash.xxh3_128_hexdigest(data)).as_dict()
    _config(lambda config: config.update(weights=damage))(tmp_path)
    with pytest.raises(DamagedError, match="safetensors file cannot be read"):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format_version": ' + "9" * 5000 + "}", "null", '"text"'])
def test_json_that_cannot_be_parsed_is_named(tmp_path: Path, text: str) -> None:
    save_transcoder(make(), tmp_path, config={})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DamagedError):
        load_transcoder(tmp_path)
