"""JSON lines and parquet contain what the pages say."""

import gzip
import json
from io import BytesIO

from pyarrow import parquet

from evaluate.export.plain import jsonl_files, parquet_files
from evaluate.features.text.page import feature_page


def test_lines_are_the_pages(small) -> None:
    ((name, pieces),) = jsonl_files([small])
    assert name == "layer08.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(b"".join(pieces)).splitlines()]
    assert lines == [json.loads(json.dumps(feature_page(small, feature))) for feature in range(3)]


def test_rows_are_the_pages(toy) -> None:
    ((name, pieces),) = parquet_files([toy.evidence])
    assert name == "layer03.parquet"
    rows = parquet.read_table(BytesIO(b"".join(pieces))).to_pylist()
    assert len(rows) == 64
    for feature in (0, 40, 63):
        page = feature_page(toy.evidence, feature)
        row = rows[feature]
        assert {name: row[name] for name in ("id", "prefix", "label", "density", "cluster", "histogram")} == {
            name: page[name] for name in ("id", "prefix", "label", "density", "cluster", "histogram")
        }
        assert row["tokens_on"] == page["tokens"]["on"]
        assert row["decoder"] == [entry["feature"] for entry in page["relatives"]["decoder"]]
        strongest = [entry for entry in row["contexts"] if entry["kind"] == "strongest"]
        assert [entry["values"] for entry in strongest] == [entry["values"] for entry in page["contexts"]["strongest"]]
        assert row["raised"] is None
