"""Everything about every feature, from one replay of the rows of a cache: no language model, no network.

The rows are encoded once, in blocks (``evaluate.features.code``); what follows reads their sparse code alone, which is
in memory: 20 bytes an entry, so 20 x rows x active features. Arrays of the result:

    firings, mean, largest, fvu_lost, fvu_lost_prefix             one number a feature
    histogram, percentiles, intervals, positions                  one row a feature; ``positions_base``: of all rows
    context_<kind>                                                rows shown, by kind (``evaluate.features.contexts``)
    on_*, before_*, after_*                                       tokens (``evaluate.features.tokens``)
    decoder_*, encoder_*                                          nearest by cosine (``evaluate.features.relations``)
    near_*, coarser_*                                             features that fire on the same rows
    cluster, map                                                  of the graph of features (``evaluate.features.graph``)
    raised_*, lowered_*, logit_histogram                          logits, where there is an unembedding
    neuron_*                                                      neurons that write alike, where the cache has the MLP
    formed_*                                                      at steps of the training, where it wrote samples
    written_share                                                 of the decoder, by layer, where it writes to several
    text_*                                                        token, document and position of the rows
    entry_*                                                       values of each feature in its contexts' windows
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cache.reader import CacheReader
from cache.storage.unembedding import Unembedding
from common.progress import Progress
from evaluate.features.code import Code, CodeBlock, Errors, counted, encode_blocks, join
from evaluate.features.config import FeatureSettings
from evaluate.features.contexts import NO_ROW, Text, choose_contexts, text_of
from evaluate.features.effects.logits import logit_effects
from evaluate.features.effects.neurons import aligned_neurons
from evaluate.features.evidence import Evidence
from evaluate.features.firings import HISTOGRAM_BINS, PERCENTILES, Firings, by_feature
from evaluate.features.graph.clusters import clusters
from evaluate.features.graph.edges import edges_of
from evaluate.features.graph.layout import layout
from evaluate.features.history import Formation
from evaluate.features.relations import Neighbours, cosines, nearest_by_cosine, shared_rows
from evaluate.features.text.words import speller_of
from evaluate.features.tokens import NO_TOKEN, TokenTable, positions, token_table
from transcoder.transcoder import Transcoder

_OFFSETS = {"before": -1, "on": 0, "after": 1}


@dataclass(frozen=True)
class Written:
    """Of features that write to several layers' targets side by side: all that they add to the residual ``stream``,
    what they write to their ``own`` layer, and to which ``layers`` what ``share`` of the squared norm goes."""

    stream: Float[Tensor, "features width"]
    own: Float[Tensor, "features width"]
    layers: tuple[int, ...]
    share: Float[np.ndarray, "features layers"]


def block_starts(reader: CacheReader, settings: FeatureSettings) -> list[int]:
    """Where the blocks of rows begin. Parts of a run are any division of this list."""
    return list(range(0, rows_taken(reader, settings), settings.block_rows))


def encode_part(
    reader: CacheReader,
    transcoder: Transcoder,
    settings: FeatureSettings,
    starts: list[int],
    *,
    progress: Progress,
    errors: Errors | None = None,
) -> list[CodeBlock]:
    """The blocks that begin at ``starts``; ``errors`` as in ``encode_blocks``."""
    return encode_blocks(
        reader.split(settings.split),
        transcoder,
        starts,
        rows=rows_taken(reader, settings),
        block_rows=settings.block_rows,
        special_ids=tuple(reader.special_ids),
        progress=progress,
        errors=errors,
    )


def evidence_of(
    blocks: list[CodeBlock],
    reader: CacheReader,
    transcoder: Transcoder,
    settings: FeatureSettings,
    *,
    unembedding: Unembedding | None = None,
    formation: Formation | None = None,
    written: Written | None = None,
) -> Evidence:
    """The evidence in all blocks of the rows, in whatever order and from however many parts they come.

    ``written`` says where the features write, if that is not one layer's target.
    """
    code = join(blocks)
    firings = by_feature(code, transcoder.dict_size)
    text = _text(reader, settings)
    contexts = choose_contexts(firings, text, settings)
    arrays = {
        **_counts(code, firings, text, reader, settings),
        **{f"context_{kind}": rows for kind, rows in contexts.items()},
        **_tokens(firings, text, settings),
        **_relations(code, firings, transcoder, settings),
        "text_token": text.tokens,
        "text_document": text.document,
        "text_position": text.position,
        **_entries(firings, text, contexts, settings),
    }
    arrays |= _graph(arrays, transcoder, settings)
    # An autoencoder of the source writes where no neuron does.
    if reader.has_mlp and transcoder.column != "source":
        arrays |= aligned_neurons(written.own if written else transcoder.W_dec, reader.mlp, settings.neurons)
    shown = [text.tokens.astype(np.int64)]
    if unembedding:
        effects = logit_effects(written.stream if written else transcoder.W_dec, unembedding, settings.logits)
        arrays |= effects
        shown += [effects["raised_token"].ravel(), effects["lowered_token"].ravel()]
    if formation:
        arrays |= formation.arrays
        shown.append(formation.arrays["formed_token"].ravel())
    if written:
        arrays["written_share"] = written.share
    spell = speller_of(reader.arrays)
    formed = formation and {"rows": formation.rows, "threshold": formation.threshold}
    return Evidence(
        head=_head(code, reader, transcoder, settings, text=text, unembedding=unembedding)
        | {"formed": formed, "written": list(written.layers) if written else None},
        arrays=arrays,
        words={token: spell(token) for token in np.unique(np.concatenate(shown)).tolist() if token != NO_TOKEN},
    )


def rows_taken(reader: CacheReader, settings: FeatureSettings) -> int:
    """How many rows the evidence is taken from: the first ones of the split."""
    return min(settings.rows, len(reader.split(settings.split)))


def _text(reader: CacheReader, settings: FeatureSettings) -> Text:
    view = reader.split(settings.split)
    rows = rows_taken(reader, settings)
    tokens = view.tokens[:rows]
    return text_of(tokens, view.document[:rows], view.position[:rows], counted(tokens, tuple(reader.special_ids)))


def _counts(
    code: Code, firings: Firings, text: Text, reader: CacheReader, settings: FeatureSettings
) -> dict[str, np.ndarray]:
    by_position, base = positions(firings, text, _context(reader, text))
    return {
        "firings": firings.counts,
        "largest": firings.largest,
        "mean": firings.sums(firings.value) / np.maximum(1, firings.counts),
        "fvu_lost": firings.sums(firings.lost) / code.total_square,
        "fvu_lost_prefix": firings.sums(firings.lost_prefix) / code.total_square,
        "histogram": firings.tally(firings.bins(HISTOGRAM_BINS), HISTOGRAM_BINS),
        "percentiles": firings.percentiles(PERCENTILES),
        "intervals": firings.tally(firings.bins(settings.intervals), settings.intervals),
        "positions": by_position,
        "positions_base": base,
    }


def _context(reader: CacheReader, text: Text) -> int:
    """Tokens of a context, as the harvest set them, or the longest that occurs."""
    return int(reader.identity.get("context") or text.position.max(initial=0) + 1)


def _tokens(firings: Firings, text: Text, settings: FeatureSettings) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, offset in _OFFSETS.items():
        table = token_table(firings, text, offset=offset, count=settings.tokens)
        arrays |= _columns(name, table)
    return arrays


def _columns(prefix: str, table: TokenTable | Neighbours) -> dict[str, np.ndarray]:
    return {f"{prefix}_{name}": column for name, column in vars(table).items()}


def _relations(
    code: Code, firings: Firings, transcoder: Transcoder, settings: FeatureSettings
) -> dict[str, np.ndarray]:
    encoder = transcoder.W_enc
    shared = shared_rows(code, firings, transcoder.prefixes, settings.relatives)
    coarser = shared.coarser.feature
    return {
        **_columns("decoder", nearest_by_cosine(transcoder.W_dec, settings.relatives)),
        **_columns("encoder", nearest_by_cosine(encoder, settings.relatives)),
        **_columns("near", shared.near),
        "near_count": shared.near_count,
        **_columns("coarser", shared.coarser),
        "coarser_count": shared.coarser_count,
        "coarser_decoder_cosine": cosines(transcoder.W_dec, coarser),
        "coarser_encoder_cosine": cosines(encoder, coarser),
    }


def _graph(
    arrays: Mapping[str, np.ndarray], transcoder: Transcoder, settings: FeatureSettings
) -> dict[str, np.ndarray]:
    edges = edges_of(arrays)
    return {
        "cluster": clusters(edges, arrays["firings"] > 0, seed=settings.seed),
        "map": layout(edges, transcoder.W_dec.cpu().float().numpy(), seed=settings.seed),
    }


def _entries(
    firings: Firings, text: Text, contexts: Mapping[str, np.ndarray], settings: FeatureSettings
) -> dict[str, np.ndarray]:
    """Of every feature's firings those in the window of one of its contexts."""
    kept = np.zeros(len(firings.row) + 1, dtype=np.int64)
    for rows in contexts.values():
        feature, column = np.nonzero(rows != NO_ROW)
        first, end = text.windows(rows[feature, column], settings.context_tokens)
        bounds = firings.fires_within(feature, first, end)
        # A window covers a slice of entries: +1 where it begins, -1 where it ends, and a running sum counts covers.
        np.add.at(kept, bounds[:, 0], 1)
        np.add.at(kept, bounds[:, 1], -1)
    inside: Bool[np.ndarray, " entries"] = np.cumsum(kept)[:-1] > 0
    counts = np.bincount(firings.feature[inside], minlength=firings.dict_size)
    offsets: Int[np.ndarray, " features_plus_one"] = np.concatenate([[0], np.cumsum(counts)])
    return {"entry_offsets": offsets, "entry_row": firings.row[inside], "entry_value": firings.value[inside]}


def _head(
    code: Code,
    reader: CacheReader,
    transcoder: Transcoder,
    settings: FeatureSettings,
    *,
    text: Text,
    unembedding: Unembedding | None,
) -> dict[str, Any]:
    known = ("model", "model_revision", "layer", "source_site", "target_site", "dataset", "context", "provenance")
    return {
        "transcoder": {
            "name": transcoder.name,
            "dict_size": transcoder.dict_size,
            "prefixes": list(transcoder.prefixes),
            "top_k": transcoder.rule.row_limit,
            "source_view": transcoder.source_view,
            "tokens_trained": transcoder.tokens_trained,
            "weights": transcoder.config.get("weights"),
        },
        "cache": {"fingerprint": reader.fingerprint} | {key: reader.identity.get(key) for key in known},
        "settings": settings.model_dump(mode="json"),
        "special_ids": sorted(int(token) for token in reader.special_ids),
        "rows": len(text.tokens),
        "tokens": code.tokens,
        "documents": len(np.unique(text.document[text.counted])),
        "fvu_per_prefix": [float(square / code.total_square) for square in code.error_square],
        "l0": len(code.row) / code.tokens,
        "logits": unembedding and {"from": unembedding.origin},
    }
