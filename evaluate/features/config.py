"""Settings of feature evidence. None of them changes what a number means."""

from typing import Literal

from pydantic import Field, PositiveInt

from common.settings import Settings


class FeatureSettings(Settings):
    """The ``features:`` section of pipeline.yaml."""

    split: Literal["held_out", "train"] = "held_out"
    """Rows that the evidence is taken from."""
    rows: PositiveInt = 500_000
    """Rows used at most, from the beginning of the split."""
    block_rows: PositiveInt = 2048
    """Rows encoded at a time. Blocks begin at multiples of it, so that parts of a run are whole blocks."""
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    """Of the samples."""
    context_tokens: int = Field(default=20, ge=0)
    """Tokens shown on either side of the one that a context is about."""
    top_contexts: int = Field(default=20, ge=1)
    """Strongest contexts of a feature, each of another document."""
    intervals: int = Field(default=5, ge=1)
    """Intervals of equal width between 0 and a feature's largest value."""
    interval_contexts: int = Field(default=5, ge=0)
    """Contexts sampled from each interval."""
    uniform_contexts: int = Field(default=10, ge=0)
    """Contexts sampled from all rows on which a feature fires."""
    silent_contexts: int = Field(default=5, ge=0)
    """Contexts in which a feature does not fire, from documents in which it does."""
    tokens: int = Field(default=10, ge=1)
    """Tokens listed: those that a feature fires on, and those before and after."""
    relatives: int = Field(default=10, ge=1)
    """Features listed as near, as firing on the same rows, or as coarser."""
    logits: int = Field(default=10, ge=1)
    """Tokens listed whose logits a feature raises or lowers most."""
    neurons: int = Field(default=10, ge=1)
    """Neurons of the MLP listed that write as a feature does, where the cache stores the MLP."""
    checked_contexts: int = Field(default=64, ge=0)
    """Contexts that are encoded anew and compared with the evidence."""
