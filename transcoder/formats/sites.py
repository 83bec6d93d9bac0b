"""The tensors of a layer by our names and by other tools': TransformerLens's hooks, Hugging Face's modules.

    mlp_in          what the MLP consumes                       blocks.8.mlp.hook_in          input of h.8.mlp
    ln2_normalized  the same before the norm's gain and bias    blocks.8.ln2.hook_normalized
    mlp_out         what the MLP adds to the residual           blocks.8.hook_mlp_out         output of h.8.mlp
    resid_post      the residual stream after the layer         blocks.8.hook_resid_post      output of h.8

Two names mean different things in different models or tools, and are not used: ``hook_mlp_in`` is the residual *before*
the norm in TransformerLens, and the MLP's input in other files; ``mlp.hook_out``, and a module's own output, are before
the norm that Gemma has after its MLP.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

Site = Literal["mlp_in", "ln2_normalized", "mlp_out", "resid_pre", "resid_mid", "resid_post", "attn_out"]
SITES: tuple[Site, ...] = get_args(Site)

AMBIGUOUS = "hook_mlp_in"
_HOOKS: dict[Site, str] = {
    "mlp_in": "mlp.hook_in",
    "ln2_normalized": "ln2.hook_normalized",
    "mlp_out": "hook_mlp_out",
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
}
_BY_HOOK: dict[str, Site] = {**{hook: site for site, hook in _HOOKS.items()}, "ln2.hook_out": "mlp_in"}
_BEFORE_POST_NORM = "mlp.hook_out"


@dataclass(frozen=True)
class LayerSite:
    """A tensor of a model: its site, and its layer."""

    site: Site
    layer: int


def site_of_hook(hook: object, *, model: object = None) -> LayerSite | None:
    """The site that a TransformerLens hook names; None for a hook that is not supported, or means several things.

    ``model`` is the model's name, if known: an MLP's own output is what it adds, unless a norm follows.
    """
    found = re.fullmatch(r"blocks\.(\d{1,4})\.([a-z0-9_.]+)", str(hook))
    if not found:
        return None
    site = _BY_HOOK.get(found[2])
    if found[2] == _BEFORE_POST_NORM and not has_post_norm(model):
        site = "mlp_out"
    return LayerSite(site, int(found[1])) if site else None


def sites_of_module(path: str, *, transcodes: bool) -> tuple[LayerSite, LayerSite] | None:
    """Source and target of what was trained on a Hugging Face module: its input and output, or its output alone."""
    found = re.fullmatch(r"(?:transformer\.|model\.|gpt_neox\.)*(?:h|layers)\.(\d{1,4})(\.mlp)?", path)
    if not found or (transcodes and not found[2]):
        return None
    layer = int(found[1])
    target = LayerSite("mlp_out" if found[2] else "resid_post", layer)
    return (LayerSite("mlp_in", layer) if transcodes else target), target


def hook_of(site: Site, layer: int) -> str:
    """TransformerLens's name of a site."""
    return f"blocks.{layer}.{_HOOKS[site]}"


def module_of(site: Site, layer: int, *, architecture: str) -> str | None:
    """The Hugging Face module whose input (``mlp_in``) or output a site is; None where no module has it."""
    block = f"h.{layer}" if "gpt2" in architecture.lower() else f"layers.{layer}"
    return {"mlp_in": f"{block}.mlp", "mlp_out": f"{block}.mlp", "resid_post": block}.get(site)


def has_post_norm(model: object) -> bool:
    """Whether a norm follows the MLP of the model, or architecture, of this name: Gemma's second and third do so."""
    return bool(re.search(r"gemma-?_?[23]", str(model), re.IGNORECASE))
