"""What the features of a cluster fire on more than others do.

A token's weight in a cluster is the mean share of firings that its features have there, less that mean over all
features that fire: so the comma, on which half of a dictionary fires, names no cluster.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int

from evaluate.features.evidence import Evidence
from evaluate.features.tokens import NO_TOKEN

NAMED_TOKENS = 4
"""Tokens that a cluster is named by."""
_READ_TOKENS = 3
"""Tokens of each feature that count for its cluster."""


@dataclass(frozen=True)
class Cluster:
    """A cluster: its features, and the ids of the tokens of largest weight."""

    number: int
    features: Int[np.ndarray, " features"]
    tokens: list[int]

    @property
    def size(self) -> int:
        """How many features it has."""
        return len(self.features)


def cluster_list(evidence: Evidence) -> list[Cluster]:
    """All clusters, largest first."""
    number = evidence.arrays["cluster"]
    order = np.argsort(number, kind="stable")
    bounds = np.searchsorted(number[order], np.arange(int(number.max(initial=-1)) + 2))
    members = [order[start:end] for start, end in pairwise(bounds.tolist())]
    anywhere = _shares(evidence, np.flatnonzero(evidence.arrays["firings"] > 0))
    return [Cluster(index, own, _named(_shares(evidence, own), anywhere)) for index, own in enumerate(members)]


def _shares(evidence: Evidence, features: Int[np.ndarray, " features"]) -> dict[int, float]:
    """The mean share of firings of each token that is among the features' first."""
    tokens = evidence.arrays["on_token"][features, :_READ_TOKENS].ravel()
    known, index = np.unique(tokens, return_inverse=True)
    means = np.bincount(index, evidence.arrays["on_share"][features, :_READ_TOKENS].ravel()) / max(1, len(features))
    return {token: share for token, share in zip(known.tolist(), means.tolist(), strict=True) if token != NO_TOKEN}


def _named(own: dict[int, float], anywhere: dict[int, float]) -> list[int]:
    weight = {token: share - anywhere.get(token, 0.0) for token, share in own.items()}
    best = sorted(weight, key=lambda token: (-weight[token], token))[:NAMED_TOKENS]
    return [token for token in best if weight[token] > 0]
