"""Settings of the evaluation stage. None of them changes what a metric means."""

from pydantic import Field, PositiveInt

from common.settings import Settings


class EvaluateSettings(Settings):
    """The ``evaluate:`` section of pipeline.yaml."""

    batch_rows: PositiveInt | None = None
    """Rows encoded at a time; found from free memory when not given."""
    bootstrap: int = Field(default=1000, ge=0, le=100_000)
    """Resamplings of the documents behind every 95 % interval; 0 for none."""
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    """Of the resamplings."""
    dead_mean_firings: float = Field(default=50.0, gt=0)
    """How often the average feature must have fired before a silent one is called dead."""
    samples_per_group: int = Field(default=4, ge=0, le=10_000)
    """Features of each prefix group whose top contexts are shown."""
    sample_contexts: int = Field(default=5, ge=1, le=1_000)
    """Top contexts of each shown feature, of different documents."""
    lm_tokens: PositiveInt = 100_000
    """Held-out tokens that ``--lm`` runs through the language model."""
    features: bool = False
    """Take the evidence of every feature after the report (``nestcoder features``); ``--lm`` is as there."""
