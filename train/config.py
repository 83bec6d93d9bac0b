"""Settings of the training stage as the user gives them, and their checks.

``train/resolved.py`` fills in what is not given, from the presets and the cache's width.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from common.known_models import KNOWN_MODELS
from common.settings import Settings
from train.nesting import boundaries_of, check_nesting
from transcoder.rules.registry import trainable

# Tensors and files count features, rows and steps in 31 bits; a larger number is a typing error.
Count = Annotated[int, Field(gt=0, lt=2**31)]
CountOrZero = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[int, Field(gt=0, lt=2**53)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

LAYER_PRESETS: dict[str, dict[str, Any]] = {
    "layer-18432": {"group_sizes": (1152, 2304, 4608, 10368), "top_k": 96},
    "layer-18432-five-groups": {"group_sizes": (1152, 2073, 3732, 6718, 4757), "top_k": 96},
}


def presets() -> dict[str, dict[str, Any]]:
    """What each preset sets, by name: for every known model 16 times its width, in groups of 1, 2, 4 and 9 widths."""
    of_models = {
        name: {"group_sizes": tuple(share * known.width for share in (1, 2, 4, 9)), "top_k": known.top_k}
        for name, known in KNOWN_MODELS.items()
    }
    return of_models | LAYER_PRESETS


class SampleSettings(Settings):
    """Samples of what features fire on, taken during training and written beside it. They change nothing in it."""

    every: CountOrZero = 1000
    """Steps from one collection to the next; 0 for none."""
    rows: Count = 16_384
    """Held-out rows that are encoded: the first ones of the split."""
    samples_per_feature: Count = 100
    """How many of a feature's firings above the threshold are drawn."""
    samples_saved: Count = 10
    """How many of the drawn firings are written: the strongest ones."""
    threshold: float = Field(default=0.1, ge=0)
    """A firing must exceed this value, in the cache's units, to be a sample."""
    context_size: CountOrZero = 20
    """Tokens before and after that are shown with a sample."""
    features: tuple[CountOrZero, ...] | None = None
    """Which features are sampled; all of them if not given."""


class LogSettings(Settings):
    """Where the metrics of a training go besides metrics.jsonl, which is always written."""

    wandb: bool = False
    """Mirror the metrics to Weights & Biases. Its key comes from its own login, never from here."""
    wandb_project: str = "nestcoder"
    wandb_mode: Literal["online", "offline"] | None = None
    """None: the variable WANDB_MODE decides, which wandb itself reads."""
    activation_samples: SampleSettings = SampleSettings()


