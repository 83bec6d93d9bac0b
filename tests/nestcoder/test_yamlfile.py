"""The settings language: what it reads, what it refuses, and that every refusal names file and line."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from nestcoder.yamlfile import parse_scalar, parse_yaml, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4e-4", 4e-4), ("1e6", 10**6), ("010", 10), ("12:30:00", "12:30:00"), ("true", True), ("false", False),
        ("yes", "yes"), ("off", "off"), ("null", None), ("~", None), ("'5'", "5"),
        ("-3", -3), (".5", 0.5), ("1.0", 1.0),
        ("[96, 288]", [96, 288]), ("gpt2", "gpt2"), ("2024-01-01", "2024-01-01"), ("0x10", "0x10"), ("1_000", "1_000"),
    ],
)  # fmt: skip
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    read = parse_scalar(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "twice"),
        ("a: &x 1\nb: *x\n", 1, "aliases"),
        ("a: 1\nb: !!python/object:os.system x\n", 2, "tag"),
        ("a: 1\n  b: 2\n", 2, "YAML"),
        ("a: [1, 2\n", 2, "YAML"),
        ("? [1, 2]\n: 3\n", 1, "key"),
        ("a: !secret x\n", 1, "tag"),
    ],
)
def test_refusals_name_the_line(text: str, line: int, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_yaml(text, "p.yaml")
    assert caught.value.where == f"p.yaml:{line}"
    assert word in caught.value.what


def test_lines_are_known_for_every_value() -> None:
    file = parse_yaml("model: gpt2\n\ntrain:\n  lr: 1e-3\n  prefixes: [1,\n    2]\n", "p.yaml")
    assert file.location(("train", "lr")) == "p.yaml:4"
    assert file.location(("train", "prefixes", 1)) == "p.yaml:6"
    assert file.location(("train", "missing")) == "p.yaml:3"


def test_hostile_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    deep, large, binary = tmp_path / "deep", tmp_path / "large", tmp_path / "binary"
    deep.write_text("a: " + "[" * 5000)
    large.write_bytes(b"#" * ((1 << 20) + 1))
    binary.write_bytes(b"a: \xff\xfe")
    for path in (deep, large, binary, tmp_path / "absent", tmp_path):
        with pytest.raises(UsageError):
            read_yaml(path)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(UsageError):
        assert isinstance(parse_yaml(text, "p.yaml").data, dict)


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcdef", min_size=1), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=5), _values, max_size=4))
def test_what_is_written_is_read_back(data: dict[str, object]) -> None:
    assert parse_yaml(write_yaml(data), "p.yaml").data == data
