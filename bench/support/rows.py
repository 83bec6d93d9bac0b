"""Rows that a part of bench.gpu prints, a JSON object a line: what, value, unit, and what else it measured.

Standard library only: the peers' environments use it as well.
"""

import json
import os
from collections.abc import Callable
from typing import Any


class Rows:
    """Prints rows on the process's standard output; what libraries print goes to the error stream."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, what: str, value: float | str, unit: str = "", **more: Any) -> None:
        print(json.dumps({"what": what, "value": value, "unit": unit, **more}), file=self._out)

    def attempt(self, what: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure a row; where that fails, the row says why, and the rows after it are measured nevertheless."""
        try:
            found = measure()
        except Exception as error:
            self.say(what, "failed", error=f"{type(error).__name__}: {error}"[:400])
            return {}
        self.say(what, **found)
        return found
