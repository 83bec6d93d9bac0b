"""What a transcoder from elsewhere must fit, and what its layouts have in common.

Other tools name the tensor that the encoder reads: ``ln2.hook_normalized`` is the residual before the norm's gain,
``mlp.hook_in`` and ``ln2.hook_out`` are what the MLP consumes. What a file asks for that is not done here is refused.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.errors import DamagedError, MismatchError
from common.sealed.tensors import FLOATS, check_arrays
from transcoder.formats.gemma_scope import nominal_l0
from transcoder.rules.threshold import JumpReLU
from transcoder.transcoder import SourceView, Transcoder

NAMES = {"W_enc", "b_enc", "W_dec", "b_dec"}
_VIEWS: dict[str, SourceView] = {
    "ln2.hook_normalized": "ln2_normalized",
    "mlp.hook_in": "mlp_in",
    "ln2.hook_out": "mlp_in",
}
_TARGETS = ("hook_mlp_out",)


@dataclass(frozen=True)
class Wanted:
    """What a dictionary must fit: the widths and the layer of the cache, and what the nearest is chosen by."""

    d_source: int
    d_target: int
    layer: int
    dict_size: int
    l0: float
    force: bool = False


def view_of(source: object, target: object, where: Path, wanted: Wanted) -> SourceView:
    """What the encoder reads; the target must be the cache's, and the layer too unless forced."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", str(source))
    view = _VIEWS.get(found[2]) if found else None
    if found is None or view is None:
        what = f"The dictionary reads {source!r}; {', '.join(_VIEWS)} can be had from the cache."
        raise MismatchError(what, where=where)
    if not str(target).endswith(_TARGETS):
        what = f"The dictionary reconstructs {target!r}; the cache's target is hook_mlp_out."
        raise MismatchError(what, where=where)
    if int(found[1]) != wanted.layer and not wanted.force:
        what = f"The dictionary is of layer {found[1]}, the cache of layer {wanted.layer}."
        raise MismatchError(what, where=where, remedy="Name one of the same layer, or give --force.")
    return view


def transcoder_of(
    tensors: dict[str, Tensor], name: str, *, view: SourceView, where: Path, wanted: Wanted
) -> Transcoder:
    """From checked arrays, ``W_enc`` as (d_source, dict_size); a ReLU is a JumpReLU whose thresholds are 0."""
    dict_size = tensors["b_enc"].numel()
    if dict_size == 0:
        raise DamagedError("The dictionary has no features.", where=where)
    found = (tensors["W_enc"].shape[:1], tensors["W_dec"].shape[1:])
    if found != ((wanted.d_source,), (wanted.d_target,)) and tensors["W_enc"].ndim == tensors["W_dec"].ndim == 2:
        what = f"The file maps {found[0][0]} to {found[1][0]} dimensions, the cache's rows {wanted.d_source} to "
        raise MismatchError(f"{what}{wanted.d_target}.", where=where)
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (wanted.d_source, dict_size),
        "b_enc": (dict_size,),
        "W_dec": (dict_size, wanted.d_target),
        "b_dec": (wanted.d_target,),
    }
    if "threshold" in tensors:
        shapes["threshold"] = (dict_size,)
    check_arrays(tensors, shapes, where=where, error=DamagedError, dtypes=FLOATS)
    arrays = {key: tensor.float() for key, tensor in tensors.items()}
    threshold = arrays.pop("threshold", torch.zeros(dict_size))
    arrays["W_enc"] = arrays["W_enc"].T.contiguous()
    return Transcoder.from_arrays(
        arrays,
        rule=JumpReLU(threshold),
        name=name,
        source_view=view,
        nominal_l0=nominal_l0(where),
    )
