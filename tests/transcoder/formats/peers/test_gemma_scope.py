"""Gemma Scope's convention on a synthetic file whose L0 and FVU are known in closed form."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import MismatchError, NumericalError, UsageError
from common.norm import NormAffine
from transcoder.formats.peers.gemma_scope import (
    check_convention,
    find_choices,
    locate,
    mean_l0,
    nearest,
    nominal_l0,
    read_gemma_scope,
)
from transcoder.norm import fold_gain

WIDTH, THRESHOLD, MISSING, NOISE = 32, 1.2, 8, 0.3


def orthonormal(seed: int) -> torch.Tensor:
    square = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(square).Q


class Truth:
    """x ~ N(0, 1), y = 0.7 + the sum over WIDTH features of a_f d_f, plus noise; the last MISSING are not in the file.

    With z ~ N(0, 1), Q the upper tail and p the density at the threshold t:  P(fires) = Q, E a = p, E a^2 = t p + Q.
    """

    tail = 0.5 * math.erfc(THRESHOLD / math.sqrt(2))
    density = math.exp(-(THRESHOLD**2) / 2) / math.sqrt(2 * math.pi)
    mean, variance = density, THRESHOLD * density + tail - density**2
    kept = WIDTH - MISSING
    l0 = kept * tail
    fvu = (MISSING * variance + WIDTH * NOISE**2) / (WIDTH * variance + WIDTH * NOISE**2)


def arrays() -> dict[str, np.ndarray]:
    """The arrays of the file: the true dictionary without its last features; the bias has their mean."""
    encoder, decoder = orthonormal(0), orthonormal(1)
    return {
        "W_enc": encoder[:, : Truth.kept].float().numpy(),
        "b_enc": np.zeros(Truth.kept, dtype=np.float32),
        "threshold": np.full(Truth.kept, THRESHOLD, dtype=np.float32),
        "W_dec": decoder[: Truth.kept].float().numpy(),
        "b_dec": (0.7 + Truth.mean * decoder[Truth.kept :].sum(0)).float().numpy(),
    }


def write_file(root: Path, *, l0: int = round(Truth.l0), layer: int = 8, **changed: np.ndarray) -> Path:
    path = root / f"layer_{layer}" / "width_16k" / f"average_l0_{l0}" / "params.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **(arrays() | changed))
    return path


def data(rows: int = 40_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised input, target, and a norm's gain and bias."""
    generator = torch.Generator().manual_seed(7)
    normalised = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    pre = normalised @ orthonormal(0)
    noise = NOISE * torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    target = 0.7 + (pre * (pre > THRESHOLD)) @ orthonormal(1) + noise
    gain = 1.5 + torch.rand(WIDTH, generator=generator, dtype=torch.float64)
    bias = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    return normalised.float(), target.float(), gain.float(), bias.float()


def fvu(reconstructed: torch.Tensor, target: torch.Tensor) -> float:
    error = (target.double() - reconstructed.double()).square().sum()
    return float(error / (target.double() - target.double().mean(0)).square().sum())


def test_l0_and_fvu_are_those_of_the_closed_form(tmp_path: Path) -> None:
    dictionary = read_gemma_scope(write_file(tmp_path), d_source=WIDTH, d_target=WIDTH)
    source, target, _, _ = data()
    found = fvu(dictionary.reconstruct(dictionary.sparse_code(source), source)[:, -1], target)
    assert mean_l0(dictionary, source) == pytest.approx(Truth.l0, rel=0.02)
    assert found == pytest.approx(Truth.fvu, rel=0.02)


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_file_with_the_gain_folded_in_reads_the_mlps_input_as_exactly(tmp_path: Path, with_bias: bool) -> None:
    dictionary = read_gemma_scope(write_file(tmp_path), d_source=WIDTH, d_target=WIDTH)
    normalised, _, gain, bias = data(500)
    mlp_in = normalised * gain + bias if with_bias else normalised * gain
    folded = fold_gain(dictionary, NormAffine(gain, bias if with_bias else torch.zeros_like(bias)))
    assert folded.source_view == "mlp_in"
    expected = dictionary.reconstruct(dictionary.sparse_code(normalised), normalised)
    torch.testing.assert_close(folded.reconstruct(folded.sparse_code(mlp_in), mlp_in), expected, atol=1e-4, rtol=1e-4)


