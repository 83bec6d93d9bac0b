"""The site proof: numbers that show that the stored tensors are the named ones.

For each layer, on real contexts of the run, as relative errors ``|a - b| / |b|`` over rows without special tokens:

    mlp(mlp_in) = mlp_out                       the model's own MLP (and post norm), applied to the source
    resid_mid + mlp_out = resid_post            if attention and MLP are parallel: resid_pre + attn_out + mlp_out
    ln2_normalized * gain + bias = mlp_in
    <site> = bridge                             the fast forward pass compared with TransformerLens's plain one
    mlp_in of a document = alone                if attention stays inside documents: the same as with no text before it
    recomputed = mlp_out                        if the cache stores no target: the MLP that it stores instead

Each must be below a tolerance for the model's dtype; with a wrong site it is far above (0.26 to 0.92 in known cases).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cache.storage.recompute import Mlp
from common.errors import NumericalError
from harvest.config import Site
from harvest.model.forward import Captured, Key, attention_of, run_bridge, run_modules
from harvest.model.language_model import LanguageModel
from harvest.model.sites import module_at

RELATION_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""For equations inside one forward pass, which differ by a few roundings."""
BRIDGE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""For two forward passes with different attention kernels, which differ by the roundings of all blocks up to the
layer."""

ALONE = "mlp_in of a document = alone"
Equations = dict[str, tuple[Tensor, Tensor]]
"""Both sides of each equation."""


@dataclass(frozen=True)
class SiteProof:
    """The relative errors of one layer by equation, their tolerances, and what they were measured on."""

    layer: int
    errors: dict[str, float]
    tolerances: dict[str, float]
    dtype: str
    attention: str
    modules: str
    rows: int

    @property
    def failures(self) -> list[str]:
        """The equations that are not true within their tolerance; NaN is a failure."""
        return [name for name, error in self.errors.items() if not error <= self.tolerances[name]]

    @property
    def bridge_failures(self) -> list[str]:
        """The failures that only show a difference between the two forward passes."""
        return [name for name in self.failures if name.endswith("= bridge")]

    def require(self) -> None:
        """Raise NumericalError with the numbers unless every equation is true."""
        if self.failures:
            numbers = "; ".join(f"{n}: {self.errors[n]:.3g} (at most {self.tolerances[n]:.3g})" for n in self.failures)
            raise NumericalError(
                f"The tensors of layer {self.layer} are not what their names say. {numbers}.",
                where=self.modules,
                remedy="Install the versions of transformers and transformer_lens in constraints.txt. If that changes "
                "nothing, the blocks of this architecture are not as harvest/model/sites.py describes them.",
            )

    def record(self) -> dict[str, Any]:
        """As JSON, for the manifest."""
        return asdict(self)

    def worst(self, second: "SiteProof") -> "SiteProof":
        """The larger error of each equation, over the rows of both."""
        errors = {name: max(error, second.errors.get(name, 0.0)) for name, error in self.errors.items()}
        return replace(self, errors=errors, rows=self.rows + second.rows)


def prove_sites(
    model: LanguageModel,
    bridge: Any,
    tokens: Int[Tensor, "batch pos"],
    *,
    layers: Sequence[int],
    sites: Sequence[Site],
    within_documents: bool = False,
    mlps: Mapping[int, Mlp] | None = None,
) -> list[SiteProof]:
    """Measure every equation on ``tokens``; returns a proof for each layer. ``sites`` are those that will be stored.

    ``within_documents``: attention must stay inside documents, which is then an equation too. ``mlps``: the MLPs that
    are stored instead of targets, by layer.
    """
    needed: tuple[Site, ...] = ("ln2_normalized", "mlp_in", *model.family.summands, "resid_post")
    wanted: list[Key] = [(layer, site) for layer in layers for site in dict.fromkeys((*needed, *sites))]
    fast = run_modules(model, tokens, keys=wanted)
    plain = run_bridge(bridge, tokens, keys=wanted)
    special = torch.tensor(model.tokenizer.special_ids, device=tokens.device)
    rows = ~torch.isin(tokens, special)
    if not bool(rows.any()):
        rows = torch.ones_like(rows)
    alone = _alone(model, tokens, layers) if within_documents else {}
    return [
        _prove_layer(model, layer, fast, plain, rows=rows, alone=alone.get(layer, {}), mlp=(mlps or {}).get(layer))
        for layer in layers
    ]


def _alone(model: LanguageModel, tokens: Int[Tensor, "batch pos"], layers: Sequence[int]) -> dict[int, Equations]:
    """Each layer's mlp_in of the contexts' second halves: after the first halves as another document, and alone."""
    half = tokens.shape[1] // 2
    length = tokens.shape[1]
    restarting = torch.cat([torch.arange(half), torch.arange(length - half)]).to(tokens.device).expand(len(tokens), -1)
    keys: list[Key] = [(layer, "mlp_in") for layer in layers]
    packed = run_modules(model, tokens, keys=keys, positions=restarting)
    alone = run_modules(model, tokens[:, half:], keys=keys)
    return {key[0]: {ALONE: (packed[key][:, half:].flatten(0, 1), alone[key].flatten(0, 1))} for key in keys}


def _prove_layer(
    model: LanguageModel,
    layer: int,
    fast: Captured,
    plain: Captured,
    *,
    rows: Tensor,
    alone: Equations,
    mlp: Mlp | None,
) -> SiteProof:
    _refuse_overflow(model, layer, fast)
    relations = equations(model, layer, fast)
    if mlp:
        source = fast[layer, "mlp_in"]
        target = fast[layer, "mlp_out"]
        relations["recomputed = mlp_out"] = (mlp.target(source.flatten(0, 1)).view_as(target), target)
    bridge = {f"{key[1]} = bridge": (fast[key], plain[key]) for key in fast if key[0] == layer}
    compared = {name: (_select(a, rows), _select(b, rows)) for name, (a, b) in {**relations, **bridge}.items()} | alone
    tolerances = dict.fromkeys(relations, RELATION_TOLERANCE[model.dtype])
    tolerances |= dict.fromkeys([*bridge, *alone], BRIDGE_TOLERANCE[model.dtype])
    paths = (model.family.norm, model.family.mlp, model.family.post_norm, model.family.attention_out.path)
    return SiteProof(
        layer,
        errors={name: relative_error(a, b) for name, (a, b) in compared.items()},
        tolerances=tolerances,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=attention_of(model),
        modules=f"{model.source.architecture}: {model.family.blocks}.{layer} of {', '.join(filter(None, paths))}",
        rows=int(rows.sum()),
    )


def _refuse_overflow(model: LanguageModel, layer: int, captured: Captured) -> None:
    """Raise NumericalError when a model leaves the range of float16, which is not an error of the hooks."""
    if model.dtype != torch.float16:
        return
    sites = [name for (number, name), tensor in captured.items() if number == layer and not tensor.isfinite().all()]
    if sites:
        raise NumericalError(
            f"The model overflows in float16: {', '.join(sites)} of layer {layer} contain infinity or NaN.",
            where=f"{model.source.name}, {model.family.blocks}.{layer}",
            remedy="Set harvest.dtype to bfloat16 or float32.",
        )


@torch.inference_mode()
def equations(model: LanguageModel, layer: int, captured: Captured) -> Equations:
    """Both sides of each equation inside one forward pass, (batch, pos, d) each."""
    site = {key[1]: tensor for key, tensor in captured.items() if key[0] == layer}
    family = model.family
    block = model.block(layer)
    norm = model.norm(layer)
    out = module_at(block, family.mlp)(site["mlp_in"])
    if family.post_norm:
        out = module_at(block, family.post_norm)(out)
    # A block's input may still be on the card of the block before.
    summed = reduce(torch.add, (site[name].to(site["mlp_out"].device) for name in family.summands))
    return {
        "mlp(mlp_in) = mlp_out": (out, site["mlp_out"]),
        f"{' + '.join(family.summands)} = resid_post": (summed, site["resid_post"]),
        # Rounded to the model's dtype as in the model: in bfloat16 the two are equal, or nearly.
        "ln2_normalized * gain + bias = mlp_in": (norm.apply(site["ln2_normalized"]).to(model.dtype), site["mlp_in"]),
    }


def _select(tensor: Float[Tensor, "batch pos d"], rows: Bool[Tensor, "batch pos"]) -> Float[Tensor, "rows d"]:
    return tensor[rows.to(tensor.device)]


def relative_error(a: Float[Tensor, "rows d"], b: Float[Tensor, "rows d"]) -> float:
    """``|a - b| / |b|`` in float64; infinite when ``b`` is zero and ``a`` is not."""
    difference = (a.to(b.device).double() - b.double()).norm()
    size = b.double().norm()
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return float(difference / size)
