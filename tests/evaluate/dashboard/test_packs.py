"""Packs contain what the evidence says, in files of one call each."""

import base64
import gzip
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evaluate.dashboard.packs import PACK_FEATURES, index, pack, packs, script, significant
from evaluate.features.text.page import feature_page, rounded


def _unpacked(data: bytes) -> tuple[str, Any]:
    match = re.fullmatch(r'nestcoder\.receive\("([a-z0-9-]+)", "([A-Za-z0-9+/=]+)"\);\n', data.decode())
    assert match
    return match[1], json.loads(gzip.decompress(base64.b64decode(match[2])))


def test_a_script_is_one_call_without_characters_that_a_browser_interprets() -> None:
    data = script("index", {"text": '</script><img src=x onerror="alert(1)">\u2028'})
    assert b"<" not in data
    name, value = _unpacked(data)
    assert name == "index"
    assert value["text"].startswith("</script>")
    assert data == script("index", value)


def test_the_index_has_a_caution_about_unproved_rows(toy) -> None:
    assert index(toy.evidence)["head"]["cautions"] == []
    cache = toy.evidence.head["cache"] | {"provenance": "unproved"}
    found = index(replace(toy.evidence, head={**toy.evidence.head, "cache": cache}))["head"]["cautions"]
    assert ["Provenance unproved" in text for text in found] == [True]


def test_the_index_has_an_entry_a_feature(toy) -> None:
    found = index(toy.evidence)
    for column in ("labels", "firings", "largest", "lost", "parent", "tokens", "cluster"):
        assert len(found[column]) == toy.trained.dict_size
    assert found["firings"] == toy.evidence.arrays["firings"].tolist()
    assert found["cluster"] == toy.evidence.arrays["cluster"].tolist()
    assert [size for size, _ in found["clusters"]] == np.bincount(toy.evidence.arrays["cluster"] + 1)[1:].tolist()
    assert np.array(found["map"]).reshape(-1, 2) / 4095 == pytest.approx(toy.evidence.arrays["map"], abs=2e-4)
    first = found["tokens"][30][0]
    assert found["vocabulary"][first] == feature_page(toy.evidence, 30)["tokens"]["on"][0]["token"]
    assert found["head"]["fvu_per_prefix"] == toy.evidence.head["fvu_per_prefix"]


def test_a_pack_says_what_the_pages_say(toy) -> None:
    found = json.loads(json.dumps(pack(toy.evidence, range(toy.trained.dict_size))))
    vocabulary = found["vocabulary"]
    for feature in (0, 21, 63):
        page, packed = feature_page(toy.evidence, feature), found["pages"][feature]
        assert packed["histogram"] == page["histogram"]
        assert packed["intervals"] == [interval["firings"] for interval in page["intervals"]]
        for kind, contexts in page["contexts"].items():
            for stated, (document, row, pos, tokens, pairs) in zip(contexts, packed["contexts"][kind], strict=True):
                assert (document, row, pos) == (stated["document"], stated["row"], stated["at"])
                assert [vocabulary[token] for token in tokens] == stated["tokens"]
                values = np.zeros(len(tokens))
                values[pairs[::2]] = pairs[1::2]
                assert values.tolist() == pytest.approx(stated["values"])
        for where_counted, rows in page["tokens"].items():
            for stated, (token, count, share, lift, recall) in zip(rows, packed["tokens"][where_counted], strict=True):
                assert [vocabulary[token], count, share, lift, recall] == list(stated.values())
        for kind, rows in page["relatives"].items():
            assert packed["relatives"][kind] == [list(row.values()) for row in rows[:40]]


def test_packs_contain_every_feature_once(toy) -> None:
    files = list(packs(toy.evidence))
    assert [name for name, _ in files] == [f"pack-{number:05d}" for number in range(len(files))]
    pages = [len(_unpacked(data)[1]["pages"]) for _, data in files]
    assert sum(pages) == toy.trained.dict_size
    assert max(pages) <= PACK_FEATURES


def test_numbers_have_the_four_digits_of_a_page() -> None:
    values = np.geomspace(1e-6, 9e4, 500).astype(np.float32)
    assert significant(values).tolist() == [rounded(value) for value in values]