def test_the_input_with_the_gain_fails_the_check(tmp_path: Path) -> None:
    dictionary = read_gemma_scope(write_file(tmp_path), d_source=WIDTH, d_target=WIDTH)
    normalised, _, gain, _ = data(4000)
    right = check_convention(dictionary, mean_l0(dictionary, normalised), force=False)
    assert "of the 3 that its folder names" in right
    gained = mean_l0(dictionary, normalised * gain)
    with pytest.raises(MismatchError, match="does not get the input"):
        check_convention(dictionary, gained, force=False)
    assert "because of --force" in check_convention(dictionary, gained, force=True)


def test_a_file_that_states_no_l0_says_that_it_was_not_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays())
    dictionary = read_gemma_scope(path, d_source=WIDTH, d_target=WIDTH)
    assert "not checked" in check_convention(dictionary, 500.0, force=False)


def test_a_bias_is_never_subtracted_from_the_input(tmp_path: Path) -> None:
    path = write_file(tmp_path, b_dec=np.full(WIDTH, 100, dtype=np.float32))
    dictionary = read_gemma_scope(path, d_source=WIDTH, d_target=WIDTH)
    assert mean_l0(dictionary, data(4000)[0]) == pytest.approx(Truth.l0, rel=0.1)


def test_another_models_widths_are_named(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="maps 32 to 32 dimensions, the cache's rows 96 to 96"):
        read_gemma_scope(write_file(tmp_path), d_source=96, d_target=96)


def test_a_gain_of_zero_cannot_be_undone(tmp_path: Path) -> None:
    dictionary = read_gemma_scope(write_file(tmp_path), d_source=WIDTH, d_target=WIDTH)
    with pytest.raises(NumericalError, match="cannot be computed"):
        fold_gain(dictionary, NormAffine(torch.zeros(WIDTH), torch.zeros(WIDTH)))


PATHS = [
    "README.md",
    "layer_8/width_16k/average_l0_52/params.npz",
    "layer_8/width_16k/average_l0_92/params.npz",
    "layer_8/width_65k/average_l0_96/params.npz",
    "layer_12/width_16k/average_l0_6/params.npz",
    "embedding/width_4k/average_l0_6/params.npz",
]


@pytest.mark.parametrize(
    ("dict_size", "l0", "path"),
    [(18_432, 96.0, PATHS[2]), (18_432, 60.0, PATHS[1]), (60_000, 60.0, PATHS[3])],
)
def test_the_nearest_width_then_l0_is_taken(dict_size: int, l0: float, path: str) -> None:
    assert nearest(find_choices(PATHS), layer=8, dict_size=dict_size, l0=l0).path == path


def test_a_missing_layer_is_refused_with_the_layers_there_are() -> None:
    with pytest.raises(UsageError, match=r"layers \[8, 12\]"):
        nearest(find_choices(PATHS), layer=9, dict_size=16_384, l0=50.0)


def test_any_folder_of_the_layout_is_accepted(tmp_path: Path) -> None:
    near, far = write_file(tmp_path, l0=90), write_file(tmp_path, l0=20)
    for given in (tmp_path, tmp_path / "layer_8", near.parent.parent):
        assert locate(given, layer=8, dict_size=100, l0=80.0).resolve() == near.resolve()
    for given in (far, far.parent):
        assert locate(given, layer=8, dict_size=100, l0=80.0).resolve() == far.resolve()
    assert nominal_l0(near) == 90
    with pytest.raises(UsageError, match="no such"):
        locate(tmp_path / "elsewhere", layer=8, dict_size=100, l0=80.0)
