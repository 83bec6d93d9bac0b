"""The base of every settings class: frozen, strict, and refusing keys that it does not know, infinity and NaN."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A section of pipeline.yaml. Fields state their defaults; nothing else in the project does."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
