"""Reads the subset of YAML that settings need, with the line of every value.

ruamel.yaml parses; only its tree of nodes is used, so the result has only dict, list, str, int, float, bool and None.
Numbers follow YAML 1.2 (``4e-4`` is a float, ``1e6`` the integer 1000000, ``010`` ten); only ``true`` and ``false`` are
booleans; a duplicate key, an alias, a tag or a document over 1 MB is refused.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from common.errors import UsageError

KeyPath = tuple[str | int, ...]

_LIMIT_BYTES = 1_000_000
"""No settings file of people is larger; the parser needs memory for every character."""
_DEEPEST = 20
"""Settings have two levels; a file of thousands would end in a RecursionError."""
_MOST_DIGITS = 40
"""No setting needs more than twenty; Python itself refuses integers of more than 4,300 digits."""
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | float | None] = {
    "": None, "null": None, "~": None, "true": True, "false": False, ".inf": float("inf"), "-.inf": float("-inf"),
    ".nan": float("nan"),
}  # fmt: skip
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp")}


@dataclass(frozen=True)
class YamlFile:
    """Plain data and, for the path of keys to each value, its line (counted from 1)."""

    name: str
    data: dict[str, Any]
    lines: dict[KeyPath, int]

    def location(self, path: KeyPath) -> str:
        """``file:line`` of the value at ``path``, or of the nearest section that contains it."""
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
        raise UsageError("The settings file is larger than 1 MB.", where=path)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UsageError("The settings file is not UTF-8 text.", where=f"{path}, byte {error.start}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> YamlFile:
    """Parse settings text; messages call it ``name``. Raises UsageError."""
    lines: dict[KeyPath, int] = {}
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        data = {} if node is None else _plain(node, (), lines, name)
    except MarkedYAMLError as error:
        problem = str(error.problem).split("\n")[0].rstrip(".")
        raise _refusal(name, error.problem_mark, f"This is not YAML: {problem}.") from None
    except (YAMLError, RecursionError) as error:
        raise UsageError(f"This is not YAML: {str(error).splitlines()[0]}.", where=name) from None
    if not isinstance(data, dict):
        raise UsageError("A settings file must have sections, such as 'train:' with its settings below.", where=name)
    return YamlFile(name=name, data=data, lines=lines)


def parse_scalar(text: str, *, name: str = "--set") -> Any:
    """The value that ``text`` means on a command line: a YAML scalar or a list such as ``[96, 288]``.

    Raises UsageError whose location is ``name``.
    """
    try:
        return parse_yaml(f"value: {text}", name).data["value"]
    except UsageError as error:
        raise UsageError(error.what, where=name, remedy=error.remedy) from None


def _plain(node: Node, path: KeyPath, lines: dict[KeyPath, int], name: str) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if node.anchor:
        raise _refusal(name, node.start_mark, "Anchors and aliases are not allowed in settings.")
    if len(path) > _DEEPEST:
        raise _refusal(name, node.start_mark, f"Settings are nested at most {_DEEPEST} levels.")
    if node.tag not in _TAGS:
        raise _refusal(name, node.start_mark, f"The tag '{node.tag}' is not allowed in settings.")
    if isinstance(node, MappingNode):
        return _mapping(node, path, lines, name)
    if isinstance(node, SequenceNode):
        return [_plain(item, (*path, index), lines, name) for index, item in enumerate(node.value)]
    assert isinstance(node, ScalarNode)
    return _scalar(node, name)


def _mapping(node: MappingNode, path: KeyPath, lines: dict[KeyPath, int], name: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, ScalarNode):
            raise _refusal(name, key_node.start_mark, "A key must be one word.")
        key = str(key_node.value)
        if key in data:
            raise _refusal(name, key_node.start_mark, f"'{key}' is given twice.")
        lines[(*path, key)] = key_node.start_mark.line + 1
        data[key] = _plain(value_node, (*path, key), lines, name)
    return data


def _scalar(node: ScalarNode, name: str) -> str | int | float | bool | None:
    text = str(node.value)
    if getattr(node, "style", None) is not None:  # quoted
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        if len(text) > _MOST_DIGITS:
            raise _refusal(name, node.start_mark, f"A number must have at most {_MOST_DIGITS} digits, not {len(text)}.")
        return int(text)
    if _FLOAT.fullmatch(text):
        value = float(text)
        return int(value) if "." not in text and value.is_integer() else value
    return text


def _refusal(name: str, mark: StringMark | None, what: str) -> UsageError:
    return UsageError(what, where=f"{name}:{mark.line + 1}" if mark else name)


def write_yaml(data: dict[str, Any]) -> str:
    """Settings as YAML text, in the given order."""
    writer = YAML(typ="safe", pure=True)
    writer.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    writer.default_flow_style = False
    writer.width = 100
    writer.allow_unicode = False  # else it would write U+0085 as it is, and read it back as a space
    stream = io.StringIO()
    writer.dump(data, stream)
    return stream.getvalue().rstrip()
