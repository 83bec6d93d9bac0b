"""A trained transcoder: what it computes, and the two files it lives in.

    pre = source @ W_enc + b_enc
    a   = the top_k largest of pre, rectified              (batchtopk: pre where it exceeds the threshold, else 0)
    y_p = b_dec + a[:, :p] @ W_dec[:p]  (+ source @ W_skip)

The selection is made once, over the whole dictionary; a prefix uses what of it lies below its end. ``b_dec`` is never
subtracted from the source, which lives in another space.

``transcoder.safetensors`` holds the arrays in float32, decoder rows of norm 1, in the units of the cache;
``config.json`` holds everything else, and the size and hash of the first.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from common import disk
from common.errors import DamagedError, MismatchError, UsageError
from common.sealed_tensors import FileSeal, check_shapes, read_tensors, write_tensors
from transcoder.decode import decode_prefixes
from transcoder.sparse_code import Activation, Selection, select_above, select_topk
from transcoder.weights import Weights, feature_major

FORMAT_VERSION = 1
WEIGHTS_FILE, CONFIG_FILE = "transcoder.safetensors", "config.json"


@dataclass(frozen=True)
class Transcoder:
    """A nested transcoder. ``config`` is its config.json, empty for one that was not loaded.

    Sources are in the view that ``source_view`` names. ``prefix`` is the one in use: the last, unless truncated.
    """

    weights: Weights
    prefixes: tuple[int, ...]
    top_k: int
    activation: Activation = "topk"
    threshold: float | None = None
    source_view: str = "mlp_in"
    prefix: int = 0
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        assert self.prefixes[-1] == self.weights.b_enc.numel()
        if not self.prefix:
            object.__setattr__(self, "prefix", self.prefixes[-1])

    @property
    def W_enc(self) -> Float[Tensor, "d_source dict_size"]:  # noqa: N802 (the paper's name)
        return self.weights.W_enc

    @property
    def b_enc(self) -> Float[Tensor, " dict_size"]:
        return self.weights.b_enc

    @property
    def W_dec(self) -> Float[Tensor, "dict_size d_target"]:  # noqa: N802 (the paper's name)
        return self.weights.W_dec

    @property
    def b_dec(self) -> Float[Tensor, " d_target"]:
        return self.weights.b_dec

    @property
    def W_skip(self) -> Float[Tensor, "d_source d_target"] | None:  # noqa: N802 (the paper's name)
        return self.weights.W_skip

    @property
    def dict_size(self) -> int:
        return self.weights.b_enc.numel()

    @property
    def d_source(self) -> int:
        return self.weights.W_enc.shape[0]

    @property
    def d_target(self) -> int:
        return self.weights.b_dec.numel()

    def pre_activations(self, source: Float[Tensor, "rows d_source"]) -> Float[Tensor, "rows dict_size"]:
        """What the selection is made from, in the weights' dtype."""
        return torch.addmm(self.b_enc, source.to(self.b_enc.dtype), self.W_enc)

    def select(self, source: Float[Tensor, "rows d_source"]) -> Selection:
        """The sparse code under the evaluation rule, over the whole dictionary whatever the prefix."""
        pre = self.pre_activations(source)
        if self.threshold is not None:
            return select_above(pre, threshold=self.threshold)
        return select_topk(pre, top_k=self.top_k)

    def encode(self, source: Float[Tensor, "rows d_source"]) -> Float[Tensor, "rows features"]:
        """The code with its zeros written out; as many features as the prefix in use has."""
        return self.select(source).dense(self.dict_size)[:, : self.prefix]

    def decode(
        self,
        code: Float[Tensor, "rows features"],
        *,
        prefix: int | None = None,
        source: Float[Tensor, "rows d_source"] | None = None,
    ) -> Float[Tensor, "rows d_target"]:
        """The reconstruction from features below ``prefix``; ``source`` is needed where there is a skip."""
        end = self._checked(prefix)
        return self._base(source) + code[:, :end] @ self.W_dec[:end]

    def forward(
        self, source: Float[Tensor, "rows d_source"], *, prefix: int | None = None
    ) -> Float[Tensor, "rows d_target"]:
        """The reconstruction of the target by one prefix."""
        end = self._checked(prefix)
        return self.reconstructions(source)[:, self.prefixes.index(end)]

    __call__ = forward

    def reconstructions(self, source: Float[Tensor, "rows d_source"]) -> Float[Tensor, "rows prefixes d_target"]:
        """The reconstruction by every prefix, from one sparse decode."""
        return decode_prefixes(self.select(source), self.W_dec, self._base(source), prefixes=self.prefixes)

    def truncate(self, prefix: int) -> "Transcoder":
        """The same transcoder using one prefix: the same selection, sliced. Raises UsageError for another number."""
        return replace(self, prefix=self._checked(prefix))

    def to(self, device: str | torch.device) -> "Transcoder":
        """The same transcoder on a device."""
        moved = {name: array.to(device) for name, array in self.weights.tensors().items()}
        return replace(self, weights=Weights(**moved))

    def _base(self, source: Tensor | None) -> Tensor:
        if self.W_skip is None:
            return self.b_dec
        if source is None:
            raise UsageError("this transcoder has a skip: decode needs the source too", remedy="Give decode source=")
        return torch.addmm(self.b_dec, source.to(self.b_dec.dtype), self.W_skip)

    def _checked(self, prefix: int | None) -> int:
        end = self.prefix if prefix is None else prefix
        if end not in self.prefixes or end > self.prefix:
            there = [known for known in self.prefixes if known <= self.prefix]
            raise UsageError(f"{end} is not a prefix of this transcoder; it has {there}")
        return end