class CommonTrainSettings(Settings):
    """Settings that always have a value, given or not."""

    kind: Literal["transcoder", "sae", "cross-layer"] = "transcoder"
    """What is trained: a transcoder, from the cache's source to its target, a sparse autoencoder of one of them, or a
    cross-layer transcoder from the caches of several layers of one harvest."""
    window: CountOrZero | None = None
    """Kind cross-layer: a feature writes to its own layer and to so many later ones. None: to all later ones; 0: to its
    own layer only, as a set of transcoders does."""
    select_over: Literal["layer", "layers"] = "layer"
    """Kind cross-layer: select top_k features in every layer, or top_k times the number of layers over all of them
    (only with topk)."""
    warm_start: str = ""
    """Kind cross-layer: the name of trained transcoders, one for each layer and with the same prefixes, to start
    from."""
    side: Literal["source", "target"] = "source"
    """Kind sae: what the autoencoder reads and reconstructs, the cache's source or its target."""
    subtract_b_dec: bool = False
    """Kind sae: the encoder reads its source minus b_dec, as in other tools. When the dictionary is saved, this is
    folded into b_enc, so that all files have one form."""
    activation: str = "topk"
    """A selection rule by its name: ``topk`` keeps the largest of every row, ``batchtopk`` of the whole batch,
    over all processes that share it, and stores a threshold to evaluate by. ``jumprelu`` trains a threshold for each
    feature; ``top_k`` is then the mean number of active features a row that training aims at."""
    sparsity: NonNegativeFloat = 1.0
    """Rule jumprelu: the weight in the loss of the penalty on the mean number of active features."""
    l0_penalty: Literal["target", "linear"] = "target"
    """Rule jumprelu: the penalty is (L0 / top_k - 1)^2, or L0 / top_k; with the second, ``sparsity`` decides the L0."""
    bandwidth: PositiveFloat = 1.0
    """Rule jumprelu: pre-activations within half of this width from a threshold give it a gradient; in standard
    deviations of the target."""
    skip: bool = False
    """Add an affine map of the source, zero at first, to every prefix. With kind cross-layer each layer has
    one, from its own source to its own target."""
    source: Literal["mlp_in", "ln2_normalized"] = "mlp_in"
    """What the encoder reads: the cache's source as it is stored, or an MLP's input before its norm's gain and bias."""
    seed: Seed = 0
    """Of the initial weights."""
    order_seed: Seed = 0
    """Of the order in which rows are read."""

    steps: Count = 3000
    batch_rows: Count = 2048
    """Rows a step, over all processes; rows of special tokens are left out."""
    optimizer: Literal["adam", "adamw"] = "adam"
    min_lr: NonNegativeFloat = 0.0
    """The rate at the last step of a linear or cosine schedule."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled (adamw) or added to the gradient (adam); only for the encoder and the skip."""
    source_scaling: Literal["dimension", "whole"] = "dimension"
    """What a transcoder's source is divided by during training: the standard deviation of each dimension, or one number
    for all of them. It is folded into the saved encoder. An autoencoder always uses one number."""
    dimension_balance: float = Field(default=0.5, ge=0, le=1)
    """The loss is (1 - balance) x pooled FVU + balance x whitened FVU. In the pooled FVU a few large dimensions and
    rows can decide everything; in the whitened FVU every dimension of the target counts the same (docs/metrics.md)."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the whole gradient; None does not clip."""
    aux_alpha: NonNegativeFloat = 1 / 32
    """Weight of the auxiliary loss that revives dead features; 0 leaves it out."""
    revive: bool = True
    """Start dead features again, each from a randomly drawn row, until the learning rate has fallen to a third."""

    log_every: Count = 10
    checkpoint_every: Count = 500
    keep: Count = 2
    """Newest checkpoints kept, besides the best by held-out FVU."""
    held_out_rows: CountOrZero = 16_384
    """Held-out rows that every checkpoint is measured on; 0 keeps no best."""
    save_best: bool = False
    """Save the weights of the checkpoint with the lowest held-out FVU in place of those of the last step."""
    shard_dictionary: bool = False
    """Divide the features among the processes of torchrun, instead of the rows."""

    @model_validator(mode="after")
    def _check_common(self) -> "CommonTrainSettings":
        if self.activation not in trainable():
            raise ValueError(f"activation {self.activation!r} is unknown; there are {', '.join(trainable())}")
        if self.save_best and not self.held_out_rows:
            raise ValueError("save_best needs held_out_rows: without them no checkpoint is the best")
        _check_kind(self)
        return self

    @property
    def scaling_of_source(self) -> Literal["dimension", "whole"]:
        """``source_scaling``; one number where source and target are the same array."""
        return "whole" if self.kind == "sae" else self.source_scaling

    @property
    def column(self) -> Literal["source", "target"] | None:
        """What an autoencoder reads and reconstructs; None for other kinds."""
        return self.side if self.kind == "sae" else None


def _check_kind(settings: CommonTrainSettings) -> None:
    """Refuse settings that belong to another kind."""
    if settings.kind == "cross-layer":
        _check_cross_layer(settings)
    elif settings.window is not None or settings.select_over != "layer" or settings.warm_start:
        raise ValueError(
            "window, select_over and warm_start belong to kind cross-layer; set that kind, or leave them out"
        )
    if settings.kind == "sae":
        _check_sae(settings)
    elif settings.side != "source":
        raise ValueError(f"side {settings.side} belongs to kind sae; set that kind, or leave side out")
    elif settings.subtract_b_dec:
        raise ValueError("subtract_b_dec belongs to kind sae: a transcoder's b_dec and source are in different spaces")


def _check_sae(settings: CommonTrainSettings) -> None:
    if settings.skip:
        raise ValueError(
            "skip cannot be used with kind sae: an affine map of the source would reconstruct the source alone"
        )
    if settings.source != "mlp_in":
        raise ValueError(
            f"source {settings.source} cannot be used with kind sae: an autoencoder reads its rows as they are stored"
        )


def _check_cross_layer(settings: CommonTrainSettings) -> None:
    if settings.select_over == "layers" and settings.activation != "topk":
        raise ValueError(f"select_over layers needs activation topk, not {settings.activation}")


