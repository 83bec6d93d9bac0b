"""Plain files: JSON lines with everything that is known of a feature, and a parquet table with a row a feature."""

import gzip
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any

import pyarrow
from pyarrow import parquet

from evaluate.export.files import Files, as_line
from evaluate.features.evidence import Evidence
from evaluate.features.text.page import feature_page

_GROUP = 512
"""Features a row group of the table."""

_TOKEN = pyarrow.struct(
    {"token": "string", "count": "int64", "share": "float64", "lift": "float64", "recall": "float64"}
)
_LOGIT = pyarrow.struct({"token": "string", "logit": "float64"})
_CONTEXT = pyarrow.struct(
    {
        "kind": pyarrow.string(),
        "document": pyarrow.int64(),
        "row": pyarrow.int64(),
        "at": pyarrow.int64(),
        "tokens": pyarrow.list_(pyarrow.string()),
        "values": pyarrow.list_(pyarrow.float64()),
    }
)
_SCALARS = {"id": "string", "feature": "int64", "prefix": "int64", "cluster": "int64", "label": "string"} | {
    "firings": "int64",
    **dict.fromkeys(("density", "largest", "mean", "fvu_lost", "fvu_lost_prefix"), "float64"),
}
SCHEMA = pyarrow.schema(
    [
        *_SCALARS.items(),
        ("histogram", pyarrow.list_(pyarrow.int64())),
        *((f"tokens_{position}", pyarrow.list_(_TOKEN)) for position in ("before", "on", "after")),
        *((direction, pyarrow.list_(_LOGIT)) for direction in ("raised", "lowered")),
        *((kind, pyarrow.list_(pyarrow.int64())) for kind in ("decoder", "encoder", "near", "coarser", "finer")),
        ("contexts", pyarrow.list_(_CONTEXT)),
    ]
)


def jsonl_files(layers: Iterable[Evidence]) -> Files:
    """``layer08.jsonl.gz``: a line a feature, what ``features show --json`` says of it."""
    for evidence in layers:
        yield f"layer{evidence.layer:02d}.jsonl.gz", _lines(evidence)


def _lines(evidence: Evidence) -> Iterable[bytes]:
    """Pieces of a gzip file; each is a whole member, which every reader joins."""
    for start in range(0, evidence.dict_size, _GROUP):
        features = range(start, min(start + _GROUP, evidence.dict_size))
        text = b"".join(as_line(feature_page(evidence, feature)) for feature in features)
        yield gzip.compress(text, mtime=0)


def parquet_files(layers: Iterable[Evidence]) -> Files:
    """``layer08.parquet``: a row a feature, lists and contexts nested in it."""
    for evidence in layers:
        yield f"layer{evidence.layer:02d}.parquet", (table_bytes(evidence, range(evidence.dict_size)),)


def table_bytes(evidence: Evidence, features: Sequence[int]) -> bytes:
    """The parquet file of some features."""
    made = BytesIO()
    with parquet.ParquetWriter(made, SCHEMA, compression="zstd") as writer:
        for start in range(0, len(features), _GROUP):
            rows = [_row(feature_page(evidence, feature)) for feature in features[start : start + _GROUP]]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA))
    return made.getvalue()


def _row(page: dict[str, Any]) -> dict[str, Any]:
    logits = page["logits"] or {}
    return {
        **{name: page[name] for name in (*_SCALARS, "histogram")},
        **{f"tokens_{position}": found for position, found in page["tokens"].items()},
        **{direction: logits.get(direction) for direction in ("raised", "lowered")},
        **{kind: [entry["feature"] for entry in found] for kind, found in page["relatives"].items()},
        "contexts": [{"kind": kind} | entry for kind, found in page["contexts"].items() for entry in found],
    }
