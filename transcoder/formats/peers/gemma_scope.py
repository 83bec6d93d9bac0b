"""Google's Gemma Scope transcoders: their files, their convention, and the check that the convention was met.

Written as well as read: ``params.npz`` is what SAELens and circuit-tracer load from Google's repository.

    google/gemma-scope-2b-pt-transcoders: layer_{L}/width_{W}/average_l0_{N}/params.npz, fp32
    W_enc (d_source, dict_size)  b_enc (dict_size,)  threshold (dict_size,)
    W_dec (dict_size, d_target)  b_dec (d_target,)

Their input is the normalised residual before the MLP, *without* the norm's gain, which they folded into the MLP; their
target is what the MLP adds to the residual, after the post norm. ``b_dec`` is not subtracted from the input. With any
other input, far more or far fewer features fire than the N of the folder, so the measured L0 is compared with N.
"""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common import disk
from common.errors import DamagedError, MismatchError, UsageError
from common.sealed.tensors import check_arrays
from transcoder.formats.about import About
from transcoder.formats.files.npz import read_npz
from transcoder.formats.wanted import layer_in
from transcoder.rules.threshold import JumpReLU
from transcoder.transcoder import Transcoder

REPOSITORY = "google/gemma-scope-2b-pt-transcoders"
MODEL = "google/gemma-2-2b"
WIDTH = 2304
"""Of the residual stream of ``MODEL``."""
TOKENS_TRAINED = 4_000_000_000
"""By the paper (Lieberum et al. 2024, arXiv 2408.05147), for every transcoder of the repository, by its width."""
# Another kind of text changes L0 by 10 to 20 %; rows of another layer, or without the norm, change it by far more.
MIN_L0_RATIO = 0.7
MAX_L0_RATIO = 1.4

FILE = "params.npz"
_ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_PATH = re.compile(r"(?:^|/)layer_(\d+)/width_(\d+)([km]?)/average_l0_(\d+)/params\.npz$")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}


@dataclass(frozen=True)
class Choice:
    """One dictionary of the repository, as its path says: ``width_16k`` is 16,384 features."""

    path: str
    layer: int
    width: int
    l0: int


def find_choices(paths: Iterable[str]) -> list[Choice]:
    """The dictionaries among ``paths``; other files are ignored."""
    found = [(path, _PATH.search(path)) for path in paths]
    return [
        Choice(path, layer=int(named[1]), width=int(named[2]) * _UNITS[named[3]], l0=int(named[4]))
        for path, named in found
        if named
    ]


def nearest(choices: list[Choice], *, layer: int, dict_size: int | None, l0: float | None) -> Choice:
    """Of this layer's, the nearest in width by ratio, and among those the nearest in L0. UsageError: there is none, or
    there are several and nothing says which is near."""
    here = [choice for choice in choices if choice.layer == layer]
    if not here:
        layers = sorted({choice.layer for choice in choices})
        raise UsageError(f"There is no Gemma Scope transcoder for layer {layer}; there are layers {layers}.")

    if len(here) == 1:
        return here[0]
    if dict_size is None or l0 is None:
        paths = ", ".join(choice.path for choice in here[:8])
        raise UsageError(f"There are {len(here)} dictionaries of layer {layer}: {paths}.", remedy="Name one of them.")

    def distance(choice: Choice) -> tuple[float, float, str]:
        ratio = choice.width / dict_size
        return max(ratio, 1 / ratio), abs(choice.l0 - l0), choice.path

    return min(here, key=distance)


def locate(path: Path, *, layer: int, dict_size: int | None, l0: float | None) -> Path:
    """The params.npz meant by ``path``: itself, the one inside, or the nearest of a folder laid out as Google's."""
    if not path.exists():
        raise UsageError("There is no such file or folder.", where=path, remedy="Give a params.npz, or 'download'.")
    if path.is_file():
        return path
    if (path / "params.npz").is_file():
        return path / "params.npz"
    # Absolute paths, so that a folder inside Google's layout is as good as its root.
    choices = find_choices(found.absolute().as_posix() for found in path.rglob("params.npz"))
    if not choices:
        remedy = "Give a params.npz, or a folder with layer_L/width_W/average_l0_N/params.npz."
        raise UsageError("The folder has no Gemma Scope dictionary.", where=path, remedy=remedy)
    return Path(nearest(choices, layer=layer, dict_size=dict_size, l0=l0).path)


def nominal_l0(path: Path) -> float | None:
    """The L0 in the name of the file's folder; None if there is none."""
    found = re.fullmatch(r"average_l0_(\d+)", path.absolute().parent.name)
    return float(found[1]) if found else None


