"""Clusters of features: the communities of their graph that Louvain's method finds (networkx).

Blondel et al., 2008: features are moved between communities while modularity rises, communities become nodes, and so
on. The draw of the order is seeded, so the same evidence gives the same clusters.
"""

import networkx
import numpy as np
from jaxtyping import Bool, Int

from evaluate.features.graph.edges import Edges

NO_CLUSTER = -1
"""Of a feature without an edge."""
_RESOLUTION = 4.0
"""Of modularity. At 1 the demo's 1,536 features fell into 11 clusters, too large to say anything of; at 4 into 80."""
_SMALLEST = 3
"""Two features that have only each other are a pair of relatives, which their pages show; no cluster."""


def clusters(edges: Edges, fires: Bool[np.ndarray, " features"], *, seed: int) -> Int[np.ndarray, " features"]:
    """The cluster of every feature, numbered from the largest; -1 for features that never fire or belong nowhere."""
    number = np.full(len(fires), NO_CLUSTER, dtype=np.int64)
    kept = fires[edges.first] & fires[edges.second]
    graph = networkx.Graph()
    graph.add_weighted_edges_from(
        zip(edges.first[kept].tolist(), edges.second[kept].tolist(), edges.weight[kept].tolist(), strict=True)
    )
    if not len(graph):
        return number
    communities = networkx.community.louvain_communities(graph, resolution=_RESOLUTION, seed=seed)
    members = sorted(
        (sorted(features) for features in communities if len(features) >= _SMALLEST),
        key=lambda features: (-len(features), features),
    )
    for index, features in enumerate(members):
        number[features] = index
    return number
