"""Gemma Scope 2: config.json + params.safetensors in layer_L_width_W_l0_{small,medium,big}[_affine].

    w_enc (d_source, dict_size)  b_enc (dict_size,)  threshold (dict_size,)
    w_dec (dict_size, d_target)  b_dec (d_target,)   affine_skip_connection (d_source, d_target) if any

Where its tensors lie is read from the Hugging Face module paths in config.json. TransformerLens's name, which other
tools give for it, is ``hook_mlp_in``: there the residual before the norm, while these files read what comes out of
``pre_feedforward_layernorm``, gain included. So nothing is folded, unlike with the first Gemma Scope.
"""

import re
from pathlib import Path

from common.errors import MismatchError, UsageError
from transcoder.formats.files.safe import read_json, read_tensors
from transcoder.formats.sites import LayerSite, Site
from transcoder.formats.wanted import Described, Wanted, dictionary_of, layer_in, thresholds_of
from transcoder.rules.threshold import JumpReLU
from transcoder.transcoder import Transcoder

_FILE = "params.safetensors"
_CONFIG = "config.json"
_NAMES = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"}
_SKIP = "affine_skip_connection"
_MODULES: dict[str, Site] = {
    "pre_feedforward_layernorm.output": "mlp_in",
    "post_feedforward_layernorm.output": "mlp_out",
    "output": "resid_post",
}
_KINDS: dict[str, tuple[Site, Site]] = {
    "transcoder": ("mlp_in", "mlp_out"),
    "resid_post": ("resid_post", "resid_post"),
    "mlp_out": ("mlp_out", "mlp_out"),
}
"""Where a folder without config.json lies in the model, by what its path says it is."""


def find_gemma_scope_2(path: Path, _wanted: Wanted) -> Path | None:
    """The folder that ``path`` means, where it is of this layout."""
    if path.name == _FILE and path.is_file():
        return path.parent
    return path if (path / _FILE).is_file() else None


def read_gemma_scope_2(folder: Path, wanted: Wanted) -> Transcoder:
    """Raises MismatchError where its tensors are none that a cache can hold, UsageError where nothing says what."""
    source, target, model = _sites(folder)
    stored = read_tensors(folder / _FILE, names=set(_NAMES), optional=frozenset({_SKIP}))
    tensors = {own_name: stored[name] for name, own_name in _NAMES.items()}
    threshold = tensors.pop("threshold")
    if _SKIP in stored:
        tensors["W_skip"] = stored[_SKIP]
    return dictionary_of(
        tensors,
        Described(folder, source, target, "gemma-scope-2", model=model),
        rule=JumpReLU(thresholds_of(threshold, tensors["b_enc"].numel(), path=folder)),
        wanted=wanted,
    )


def _sites(folder: Path) -> tuple[LayerSite, LayerSite, str | None]:
    if not (folder / _CONFIG).is_file():
        return *_sites_by_name(folder), None
    config = read_json(folder / _CONFIG)
    if config.get("architecture") != "jump_relu":
        what = f"The file's architecture is {config.get('architecture')!r}; 'jump_relu' is read."
        raise MismatchError(what, where=folder / _CONFIG)
    entry = str(config.get("hf_hook_point_in"))
    source = _site_of_module(entry, folder)
    target = _site_of_module(str(config.get("hf_hook_point_out") or entry), folder)
    model = config.get("model_name")
    return source, target, str(model) if model else None


def _site_of_module(module: str, folder: Path) -> LayerSite:
    found = re.fullmatch(r"(?:model\.)?(?:language_model\.)?layers\.(\d{1,4})\.(.+)", module)
    site = _MODULES.get(found[2]) if found else None
    if found is None or site is None:
        what = f"The dictionary reads or writes {module!r}, which is not a tensor that a cache can have."
        raise MismatchError(what, where=folder / _CONFIG)
    return LayerSite(site, int(found[1]))


def _sites_by_name(folder: Path) -> tuple[LayerSite, LayerSite]:
    """As Google's repositories name their folders: transcoder_all/layer_8_width_16k_l0_small."""
    path = folder.absolute().as_posix()
    layer = layer_in(path)
    kind = next((kind for kind in _KINDS if kind in path), None)
    if layer is None or kind is None:
        remedy = "Put Google's config.json beside it, or keep the folder's path: transcoder_all/layer_8_width_16k_..."
        raise UsageError(
            "No file or folder name tells the layer and tensors of this dictionary.", where=folder, remedy=remedy
        )
    source, target = _KINDS[kind]
    return LayerSite(source, layer), LayerSite(target, layer)
