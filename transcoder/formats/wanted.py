"""What a dictionary of another tool must fit, and how a ``Transcoder`` is made from its checked arrays.

Its ``config`` has what the files say, under the keys of our own config.json: ``source_site``, ``target_site``,
``layer``, ``model``; and ``notes``, sentences that its users must know. A file that needs more than
``rule(source @ W_enc + b_enc)`` is refused, with the reason.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import DamagedError, MismatchError, UsageError
from common.sealed.tensors import FLOATS, check_arrays
from transcoder.formats.sites import AMBIGUOUS, LayerSite, has_post_norm, site_of_hook
from transcoder.rules.rule import Rule, is_count
from transcoder.transcoder import SourceView, Transcoder

NAMES = {"W_enc", "b_enc", "W_dec", "b_dec"}
OWN_WORDS = "nestcoder"
"""The key, in the metadata of an exported file, of what its format cannot store: prefixes, and how it was made."""
_NAME_IT = "If you know it, write TransformerLens's hook into the configuration: blocks.8.mlp.hook_in, or another."


@dataclass(frozen=True)
class Wanted:
    """What a dictionary must fit: the layer, the widths of the cache if there is one, and by what the nearest of
    several is chosen; ``force`` accepts another layer. ``source_view`` tells what the encoder reads, if the file's own
    word for it may mean two things."""

    layer: int
    d_source: int | None = None
    d_target: int | None = None
    dict_size: int | None = None
    l0: float | None = None
    force: bool = False
    source_view: SourceView | None = None


@dataclass(frozen=True)
class Described:
    """What the files of a dictionary say besides its arrays: its path, its source and target in the model, and our own
    entries (``OWN_WORDS``) if we exported it."""

    path: Path
    source: LayerSite
    target: LayerSite
    name: str
    model: str | None = None
    nominal_l0: float | None = None
    tokens_trained: int | None = None
    own_words: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def sites_of_hooks(
    source: object, target: object, *, path: Path, wanted: Wanted, model: object = None
) -> tuple[LayerSite, LayerSite]:
    """The sites of the two hooks that a file names. ``target`` None: the same as the source, of an autoencoder."""
    if str(source).endswith(f".{AMBIGUOUS}"):
        source = _decided(str(source), path=path, wanted=wanted)
    found = site_of_hook(source, model=model)
    if source is None:
        what = "The files do not say which tensor of the model the dictionary reads."
        raise MismatchError(what, where=path, remedy=_NAME_IT)
    if found is None:
        what = f"The dictionary reads {source!r}, which is not a tensor that a cache can have."
        raise MismatchError(what, where=path, remedy=_NAME_IT)
    if target is None:
        return found, found
    reconstructed = site_of_hook(target, model=model)
    if reconstructed is None:
        reason = " before the norm that follows the MLP" if has_post_norm(model) else ""
        what = f"The dictionary reconstructs {target!r}{reason}; that target is not a tensor that a cache can have."
        raise MismatchError(what, where=path)
    return found, reconstructed


def dictionary_of(
    tensors: Mapping[str, Tensor], described: Described, *, rule: Rule, wanted: Wanted, subtracted: Tensor | None = None
) -> Transcoder:
    """From arrays in the field's orientation: ``W_enc`` (d_source, dict_size), ``W_dec`` (dict_size, d_target),
    biases, and ``W_skip`` (d_source, d_target) where there is a skip.

    ``subtracted`` is what the tool subtracts from the source before it encodes: folded into ``b_enc``, in float64.
    DamagedError: shapes that disagree, NaN. MismatchError: another width or layer than wanted.
    """
    path = described.path
    _check(tensors, path=path, wanted=wanted)
    if described.source.layer != wanted.layer and not wanted.force:
        what = f"The dictionary is of layer {described.source.layer}, not of layer {wanted.layer}."
        raise MismatchError(what, where=path, remedy="Name one of the same layer, or give --force.")
    arrays = {key: tensor.float() for key, tensor in tensors.items()}
    if subtracted is not None:
        shape: tuple[int, ...] = (arrays["W_enc"].shape[0],)
        check_arrays({"b_dec": subtracted}, {"b_dec": shape}, location=path, error=DamagedError, dtypes=FLOATS)
        shift = subtracted.double() @ arrays["W_enc"].double()
        arrays["b_enc"] = (arrays["b_enc"].double() - shift).float()
    arrays["W_enc"] = arrays["W_enc"].T.contiguous()
    words = described.own_words or {}
    return Transcoder.from_arrays(
        arrays,
        rule=rule,
        prefixes=prefixes_of(words.get("prefixes"), len(arrays["b_enc"])),
        name=described.name,
        source_view="ln2_normalized" if described.source.site == "ln2_normalized" else "mlp_in",
        tokens_trained=described.tokens_trained,
        nominal_l0=described.nominal_l0,
        config={
            "model": described.model,
            "layer": described.source.layer,
            "source_site": described.source.site,
            "target_site": described.target.site,
            "notes": [*described.notes, *_prefix_note(words)],
        },
    )


def thresholds_of(tensor: Tensor, dict_size: int, *, path: Path) -> Tensor:
    """A float for every feature. Raises DamagedError."""
    check_arrays({"threshold": tensor}, {"threshold": (dict_size,)}, location=path, error=DamagedError, dtypes=FLOATS)
    return tensor.float()


def top_k_of(value: object, dict_size: int, *, path: Path) -> int:
    """``k`` of a top-k dictionary. Raises DamagedError where it is not a number of its features."""
    if not is_count(value) or int(str(value)) > dict_size:
        raise DamagedError(f"k is {value!r}, which is not a number of features out of {dict_size:,}.", where=path)
    return int(str(value))


def refuse_nonlinear(what: str, *, path: Path) -> MismatchError:
    """The error for a dictionary that does more with a row than one affine map and a selection."""
    return MismatchError(
        f"{what}; only dictionaries that select from source @ W_enc + b_enc are read.",
        where=path,
        remedy="Read a dictionary that was trained without it.",
    )


def _decided(source: str, *, path: Path, wanted: Wanted) -> str:
    """The exact hook for an ambiguous one, from the user's ``source_view``. Raises UsageError if there is none."""
    if wanted.source_view is None:
        what = (
            f"The dictionary reads {source!r}: in TransformerLens that is the residual before the norm, "
            "in other tools the MLP's input."
        )
        remedy = "Tell what it was trained on: --source-view mlp_in, or --source-view ln2_normalized."
        raise UsageError(what, where=path, remedy=remedy)
    hook = {"mlp_in": "mlp.hook_in", "ln2_normalized": "ln2.hook_normalized"}[wanted.source_view]
    return source.replace(AMBIGUOUS, hook)


