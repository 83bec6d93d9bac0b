"""How many features fire, and how often each one does.

    L0_p(t)    = number of features below prefix p whose value at token t is above 0
    density(f) = share of held-out tokens on which feature f fires

Both come from two tables of counts: tokens by (prefix, L0), and firings by feature. A feature that never fires in N
tokens is called dead only where N is large enough to say: where the average feature would have fired often by then.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from evaluate.metrics.bootstrap import DocumentSums, intervals, sums_by_document
from evaluate.metrics.inputs import MetricInputs
from evaluate.metrics.metric import Findings, Metric, Replayed, State, add, numbered

DENSITY_EDGES = tuple(float(edge) for edge in np.linspace(-7, 0, 29))
"""Edges of the bins of the density histogram, in powers of ten."""

DENSE_ABOVE = 0.1
"""A feature that fires on a larger share of the tokens is dense."""


@dataclass(frozen=True)
class Sparsity(Metric):
    """``least_mean_firings``: how often the average feature must have fired before a silent one counts as dead."""

    prefixes: tuple[int, ...]
    least_mean_firings: float
    replicates: int = 0
    seed: int = 0
    device: str = "cpu"

    @classmethod
    def create(cls, inputs: MetricInputs) -> "Sparsity":
        """With how often a feature of average frequency must have fired before a silent one is dead."""
        return cls(
            prefixes=inputs.dictionary.prefixes,
            least_mean_firings=inputs.settings.dead_mean_firings,
            replicates=inputs.settings.bootstrap,
            seed=inputs.settings.seed,
            device=inputs.device,
        )

    @cached_property
    def _sums(self) -> DocumentSums:
        return DocumentSums({"rows": (), "l0": (len(self.prefixes),)}, self.replicates, self.seed, self.device)

    def start(self) -> State:
        """Empty tables: tokens by (prefix, L0), firings by feature."""
        dict_size = self.prefixes[-1]
        tokens = torch.zeros(len(self.prefixes), dict_size + 1, dtype=torch.int64, device=self.device)
        firings = torch.zeros(dict_size, dtype=torch.int64, device=self.device)
        return {"tokens": tokens, "firings": firings} | self._sums.start()

    def measure(self, batch: Replayed) -> State:
        """The batch's counts."""
        dict_size = self.prefixes[-1]
        fires = batch.selection.values > 0
        tokens = torch.stack([column.bincount(minlength=dict_size + 1) for column in batch.l0.unbind(1)])
        firings = batch.selection.features[fires].bincount(minlength=dict_size)

        documents, document_index = numbered(batch.document)
        values = {"rows": torch.ones_like(document_index), "l0": batch.l0}
        sums = sums_by_document(values, document_index, documents=len(documents))
        return {"tokens": tokens, "firings": firings} | self._sums.of_batch(documents, sums)

    def combine(self, total: State, addition: State) -> State:
        """Counts are added."""
        add(total, {name: addition[name] for name in ("tokens", "firings")})
        return self._sums.combine(total, addition)

    def compute(self, state: State) -> Findings:
        """L0, density, dead and dense features: of the whole dictionary, by prefix, by the group a prefix adds."""
        tokens = state["tokens"].cpu().numpy()
        firings = state["firings"].cpu().numpy()
        total = int(tokens[0].sum())
        l0 = [l0_summary(row) for row in tokens]
        reason = self._too_few(total, l0[-1]["mean"])
        dead = [None if reason else float((firings[:end] == 0).mean()) for end in self.prefixes]

        sums = self._sums.finish(state)
        with np.errstate(invalid="ignore"):
            replicates = (sums["l0"] / sums["rows"][:, None]).cpu().numpy()
        fields = {
            "l0": l0[-1]["mean"],
            "l0_per_prefix": [summary["mean"] for summary in l0],
            "l0_interval_per_prefix": intervals(replicates[1:]),
            "dead_fraction": dead[-1],
            "dead_fraction_per_prefix": dead,
            "dense_fraction": float((firings > DENSE_ABOVE * total).mean()),
            "sparsity": {
                "l0": l0[-1],
                "l0_per_prefix": l0,
                "l0_histogram_per_prefix": [[int(count) for count in np.trim_zeros(row, "b")] for row in tokens],
                "dead_reason": reason,
                "dead_tokens": total,
                "density_log10_edges": list(DENSITY_EDGES),
                "density_by_group": self._by_group(firings, total),
            },
        }
        return Findings(fields, {"l0": replicates})

    def _too_few(self, total: int, mean_l0: float) -> str | None:
        expected = total * mean_l0 / self.prefixes[-1]
        if expected >= self.least_mean_firings:
            return None
        observed = f"the average feature fired {expected:.1f} times in {total:,} tokens"
        return f"{observed}: too few to call a silent one dead (at least {self.least_mean_firings:g} are asked for)"

    def _by_group(self, firings: Int[np.ndarray, " dict_size"], total: int) -> list[dict[str, Any]]:
        groups = zip((0, *self.prefixes[:-1]), self.prefixes, strict=True)
        return [{"first": start, "end": end} | density_summary(firings[start:end], total) for start, end in groups]


def l0_summary(tokens: Int[np.ndarray, " counts"]) -> dict[str, float]:
    """Mean and quantiles of L0, from the number of tokens with each L0; every quantile is a value that occurs."""
    cumulative = np.cumsum(tokens)
    total = int(tokens.sum())
    mean = float(np.arange(len(tokens)) @ tokens / total)
    # A share of all tokens that is whole but for rounding must not point to the next value.
    named = {"median": 0.5, "p5": 0.05, "p95": 0.95}
    return {"mean": mean} | {
        name: float(np.searchsorted(cumulative, share * total - 1e-9)) for name, share in named.items()
    }


def density_summary(firings: Int[np.ndarray, " features"], total: int) -> dict[str, Any]:
    """The histogram of log10 density, and the number of features that never fired."""
    fired = firings[firings > 0]
    clipped = np.clip(log10_density(fired, total), DENSITY_EDGES[0], DENSITY_EDGES[-1])
    histogram = np.histogram(clipped, bins=np.array(DENSITY_EDGES))[0]
    return {
        "features": len(firings),
        "silent": int((firings == 0).sum()),
        "dense": int((firings > DENSE_ABOVE * total).sum()),
        "histogram": [int(count) for count in histogram],
    }


def log10_density(firings: Int[np.ndarray, " features"], total: int) -> Float[np.ndarray, " features"]:
    """The density of the features that fired, in powers of ten."""
    return np.log10(firings / total)
