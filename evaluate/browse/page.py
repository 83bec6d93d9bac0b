"""The page of a runs folder: one file of HTML that holds its style, its scripts and its data, and opens from disk."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import disk
from evaluate.browse.runs import runs_below

PAGE_FILE = "index.html"
_SELF = "'self'"
_NOTHING = "'none'"
_STATIC = Path(__file__).with_name("static")
_SHARED = Path(__file__).parents[1] / "dashboard" / "static"
_SCRIPTS = (_SHARED / "draw.js", *(_STATIC / f"{name}.js" for name in ("plots", "table", "details", "runs")))


def write_page(runs: Path) -> Path:
    """Write the page of all that is in ``runs`` into it, and return its path. Links in it lead to files beside it."""
    path = runs / PAGE_FILE
    disk.write_file(path, page(runs_below(runs)).encode())
    return path


def page(found: Mapping[str, Any], *, live: bool = False) -> str:
    """The page that shows ``found``; ``live`` lets it ask the server that it came from for newer data."""
    style = "\n".join(path.read_text(encoding="utf-8") for path in (_SHARED / "style.css", _STATIC / "runs.css"))
    script = "window.nestcoder = {};\n" + "\n".join(path.read_text(encoding="utf-8") for path in _SCRIPTS)
    # Nothing but these two texts may run or style: a name or a summary that looks like HTML can do nothing.
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        f"connect-src {_SELF if live else _NOTHING}; base-uri 'none'; form-action 'none'"
    )
    filled = {"policy": policy, "style": style, "script": script, "data": as_data(found)}
    template = (_STATIC / "runs.html").read_text(encoding="utf-8")
    # In one pass: what is filled in is not looked at again.
    return re.sub(r"\{(policy|style|script|data)\}", lambda match: filled[match[1]], template)


def as_data(found: Mapping[str, Any]) -> str:
    """JSON that may stand inside a script element: no character of it can end that element."""
    text = json.dumps(found, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _hash(text: str) -> str:
    """How a content security policy names a text that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
