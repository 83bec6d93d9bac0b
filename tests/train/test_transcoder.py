"""A transcoder: what it computes against its definition, and what its files withstand."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import DamagedError, MismatchError, NestcoderError, UsageError
from train.parameters import random_parameters
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


def defined(transcoder: Transcoder, source: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Code and reconstruction in five lines of float64."""
    W_enc, b_enc, W_dec, b_dec = (getattr(transcoder, name).double() for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    pre = source.double() @ W_enc.T + b_enc
    threshold = transcoder.rule.as_config().get("threshold")
    kept = pre >= pre.topk(5, dim=1).values[:, -1:] if threshold is None else pre > threshold
    a = pre.relu() * kept
    y = b_dec + a[:, :prefix] @ W_dec[:prefix]
    return a, y if transcoder.W_skip is None else y + source.double() @ transcoder.W_skip.double()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.8])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_is_the_definition(skip: bool, threshold: float | None, prefix: int) -> None:
    transcoder, source = make(skip=skip, threshold=threshold), sources()
    code, reconstruction = defined(transcoder, source, prefix)
    torch.testing.assert_close(transcoder.encode(source).double(), code, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(transcoder(source, prefix=prefix).double(), reconstruction, rtol=1e-5, atol=1e-5)
    decoded = transcoder.decode(code.float(), prefix=prefix, source=source)
    torch.testing.assert_close(decoded.double(), reconstruction, rtol=1e-5, atol=1e-5)


def test_a_truncated_transcoder_keeps_the_selection() -> None:
    transcoder, source = make(), sources()
    small = transcoder.truncate(20)
    torch.testing.assert_close(small.encode(source), transcoder.encode(source)[:, :20])
    torch.testing.assert_close(small(source), transcoder(source, prefix=20))
    torch.testing.assert_close(small.decode(small.encode(source)), small(source), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(small(source, prefix=8), transcoder(source, prefix=8))


@pytest.mark.parametrize("prefix", [0, 7, 49, -1])
def test_another_prefix_is_refused_naming_those_there_are(prefix: int) -> None:
    with pytest.raises(UsageError, match=r"\[8, 20, 48\]"):
        make().truncate(prefix)
    with pytest.raises(UsageError, match=r"it has \[8\]"):
        make().truncate(8)(sources(), prefix=20)


def test_decoding_with_a_skip_needs_the_source() -> None:
    with pytest.raises(UsageError, match="decode needs the source"):
        make(skip=True).decode(torch.zeros(3, 48))


def test_the_bias_is_never_subtracted_from_the_source() -> None:
    transcoder, source = make(), sources()
    shifted = transcoder.replaced(b_dec=transcoder.b_dec + 5.0)
    torch.testing.assert_close(shifted.encode(source), transcoder.encode(source))
    torch.testing.assert_close(shifted(source), transcoder(source) + 5.0)


def test_bfloat16_sources_are_taken() -> None:
    source = sources().bfloat16()
    torch.testing.assert_close(make().encode(source), make().encode(source.float()))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.8])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, skip: bool, threshold: float | None) -> None:
    transcoder, source = make(skip=skip, threshold=threshold), sources()
    said = save_transcoder(transcoder, tmp_path, config={"layer": 8})
    again = load_transcoder(tmp_path)
    assert torch.equal(again(source), transcoder(source))
    assert (again.prefixes, again.top_k) == (PREFIXES, 5)
    assert again.rule.as_config() == transcoder.rule.as_config()
    assert (again.config, said["layer"]) == (said, 8)
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


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_of_the_weights_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    save_transcoder(make(), folder, config={})
    data = bytearray((folder / "transcoder.safetensors").read_bytes())
    data[place % len(data)] ^= 1 << bit
    (folder / "transcoder.safetensors").write_bytes(data)
    with pytest.raises(DamagedError, match="hash differs"):
        load_transcoder(folder)


def _config(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
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
        (lambda folder: (folder / "config.json").write_text("{"), DamagedError, "not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), MismatchError, "not a nestcoder transcoder"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), DamagedError, "not JSON"),
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