def read_gemma_scope(path: Path, *, d_source: int | None = None, d_target: int | None = None) -> Transcoder:
    """The dictionary in a params.npz, reading ``ln2_normalized``; of these widths, where they are given.

    UsageError: no such file. DamagedError: not such a file. MismatchError: its widths are another model's.
    """
    arrays = read_npz(path, _ARRAYS)
    dict_size = arrays["b_enc"].numel()
    if arrays["W_enc"].ndim == arrays["W_dec"].ndim == 2:
        d_source = d_source or arrays["W_enc"].shape[0]
        d_target = d_target or arrays["W_dec"].shape[1]
    d_source = d_source or 0
    d_target = d_target or 0
    shapes = {
        "W_enc": (d_source, dict_size),
        "b_enc": (dict_size,),
        "W_dec": (dict_size, d_target),
        "b_dec": (d_target,),
        "threshold": (dict_size,),
    }
    if dict_size == 0:
        raise DamagedError("The dictionary has no features.", where=path)
    if arrays["W_enc"].ndim == arrays["W_dec"].ndim == 2:
        check_widths((arrays["W_enc"].shape[0], arrays["W_dec"].shape[1]), (d_source, d_target), path)
    check_arrays(arrays, shapes, location=path, error=DamagedError)
    threshold = arrays.pop("threshold")
    arrays["W_enc"] = arrays["W_enc"].T.contiguous()
    return Transcoder.from_arrays(
        arrays,
        rule=JumpReLU(threshold),
        name="gemma-scope",
        source_view="ln2_normalized",
        tokens_trained=TOKENS_TRAINED if d_source == d_target == WIDTH else None,
        nominal_l0=nominal_l0(path),
        config={
            "model": MODEL if d_source == d_target == WIDTH else None,
            "layer": layer_in(path.absolute().as_posix()),
            "source_site": "ln2_normalized",
            "target_site": "mlp_out",
            "notes": ["its files tell of no prefixes: it has one, the whole dictionary"],
        },
    )


def write_gemma_scope(folder: Path, transcoder: Transcoder, _about: About) -> None:
    """``params.npz``, of a transcoder with thresholds that reads ``ln2_normalized``. It has no place for our words."""
    assert isinstance(transcoder.rule, JumpReLU), "Gemma Scope has thresholds"
    assert transcoder.W_skip is None, "Gemma Scope has no skip"
    arrays = {name: array.detach().float().cpu().numpy() for name, array in transcoder.arrays().items()}
    arrays["W_enc"] = np.ascontiguousarray(arrays["W_enc"].T)
    arrays["threshold"] = transcoder.rule.threshold.float().cpu().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    disk.write_file(folder / FILE, buffer.getbuffer())


def folder_of(layer: int, dict_size: int, l0: float) -> str:
    """Google's name for a dictionary of this size and L0: ``layer_8/width_16k/average_l0_52``."""
    unit = next((unit for unit in "mk" if dict_size % _UNITS[unit] == 0), "")
    return f"layer_{layer}/width_{dict_size // _UNITS[unit]}{unit}/average_l0_{round(l0)}"


def check_widths(found: tuple[int, int], wanted: tuple[int, int], path: object) -> None:
    """MismatchError unless the source and target widths are the cache's."""
    if found != wanted:
        what = f"The file maps {found[0]} to {found[1]} dimensions, the cache's rows {wanted[0]} to {wanted[1]}."
        raise MismatchError(what, where=path, remedy=f"Gemma Scope's transcoders are for {MODEL} only.")


def check_convention(dictionary: Transcoder, measured_l0: float, *, force: bool, location: str = "") -> str:
    """The measured L0 compared with the nominal one, in words. MismatchError outside 0.7 to 1.4 of it, unless
    ``force``."""
    measured = f"{dictionary.name}: L0 is {measured_l0:.1f}"
    if dictionary.nominal_l0 is None:
        return f"{measured}; the file names no expected L0, so its convention was not checked"
    ratio = measured_l0 / dictionary.nominal_l0
    measured = f"{measured}, {ratio:.2f} of the {dictionary.nominal_l0:g} that its folder names"
    if MIN_L0_RATIO <= ratio <= MAX_L0_RATIO:
        return measured
    bounds = f"outside {MIN_L0_RATIO} to {MAX_L0_RATIO}"
    if force:
        return f"{measured}: {bounds}, compared because of --force"
    what = (
        f"The comparison is refused: {measured}. That is {bounds}: the dictionary does not get the input that it was "
        "trained on, so its numbers would mean nothing."
    )
    remedy = (
        "Check that the cache is of the file's model and layer, from mlp_in to mlp_out, on ordinary prose. "
        "--force compares anyway."
    )
    raise MismatchError(what, where=location, remedy=remedy)


def mean_l0(dictionary: Transcoder, source: torch.Tensor) -> float:
    """Features that fire on a row, on average."""
    return float((dictionary.sparse_code(source).values > 0).sum()) / max(1, len(source))
