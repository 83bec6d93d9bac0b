"""The site proof: numbers that show that the tensors kept are the tensors meant.

For each layer, on real contexts of the run, as relative errors ``|a - b| / |b|`` over the rows of no special token:

    mlp(mlp_in) = mlp_out                       the model's own MLP (and post norm), applied to the source
    resid_mid + mlp_out = resid_post            where attention and MLP are parallel: resid_pre + attn_out + mlp_out
    ln2_normalized * gain + bias = mlp_in
    <site> = bridge                             the fast forward pass against TransformerLens's plain one
    mlp_in of a document = alone                where attention stays inside documents: as if nothing stood before it
    recomputed = mlp_out                        where the cache keeps no target: the MLP that is stored in its place

Each must lie below a tolerance for the model's dtype; a wrong recipe lies far above (0.26 to 0.92 for the known ones).
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
"""For equations inside one forward pass: a few roundings."""
BRIDGE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""For two forward passes with different attention kernels: roundings of every block up to the layer."""

ALONE = "mlp_in of a document = alone"
Pairs = dict[str, tuple[Tensor, Tensor]]
"""Both sides of each equation."""


@dataclass(frozen=True)
class SiteProof:
    """The relative errors of one layer by equation, what they had to stay below, and what they were measured on."""

    layer: int
    errors: dict[str, float]
    tolerances: dict[str, float]
    dtype: str
    attention: str
    modules: str
    rows: int

    @property
    def failures(self) -> list[str]:
        """The equations that do not hold (NaN does not hold)."""
        return [name for name, error in self.errors.items() if not error <= self.tolerances[name]]

    @property
    def bridge_failures(self) -> list[str]:
        """The failures that only say that the two forward passes differ."""
        return [name for name in self.failures if name.endswith("= bridge")]

    def require(self) -> None:
        """Raise NumericalError with the numbers unless every equation holds."""
        if self.failures:
            numbers = "; ".join(f"{n}: {self.errors[n]:.3g} (at most {self.tolerances[n]:.3g})" for n in self.failures)
            raise NumericalError(
                f"The tensors of layer {self.layer} are not what their names say. {numbers}.",
                where=self.modules,
                remedy="The installed transformers or transformer_lens differs from constraints.txt, or this "
                "architecture's blocks are not of the form that harvest/model/sites.py states.",
            )

    def record(self) -> dict[str, Any]:
        """As JSON, for the manifest."""
        return asdict(self)

    def worst(self, other: "SiteProof") -> "SiteProof":
        """The larger error of each equation, over the rows of both."""
        errors = {name: max(error, other.errors.get(name, 0.0)) for name, error in self.errors.items()}
        return replace(self, errors=errors, rows=self.rows + other.rows)


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
    """Measure every equation on ``tokens``, a proof for each layer; ``sites`` are those that will be kept.

    ``within_documents``: attention is to stay inside documents, which is then an equation too. ``mlps``: what is to be
    stored in place of the target, by layer.
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


def _alone(model: LanguageModel, tokens: Int[Tensor, "batch pos"], layers: Sequence[int]) -> dict[int, Pairs]:
    """Each layer's mlp_in of the contexts' second halves, behind the first as another document and by themselves."""
    half = tokens.shape[1] // 2
    length = tokens.shape[1]
    positions_of_both = (
        torch.cat([torch.arange(half), torch.arange(length - half)]).to(tokens.device).expand(len(tokens), -1)
    )
    keys: list[Key] = [(layer, "mlp_in") for layer in layers]
    packed = run_modules(model, tokens, keys=keys, positions=positions_of_both)
    alone = run_modules(model, tokens[:, half:], keys=keys)
    return {key[0]: {ALONE: (packed[key][:, half:].flatten(0, 1), alone[key].flatten(0, 1))} for key in keys}


def _prove_layer(
    model: LanguageModel, layer: int, fast: Captured, plain: Captured, *, rows: Tensor, alone: Pairs, mlp: Mlp | None
) -> SiteProof:
    _refuse_overflow(model, layer, fast)
    relations = equations(model, layer, fast)
    if mlp:
        source = fast[layer, "mlp_in"]
        target = fast[layer, "mlp_out"]
        relations["recomputed = mlp_out"] = (mlp.target(source.flatten(0, 1)).view_as(target), target)
    bridge = {f"{site} = bridge": (fast[at, site], plain[at, site]) for at, site in fast if at == layer}
    pairs = {name: (_rows_at(a, rows), _rows_at(b, rows)) for name, (a, b) in {**relations, **bridge}.items()} | alone
    tolerances = dict.fromkeys(relations, RELATION_TOLERANCE[model.dtype])
    tolerances |= dict.fromkeys([*bridge, *alone], BRIDGE_TOLERANCE[model.dtype])
    parts = (model.family.norm, model.family.mlp, model.family.post_norm, model.family.attention_out.path)
    return SiteProof(
        layer,
        errors={name: relative_error(a, b) for name, (a, b) in pairs.items()},
        tolerances=tolerances,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=attention_of(model),
        modules=f"{model.source.architecture}: {model.family.blocks}.{layer} of {', '.join(filter(None, parts))}",
        rows=int(rows.sum()),
    )


def _refuse_overflow(model: LanguageModel, layer: int, captured: Captured) -> None:
    """In float16 a model may leave the range of its numbers, which is no fault of the hooks."""
    if model.dtype != torch.float16:
        return
    sites = [name for (number, name), tensor in captured.items() if number == layer and not tensor.isfinite().all()]
    if sites:
        raise NumericalError(
            f"The model overflows in float16: {', '.join(sites)} of layer {layer} hold infinities or NaN.",
            where=f"{model.source.name}, {model.family.blocks}.{layer}",
            remedy="Set harvest.dtype to bfloat16 or float32.",
        )


@torch.inference_mode()
def equations(model: LanguageModel, layer: int, captured: Captured) -> Pairs:
    """Both sides of each equation inside one forward pass, (batch, pos, d) each."""
    site = {name: tensor for (at, name), tensor in captured.items() if at == layer}
    family = model.family
    block = model.block(layer)
    norm = model.norm(layer)
    out = module_at(block, family.mlp)(site["mlp_in"])
    if family.post_norm:
        out = module_at(block, family.post_norm)(out)
    # A block's input may still lie on the card of the block before.
    summed = reduce(torch.add, (site[name].to(site["mlp_out"].device) for name in family.summands))
    return {
        "mlp(mlp_in) = mlp_out": (out, site["mlp_out"]),
        f"{' + '.join(family.summands)} = resid_post": (summed, site["resid_post"]),
        # Rounded to the model's dtype as the model does it: in bfloat16 this is equality bit for bit, or nearly.
        "ln2_normalized * gain + bias = mlp_in": (norm.apply(site["ln2_normalized"]).to(model.dtype), site["mlp_in"]),
    }


def _rows_at(tensor: Float[Tensor, "batch pos d"], rows: Bool[Tensor, "batch pos"]) -> Float[Tensor, "rows d"]:
    return tensor[rows.to(tensor.device)]


def relative_error(a: Float[Tensor, "rows d"], b: Float[Tensor, "rows d"]) -> float:
    """``|a - b| / |b|`` in float64; infinite when ``b`` is zero and ``a`` is not."""
    difference = (a.to(b.device).double() - b.double()).norm()
    size = b.double().norm()
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return float(difference / size)
