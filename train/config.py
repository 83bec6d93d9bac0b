"""Settings of the training stage as they are stated, and the checks that they must pass.

``prefixes`` are cumulative ends, [768, 2304, 5376, 12288]; ``group_sizes`` are the disjoint sizes between them,
[768, 1536, 3072, 6912]. They are two keys, and which one is meant is never inferred from the numbers.

``train/resolved.py`` fills in what is not stated from the presets and the cache's width.
"""

from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from common.known_models import KNOWN_MODELS
from common.settings import Settings
from transcoder.rules.registry import trainable

# Tensors and files count features, rows and steps in 31 bits; what is larger is a slip of the pen.
Count = Annotated[int, Field(gt=0, lt=2**31)]
CountOrZero = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[int, Field(gt=0, lt=2**53)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

LAYER_PRESETS: dict[str, dict[str, Any]] = {
    "layer-18432": {"group_sizes": (1152, 2304, 4608, 10368), "top_k": 96},
    "layer-18432-five-groups": {"group_sizes": (1152, 2073, 3732, 6718, 4757), "top_k": 96},
}


def presets() -> dict[str, dict[str, Any]]:
    """What each preset sets, by name: for every known model 16 times its width in groups of 1, 2, 4 and 9 widths."""
    of_models = {
        name: {"group_sizes": tuple(share * known.width for share in (1, 2, 4, 9)), "top_k": known.top_k}
        for name, known in KNOWN_MODELS.items()
    }
    return of_models | LAYER_PRESETS


class SampleSettings(Settings):
    """Samples of what features fire on, taken while a training is on and written beside it; it does not notice."""

    every: CountOrZero = 1000
    """Steps from one collection to the next; 0 for none."""
    rows: Count = 16_384
    """Held-out rows that are encoded, from the beginning of the split."""
    samples_per_feature: Count = 100
    """Firings of a feature that are drawn, of those above the threshold."""
    samples_saved: Count = 10
    """Of these, the strongest are written."""
    threshold: float = Field(default=0.1, ge=0)
    """Largest value, in the cache's units, that is no sample."""
    context_size: CountOrZero = 20
    """Tokens on either side that are shown with a sample."""
    features: tuple[CountOrZero, ...] | None = None
    """Which features; all where not given."""


class LogSettings(Settings):
    """Where the metrics of a training go besides metrics.jsonl, which is always written."""

    wandb: bool = False
    """Mirror the metrics to Weights & Biases. Its key comes from its own login, never from here."""
    wandb_project: str = "nestcoder"
    wandb_mode: Literal["online", "offline"] | None = None
    """None leaves it to the WANDB_MODE variable that wandb itself reads."""
    activation_samples: SampleSettings = SampleSettings()


class CommonTrainSettings(Settings):
    """Settings that always have a value, whether stated or not."""

    kind: Literal["transcoder", "sae", "cross-layer"] = "transcoder"
    """What is trained: a transcoder, from the cache's source to its target, a sparse autoencoder of one of them, or a
    cross-layer transcoder from the caches of several layers of one harvest."""
    window: CountOrZero | None = None
    """Of cross-layer: how many layers ahead a feature writes, besides its own; None is all, 0 a transcoder a layer."""
    select_over: Literal["layer", "layers"] = "layer"
    """Of cross-layer: top_k features of every layer, or as many in all over the layers together (topk alone)."""
    warm_start: str = ""
    """Of cross-layer: the name of trained transcoders of every layer, with the same prefixes, to begin from."""
    side: Literal["source", "target"] = "source"
    """Which side of the cache an autoencoder reads and reconstructs."""
    subtract_b_dec: bool = False
    """An autoencoder's encoder reads its source less b_dec, as other tools train it; a saved one has that folded into
    b_enc, so that there is one form of file."""
    activation: str = "topk"
    """A selection rule by its name: ``topk`` keeps the largest of every row, ``batchtopk`` of the whole batch,
    over all processes that share it, and stores a threshold to evaluate by. ``jumprelu`` trains a threshold for each
    feature; ``top_k`` is then the mean number of features a row that training steers towards."""
    sparsity: NonNegativeFloat = 1.0
    """Of jumprelu: what the penalty on the mean number of active features counts in the loss."""
    l0_penalty: Literal["target", "linear"] = "target"
    """Of jumprelu: (L0 / top_k - 1)^2, or L0 / top_k, under which ``sparsity`` alone decides what L0 comes out."""
    bandwidth: PositiveFloat = 1.0
    """Of jumprelu: how wide about its threshold pre-activations tell where it should be, in standard deviations of the
    target."""
    skip: bool = False
    """Add an affine map of the source, zero at first, to every prefix."""
    source: Literal["mlp_in", "ln2_normalized"] = "mlp_in"
    """What the encoder reads: the cache's source as it is stored, or an MLP's input before its norm's gain and bias."""
    seed: Seed = 0
    """Of the initial weights."""
    order_seed: Seed = 0
    """Of the order in which rows are read."""

    steps: Count = 3000
    batch_rows: Count = 2048
    """Rows a step, over all processes; rows of special tokens among them are left out."""
    optimizer: Literal["adam", "adamw"] = "adam"
    min_lr: NonNegativeFloat = 0.0
    """What linear and cosine schedules arrive at on the last step."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled (adamw) or added to the gradient (adam); of the encoder and the skip alone."""
    source_scaling: Literal["dimension", "whole"] = "dimension"
    """What a transcoder's source is divided by while it is trained: each dimension's own standard deviation, or one
    number. It is folded into the saved encoder. An autoencoder's source has its target's one number."""
    dimension_balance: float = Field(default=0.5, ge=0, le=1)
    """The loss is (1 - balance) x the pooled FVU, which a few large dimensions and rows may rule, + balance x the
    whitened FVU, in which every dimension of the target counts the same (docs/metrics.md)."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the whole gradient; None does not clip."""
    aux_alpha: NonNegativeFloat = 1 / 32
    """Weight of the auxiliary loss that revives dead features; 0 leaves it out."""
    revive: bool = True
    """Begin dead features again, each from a row that is drawn for it, until the rate has fallen to a third."""

    log_every: Count = 10
    checkpoint_every: Count = 500
    keep: Count = 2
    """Newest checkpoints kept, besides the best by held-out FVU."""
    held_out_rows: CountOrZero = 16_384
    """Held-out rows that every checkpoint is measured on; 0 keeps no best."""
    save_best: bool = False
    """Save the weights of the checkpoint with the lowest held-out FVU in place of those of the last step."""
    shard_dictionary: bool = False
    """Deal the features over the processes of torchrun instead of the rows."""

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
        """``source_scaling``, where source and target are not one array."""
        return "whole" if self.kind == "sae" else self.source_scaling

    @property
    def column(self) -> Literal["source", "target"] | None:
        """The side of the cache that is both source and target; None where they are two."""
        return self.side if self.kind == "sae" else None


def _check_kind(settings: CommonTrainSettings) -> None:
    """Refuse what only makes sense for another kind."""
    if settings.kind == "cross-layer":
        _check_cross_layer(settings)
    elif settings.window is not None or settings.select_over != "layer" or settings.warm_start:
        raise ValueError("window, select_over and warm_start are of kind cross-layer; set it, or leave them out")
    if settings.kind == "sae":
        _check_sae(settings)
    elif settings.side != "source":
        raise ValueError(f"side {settings.side} is an autoencoder's; set kind to sae, or leave it out")
    elif settings.subtract_b_dec:
        raise ValueError("subtract_b_dec is an autoencoder's: a transcoder's b_dec lives in another space")


def _check_sae(settings: CommonTrainSettings) -> None:
    if settings.skip:
        raise ValueError("skip with kind sae: an affine map of the source reconstructs the source by itself")
    if settings.source != "mlp_in":
        raise ValueError(f"source {settings.source} with kind sae: an autoencoder reads its side as it is stored")


def _check_cross_layer(settings: CommonTrainSettings) -> None:
    if settings.skip:
        raise ValueError("skip with kind cross-layer is not there yet; leave it out")
    if settings.select_over == "layers" and settings.shard_dictionary:
        raise ValueError("select_over layers needs the whole dictionary in one process; leave shard_dictionary out")
    if settings.select_over == "layers" and settings.activation != "topk":
        raise ValueError(f"select_over layers with activation {settings.activation}: only topk selects over layers")


class TrainSettings(CommonTrainSettings):
    """How a nested transcoder is trained. With neither ``prefixes`` nor ``group_sizes`` nor a preset, the dictionary is
    16 times the target's width, or ``dict_size``, in groups of 1/16, 2/16, 4/16 and 9/16."""

    preset: str = "auto"
    """A name of ``presets``, ``none``, or ``auto``: the one named like the cache's model and made for its width,
    where there is one. Keys that are given win over the preset's."""
    dict_size: Count | None = None
    """Features in all. Follows from ``prefixes`` or ``group_sizes`` where those are given, and must then agree."""
    prefixes: tuple[Count, ...] | None = None
    """Cumulative ends of the prefixes, strictly increasing, the last one the dictionary's size."""
    group_sizes: tuple[Count, ...] | None = None
    """Disjoint sizes of the groups between the prefixes."""
    prefix_weights: tuple[PositiveFloat, ...] | None = None
    """What each prefix counts in the loss, scaled to sum to 1; equal where not given."""
    top_k: Count | None = None
    """Active features a row; 16 where neither this nor a preset says."""
    compute_dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the matrix products; master weights and the optimiser are always float32. ``auto`` is bfloat16 on a GPU that
    computes in it (NVIDIA's since Ampere), and float32 elsewhere; a run records which it was."""
    lr: PositiveFloat | None = None
    """The full rate; 0.016 / width^(1/4), of the target, where not given, so 0.0051 at 96 and 0.0030 at 768."""
    warmup_steps: CountOrZero | None = None
    """Steps in which the rate rises; 100 where not given, and at most half of the steps that no decay takes."""
    sparsity_warmup_steps: CountOrZero | None = None
    """Of jumprelu: steps in which ``sparsity`` rises from 0; a tenth of the run where not given."""
    decay_steps: Count | None = None
    """Length of the decay, at the end of the run; all steps after the warm-up where not given."""
    aux_top_k: Count | None = None
    """Dead features a row that the auxiliary loss uses; half the target's width where not given."""
    dead_after_tokens: Tokens | None = None
    """Tokens without firing that make a feature dead; 5 % of the planned tokens, at least 1 M and at most 10 M."""
    sweep: tuple[dict[str, Any], ...] = ()
    """Further transcoders from the same reading of the cache: each a name and what it sets otherwise."""

    @model_validator(mode="after")
    def _check(self) -> "TrainSettings":
        _check_preset(self)
        _check_not_empty(self)
        _check_nesting(self)
        _check_weights(self)
        _check_schedule(self)
        return self

    @property
    def boundaries(self) -> tuple[int, ...] | None:
        """The cumulative prefixes, where they are stated in either form."""
        return tuple(accumulate(self.group_sizes)) if self.group_sizes else self.prefixes


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


def _check_nesting(settings: TrainSettings) -> None:
    """Refuse nesting that is stated twice, does not increase, or does not add up, with the sums."""
    if settings.prefixes and settings.group_sizes:
        raise ValueError("prefixes and group_sizes are two ways to say the same: give one")
    ends = settings.boundaries
    if ends is None:
        return
    if any(later <= earlier for earlier, later in pairwise(ends)):
        raise ValueError(f"prefixes {list(ends)} are cumulative and must increase strictly{_groups_hint(ends)}")
    if settings.dict_size not in (None, ends[-1]):
        raise ValueError(
            f"{_sum_of(settings)}, but dict_size is {settings.dict_size}{_groups_hint(ends, settings.dict_size)}"
        )
    if ends[-1] >= 2**31:
        raise ValueError(f"{_sum_of(settings)}, and a dictionary has fewer than 2^31 features")
    check_top_k(settings.top_k, first_prefix=ends[0])


def check_top_k(top_k: int | None, *, first_prefix: int) -> None:
    """Raise ValueError where a row could use all of the first prefix."""
    if top_k is not None and top_k > first_prefix:
        raise ValueError(
            f"top_k {top_k} exceeds the first prefix, {first_prefix} features: a row could use all of it, "
            f"and it would learn no code; take a top_k of at most {first_prefix} or a larger first prefix"
        )


def _sum_of(settings: TrainSettings) -> str:
    """The arithmetic behind the size that prefixes or groups imply."""
    if settings.group_sizes:
        return f"group_sizes {' + '.join(map(str, settings.group_sizes))} = {sum(settings.group_sizes)}"
    return f"the last of prefixes {list(settings.prefixes or ())} is {(settings.prefixes or (0,))[-1]}"


def _groups_hint(ends: tuple[int, ...], dict_size: int | None = None) -> str:
    """Point at the other key where the same numbers would make sense as groups."""
    makes_sense = sum(ends) == dict_size if dict_size else ends != tuple(sorted(ends))
    return f"; as group_sizes they would add up to {sum(ends)}" if makes_sense else ""


def _check_weights(settings: TrainSettings) -> None:
    """One weight a prefix."""
    ends = settings.boundaries
    weights = settings.prefix_weights
    if ends and weights and len(weights) != len(ends):
        raise ValueError(f"{len(weights)} prefix_weights for {len(ends)} prefixes")


def _check_schedule(settings: TrainSettings) -> None:
    """Warm-up and decay that are stated must fit into the run, and the rate must fall."""
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
    """Raise ValueError where the rate would end above where it begins."""
    if min_lr > lr:
        raise ValueError(f"min_lr {min_lr} exceeds lr {lr}")