class TrainSettings(CommonTrainSettings):
    """How a nested transcoder is trained. With neither ``prefixes`` nor ``group_sizes`` nor a preset, the dictionary is
    16 times the target's width, or ``dict_size``, in groups of 1/16, 2/16, 4/16 and 9/16."""

    preset: str = "auto"
    """A name of ``presets``, ``none``, or ``auto``: the one named like the cache's model and made for its width,
    where there is one. Keys that are given win over the preset's."""
    dict_size: Count | None = None
    """Number of features. Follows from ``prefixes`` or ``group_sizes`` if those are given, and must then agree."""
    prefixes: tuple[Count, ...] | None = None
    """Cumulative ends of the prefixes, strictly increasing, the last one the dictionary's size."""
    group_sizes: tuple[Count, ...] | None = None
    """Disjoint sizes of the groups between the prefixes."""
    prefix_weights: tuple[PositiveFloat, ...] | None = None
    """The weight of each prefix in the loss, scaled to sum to 1; equal if not given."""
    top_k: Count | None = None
    """Active features a row; 16 if neither this nor a preset gives a number."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the matrix products; master weights and optimiser are always float32. ``auto`` is bfloat16 on a GPU that
    computes in it (NVIDIA's since Ampere), and float32 elsewhere. A run records which one it used, and goes on in it on
    any device."""
    lr: PositiveFloat | None = None
    """The full learning rate. If not given, 0.016 / width^(1/4) with the target's width: 0.0051 at 96, 0.0030 at
    768."""
    warmup_steps: CountOrZero | None = None
    """Steps in which the rate rises. If not given, 100, and at most half of the steps before the decay."""
    sparsity_warmup_steps: CountOrZero | None = None
    """Rule jumprelu: steps in which ``sparsity`` rises from 0; a tenth of the run if not given."""
    decay_steps: Count | None = None
    """Steps of the decay, at the end of the run; all steps after the warm-up if not given."""
    aux_top_k: Count | None = None
    """Dead features a row that the auxiliary loss uses; half the target's width if not given."""
    dead_after_tokens: Tokens | None = None
    """A feature that has not fired for so many tokens is dead; 5 % of the planned tokens, from 1 M to 10 M."""
    sweep: tuple[dict[str, Any], ...] = ()
    """More transcoders that are trained from the same batches: for each a name, and the settings that differ."""

    @model_validator(mode="after")
    def _check(self) -> "TrainSettings":
        _check_preset(self)
        _check_not_empty(self)
        check_nesting(self.prefixes, self.group_sizes, dict_size=self.dict_size, top_k=self.top_k)
        _check_weights(self)
        _check_schedule(self)
        return self

    @property
    def boundaries(self) -> tuple[int, ...] | None:
        """The cumulative prefixes, if given in one of the two forms."""
        return boundaries_of(self.prefixes, self.group_sizes)


def _check_preset(settings: TrainSettings) -> None:
    """A preset must be one of those there are."""
    names = ("auto", "none", *presets())
    if settings.preset not in names:
        raise ValueError(f"preset {settings.preset!r} is unknown; there are {', '.join(names)}")


def _check_not_empty(settings: TrainSettings) -> None:
    """A list that is given must have an entry."""
    for key in ("prefixes", "group_sizes", "prefix_weights"):
        if getattr(settings, key) == ():
            raise ValueError(f"{key} is empty: give at least one number, or leave the key out")


def _check_weights(settings: TrainSettings) -> None:
    """One weight a prefix."""
    ends = settings.boundaries
    weights = settings.prefix_weights
    if ends and weights and len(weights) != len(ends):
        raise ValueError(f"{len(weights)} prefix_weights for {len(ends)} prefixes")


def _check_schedule(settings: TrainSettings) -> None:
    """Warm-up and decay must fit into the run, and the rate must not rise."""
    warmup = settings.warmup_steps or 0
    decay = settings.decay_steps or 0
    if warmup + decay > settings.steps:
        raise ValueError(
            f"warmup_steps {warmup} + decay_steps {decay} = {warmup + decay}, "
            f"more than the {settings.steps} steps of the run"
        )
    if settings.lr is not None:
        check_min_lr(settings.min_lr, lr=settings.lr)


def check_min_lr(min_lr: float, *, lr: float) -> None:
    """Raise ValueError if the last rate would be above the full rate."""
    if min_lr > lr:
        raise ValueError(f"min_lr {min_lr} exceeds lr {lr}")
