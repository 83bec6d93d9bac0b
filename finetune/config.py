"""Settings of fine-tuning."""

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from common.settings import Settings


class FinetuneSettings(Settings):
    """The ``finetune:`` section of pipeline.yaml."""

    tokens: PositiveInt = 5_000_000
    """Tokens to train on, special tokens included; if the cache has fewer, they are used several times."""
    batch_contexts: PositiveInt = 8
    """Contexts a step."""
    kl_weight: NonNegativeFloat = 1.0
    """Size of the KL divergence's gradient relative to the FVU's; 1: the same size, 0: no KL divergence."""
    lr: PositiveFloat | None = None
    """The full learning rate, in training's units; a tenth of training's default if not given. It falls linearly to
    0."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps in which the rate rises; at most half of a short run."""
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    """Of the order of contexts and of the prefix that each step serves."""
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt = 100
    """Steps between two checkpoints: so many steps can be lost in a kill."""