def _check(tensors: Mapping[str, Tensor], *, path: Path, wanted: Wanted) -> None:
    dict_size = tensors["b_enc"].numel()
    if dict_size == 0:
        raise DamagedError("The dictionary has no features.", where=path)
    if tensors["W_enc"].ndim == tensors["W_dec"].ndim == 2:
        found = (tensors["W_enc"].shape[0], tensors["W_dec"].shape[1])
        widths = (wanted.d_source or found[0], wanted.d_target or found[1])
        if found != widths:
            what = f"The file maps {found[0]} to {found[1]} dimensions, the cache's rows {widths[0]} to {widths[1]}."
            raise MismatchError(what, where=path)
    else:
        widths = (wanted.d_source or 0, wanted.d_target or 0)
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (widths[0], dict_size),
        "b_enc": (dict_size,),
        "W_dec": (dict_size, widths[1]),
        "b_dec": (widths[1],),
    }
    if "W_skip" in tensors:
        shapes["W_skip"] = widths
    check_arrays(tensors, shapes, location=path, error=DamagedError, dtypes=FLOATS)


def prefixes_of(value: object, dict_size: int) -> tuple[int, ...]:
    """The prefixes that an exported file names; the whole dictionary if they are missing or wrong."""
    match value:
        case [*numbers] if numbers and all(map(is_count, numbers)):
            ends = tuple(int(str(number)) for number in numbers)
            if ends[-1] == dict_size and all(earlier < later for earlier, later in pairwise(ends)):
                return ends
        case _:
            pass
    return (dict_size,)


def _prefix_note(words: Mapping[str, Any]) -> Sequence[str]:
    return () if "prefixes" in words else ("its files tell of no prefixes: it has one, the whole dictionary",)


def layer_in(name: str) -> int | None:
    """The last layer named in a path such as ``layer_8/width_16k`` or ``layer_8_width_16k``."""
    found = re.findall(r"layer_(\d{1,4})(?!\d)", name)
    return int(found[-1]) if found else None
