"""When a wheel is built, moves every package beside ``nestcoder`` under it.

In a checkout ``cache``, ``harvest``, ``train``, ``evaluate`` and the others are plain top-level packages. Installed
under those names they would overwrite other distributions' files (Hugging Face has an ``evaluate``). So in a wheel they
are ``nestcoder.cache`` and so on, and the imports of them, which all stand at the start of a line, are rewritten.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = ("common", "cache", "transcoder", "harvest", "train", "evaluate", "finetune")
_IMPORT = re.compile(rf"^(\s*)from ({'|'.join(PACKAGES)})(?=[. ])", re.MULTILINE)


class RenamePackages(BuildHookInterface[Any]):
    """The hook that hatchling calls."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put rewritten copies of every package file into the wheel; an editable install is left alone."""
        if version != "standard":
            return
        copies = Path(tempfile.mkdtemp())
        for package in ("nestcoder", *PACKAGES):
            for path in Path(self.root, package).rglob("*"):
                if path.suffix in {".py", ".md", ".html", ".css", ".js"}:
                    inside = path.relative_to(self.root)
                    inside = inside if package == "nestcoder" else "nestcoder" / inside
                    copy = copies / inside
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_text(_IMPORT.sub(r"\1from nestcoder.\2", path.read_text()))
                    build_data["force_include"][str(copy)] = inside.as_posix()
