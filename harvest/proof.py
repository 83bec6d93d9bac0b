"""The site proof: numbers that show that the tensors kept are the tensors meant.

For each layer, on real contexts of the run, as relative errors ``|a - b| / |b|`` over the rows of no special token:

    mlp(mlp_in) = mlp_out                       the model's own MLP (and post norm), applied to the source
    resid_mid + mlp_out = resid_post
    ln2_normalized * gain + bias = mlp_in
    <site> = bridge                             the fast forward pass against TransformerLens's plain one

Each must lie below a tolerance for the model's dtype; a wrong recipe lies far above (0.26 to 0.92 for the known ones).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.errors import NumericalError
from harvest.config import Site
from harvest.forward import Captured, Key, attention_of, run_bridge, run_modules
from harvest.model import LanguageModel
from harvest.sites import FAMILIES, block_of, module_at, norm_of

RELATION_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""For equations inside one forward pass: a few roundings."""
BRIDGE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""For two forward passes with different attention kernels: roundings of every block up to the layer."""
_NEEDED: tuple[Site, ...] = ("ln2_normalized", "mlp_in", "mlp_out", "resid_mid", "resid_post")


@dataclass(frozen=True)
class SiteProof:
    """The relative errors of one layer by equation, what they had to stay below, and what they were measured on."""

    layer: int
    errors: dict[str, float]
    tolerances: dict[str, float]
    dtype: str
    attention: str
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
                remedy="The installed transformers or transformer_lens differs from constraints.txt.",
            )

    def record(self) -> dict[str, Any]:
        """As JSON, for the manifest."""
        return asdict(self)

    def worst(self, other: "SiteProof") -> "SiteProof":
        """The larger error of each equation, over the rows of both."""
        errors = {name: max(error, other.errors.get(name, 0.0)) for name, error in self.errors.items()}
        return SiteProof(self.layer, errors, self.tolerances, self.dtype, self.attention, self.rows + other.rows)


def prove_sites(
    model: LanguageModel,
    bridge: Any,
    tokens: Int[Tensor, "batch pos"],
    *,
    layers: Sequence[int],
    sites: Sequence[Site],
) -> list[SiteProof]:
    """Measure every equation on ``tokens``, a proof for each layer; ``sites`` are those that will be kept."""
    wanted: list[Key] = [(layer, site) for layer in layers for site in dict.fromkeys((*_NEEDED, *sites))]
    fast, plain = run_modules(model, tokens, keys=wanted), run_bridge(bridge, tokens, keys=wanted)
    special = torch.tensor(model.tokenizer.special_ids, device=tokens.device)
    rows = ~torch.isin(tokens, special)
    if not bool(rows.any()):
        rows = torch.ones_like(rows)
    return [_prove_layer(model, layer, fast, plain, rows=rows) for layer in layers]


def _prove_layer(model: LanguageModel, layer: int, fast: Captured, plain: Captured, *, rows: Tensor) -> SiteProof:
    relations = equations(model, layer, fast)
    bridge = {f"{site} = bridge": (fast[at, site], plain[at, site]) for at, site in fast if at == layer}
    errors = {name: relative_error(a[rows], b[rows]) for name, (a, b) in {**relations, **bridge}.items()}
    tolerances = dict.fromkeys(relations, RELATION_TOLERANCE[model.dtype])
    tolerances |= dict.fromkeys(bridge, BRIDGE_TOLERANCE[model.dtype])
    attention = attention_of(model)
    dtype = str(model.dtype).removeprefix("torch.")
    return SiteProof(layer, errors, tolerances, dtype=dtype, attention=attention, rows=int(rows.sum()))


@torch.inference_mode()
def equations(model: LanguageModel, layer: int, captured: Captured) -> dict[str, tuple[Tensor, Tensor]]:
    """Both sides of each equation inside one forward pass, (batch, pos, d) each."""
    site = {name: tensor for (at, name), tensor in captured.items() if at == layer}
    family, block, norm = (
        FAMILIES[model.where.architecture],
        block_of(model.hugging, layer),
        norm_of(model.hugging, layer),
    )
    out = module_at(block, family.mlp)(site["mlp_in"])
    if family.post_norm:
        out = module_at(block, family.post_norm)(out)
    return {
        "mlp(mlp_in) = mlp_out": (out, site["mlp_out"]),
        "resid_mid + mlp_out = resid_post": (site["resid_mid"] + site["mlp_out"], site["resid_post"]),
        # Rounded to the model's dtype as the model does it: in bfloat16 this is equality bit for bit, or nearly.
        "ln2_normalized * gain + bias = mlp_in": (norm.apply(site["ln2_normalized"]).to(model.dtype), site["mlp_in"]),
    }


def relative_error(a: Float[Tensor, "rows d"], b: Float[Tensor, "rows d"]) -> float:
    """``|a - b| / |b|`` in float64; infinite when ``b`` is zero and ``a`` is not."""
    difference, size = (a.double() - b.double()).norm(), b.double().norm()
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return float(difference / size)
