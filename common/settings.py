"""The base of all settings classes: frozen and strict; it refuses unknown keys and values that nothing can use."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, field_validator

_LARGEST = 2**63 - 1
"""The largest int64; a larger seed or count would fail inside torch."""
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class Settings(BaseModel):
    """A section of pipeline.yaml. Only its fields have defaults; no other code in the project has."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_unusable(cls, value: Any) -> Any:
        refuse_unusable(value)
        return value


def refuse_unusable(value: Any) -> None:
    """Raise ValueError for an integer beyond 64 bits or text with a NUL, in lists and mappings too."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError("a number must be smaller than 2^63")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("text must not contain the character NUL, which no path can have")
    if isinstance(value, dict):
        for inner in value.values():
            refuse_unusable(inner)
    if isinstance(value, list | tuple):
        for inner in value:
            refuse_unusable(inner)


def expand_path(text: str) -> str:
    """``text`` with a leading ``~``, ``$NAME`` and ``${NAME}`` replaced, as a shell would.

    Raises ValueError for a variable that is not set: else its name would become the name of a folder.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in os.environ:
            raise ValueError(f"the environment variable {name} is not set")
        return os.environ[name]

    expanded = _VARIABLE.sub(value, text)
    if not expanded.startswith("~"):
        return expanded
    try:
        return str(Path(expanded).expanduser())
    except RuntimeError as error:  # a user that does not exist on this machine
        raise ValueError(str(error)) from None


PathText = Annotated[str, AfterValidator(expand_path)]
"""A path, a name or a URL in which ``~`` and environment variables are replaced."""