def save_transcoder(transcoder: Transcoder, folder: Path, *, config: Mapping[str, Any]) -> dict[str, Any]:
    """Write both files, config.json last, and return what it says. ``config`` adds where the transcoder comes from."""
    arrays = {name: array.float() for name, array in transcoder.weights.tensors().items()}
    if transcoder.threshold is not None:
        arrays["threshold"] = torch.tensor(transcoder.threshold)
    seal = write_tensors(folder / WEIGHTS_FILE, arrays)
    said = {
        "format_version": FORMAT_VERSION,
        "dict_size": transcoder.dict_size,
        "top_k": transcoder.top_k,
        "prefixes": list(transcoder.prefixes),
        "activation": transcoder.activation,
        "threshold": transcoder.threshold,
        "d_source": transcoder.d_source,
        "d_target": transcoder.d_target,
        "skip": transcoder.W_skip is not None,
        "source_view": transcoder.source_view,
        **config,
        "weights": {"file": WEIGHTS_FILE, **seal.said()},
    }
    disk.write_file(folder / CONFIG_FILE, (json.dumps(said, indent=1) + "\n").encode())
    return said


def load_transcoder(path: str | Path, *, device: str = "cpu") -> Transcoder:
    """The transcoder in a folder (or given its transcoder.safetensors), with its config.json as ``config``.

    Raises DamagedError for missing or altered files, MismatchError for files of another kind or format version.
    """
    folder = Path(path).parent if Path(path).name == WEIGHTS_FILE else Path(path)
    config = read_config(folder)
    seal = FileSeal.parse(config.get("weights"), where=folder / CONFIG_FILE)
    arrays = read_tensors(folder / WEIGHTS_FILE, seal, device=device)
    check_shapes(arrays, _shapes(config), where=folder / WEIGHTS_FILE)
    arrays.pop("threshold", None)
    arrays["W_enc"] = feature_major(arrays["W_enc"])
    return Transcoder(
        weights=Weights(**arrays),
        prefixes=tuple(config["prefixes"]),
        top_k=config["top_k"],
        activation=config["activation"],
        threshold=config["threshold"],
        source_view=config["source_view"],
        config=config,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a saved transcoder, checked. Raises DamagedError or MismatchError."""
    where = folder / CONFIG_FILE
    if not where.is_file():
        raise DamagedError("there is no trained transcoder here: config.json is missing", where=folder)
    try:
        config = json.loads(where.read_bytes())
    except ValueError as error:
        raise DamagedError(f"the file is not JSON: {error}", where=where) from error
    if not isinstance(config, dict) or "format_version" not in config:
        raise MismatchError("the file is not a nestcoder transcoder's config.json", where=where)
    if config["format_version"] != FORMAT_VERSION:
        raise MismatchError(f"format version {config['format_version']!r} is unknown to this release", where=where)
    wrong = [key for key, is_right in _RIGHT.items() if not (key in config and is_right(config[key]))]
    if wrong or config["prefixes"][-1] != config["dict_size"]:
        raise DamagedError(f"config.json makes no sense: {', '.join(wrong) or 'prefixes and dict_size'}", where=where)
    return config


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _are_prefixes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(map(_is_count, value))
        and all(earlier < later for earlier, later in pairwise(value))
    )


_RIGHT: dict[str, Callable[[Any], bool]] = {
    "dict_size": _is_count,
    "top_k": _is_count,
    "d_source": _is_count,
    "d_target": _is_count,
    "prefixes": _are_prefixes,
    "activation": lambda value: value in ("topk", "batchtopk"),
    "threshold": lambda value: value is None or isinstance(value, float),
    "skip": lambda value: isinstance(value, bool),
    "source_view": lambda value: value in ("mlp_in", "ln2_normalized"),
}


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The arrays that a config promises."""
    d_source, d_target, dict_size = config["d_source"], config["d_target"], config["dict_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_source, dict_size),
        "b_enc": (dict_size,),
        "W_dec": (dict_size, d_target),
        "b_dec": (d_target,),
    }
    if config["skip"]:
        shapes["W_skip"] = (d_source, d_target)
    if config["threshold"] is not None:
        shapes["threshold"] = ()
    return shapes
