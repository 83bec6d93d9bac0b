"""Settings of fine-tuning."""

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from common.settings import Settings


class FinetuneSettings(Settings):
    """The ``finetune:`` section of pipeline.yaml."""

    tokens: PositiveInt = 5_000_000
    """Tokens to train on, special ones included; the cache's training tokens, again and again where it has fewer."""
    batch_contexts: PositiveInt = 8
    """Contexts a step."""
    kl_weight: NonNegativeFloat = 1.0
    """How large the gradient of the KL divergence is beside that of the FVU; 1 balances them, 0 leaves it out."""
    lr: PositiveFloat | None = None
    """The full rate, in training's own units; a tenth of training's default where not given. It falls linearly to 0."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps in which the rate rises; at most half of a short run."""
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    """Of the order of contexts and of the prefix that each step serves."""
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt = 100
    """Steps between two checkpoints: what a kill may cost."""
