"""Reads the small part of YAML that settings need, and knows on which line every value stands.

Numbers follow YAML 1.2 (``4e-4`` is a float, ``1e6`` the integer 1000000, ``010`` ten); only ``true`` and ``false`` are
booleans; a duplicate key, an alias, a tag or a document over 1 MiB is refused. Nothing is ever constructed but
dict, list, str, int, float, bool and None.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import UsageError

KeyPath = tuple[str | int, ...]

_LIMIT_BYTES = 1 << 20
_DEEPEST = 20
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | float | None] = {
    "": None, "null": None, "~": None, "true": True, "false": False, ".inf": float("inf"), "-.inf": float("-inf"),
}  # fmt: skip


@dataclass(frozen=True)
class YamlFile:
    """Plain data and, for the path of keys to each value, its line (counted from 1)."""

    name: str
    data: dict[str, Any]
    lines: dict[KeyPath, int]

    def where(self, path: KeyPath) -> str:
        """``file:line`` of the value at ``path``, or of the nearest value that encloses it."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines.get(path, 1)}"


def read_yaml(path: Path) -> YamlFile:
    """Read a settings file. Raises UsageError with file and line for everything that is not plain settings."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"The settings file cannot be read: {error.strerror}.", where=path) from None
    if len(content) > _LIMIT_BYTES:
        raise UsageError("The settings file is larger than 1 MiB.", where=path)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UsageError("The settings file is not UTF-8 text.", where=f"{path}, byte {error.start}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> YamlFile:
    """Parse settings text; ``name`` is what messages call it. Raises UsageError."""
    lines: dict[KeyPath, int] = {}
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise _refusal(name, event.start_mark, "Anchors and aliases are not part of the settings language.")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _refusal(name, error.problem_mark, f"This is not YAML: {error.problem}.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"This is not YAML: {str(error).splitlines()[0]}.", where=name) from None
    data = {} if node is None else _plain(node, (), lines, name)
    if not isinstance(data, dict):
        raise UsageError("A settings file holds sections, one a line: 'train:' and so on.", where=name)
    return YamlFile(name=name, data=data, lines=lines)


def parse_scalar(text: str) -> Any:
    """The value that ``text`` means on a command line: a YAML scalar or a list such as ``[96, 288]``."""
    return parse_yaml(f"value: {text}", f"--set ... {text}").data["value"]


def _plain(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if len(path) > _DEEPEST:
        raise _refusal(name, node.start_mark, "Settings are nested at most a few levels.")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines, name)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), lines, name) for index, item in enumerate(node.value)]
    return _scalar(node, name)


def _mapping(node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int], name: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _refusal(name, key_node.start_mark, "A key is one word.")
        key = str(key_node.value)
        if key in data:
            raise _refusal(name, key_node.start_mark, f"'{key}' is given twice.")
        lines[(*path, key)] = key_node.start_mark.line + 1
        data[key] = _plain(value_node, (*path, key), lines, name)
    return data


def _scalar(node: yaml.Node, name: str) -> str | int | float | bool | None:
    text, plain = str(node.value), getattr(node, "style", None) is None
    if node.tag.startswith("tag:yaml.org,2002:python") or not node.tag.startswith("tag:yaml.org,2002:"):
        raise _refusal(name, node.start_mark, f"The tag '{node.tag}' is not part of the settings language.")
    if not plain:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        value = float(text)
        return int(value) if "." not in text and value.is_integer() else value
    return text


def _refusal(name: str, mark: yaml.Mark | None, what: str) -> UsageError:
    return UsageError(what, where=f"{name}:{mark.line + 1}" if mark else name)


def write_yaml(data: dict[str, Any]) -> str:
    """Settings as YAML text, in the order given."""
    return str(yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100)).rstrip()
