"""One step of training: state and batch in, state advanced in place, metrics out. No files, no clock.

A single process never waits for its GPU: the room for dead features in a step is known from earlier steps. Everything
that changes from step to step is in arrays; everything that decides shapes and operations is in ``StepForm``. So all
steps of one form run the same kernels, which train/arrays/graphs.py records and replays.

loss = l2_loss + aux_loss
l2_loss  = weighted mean over prefixes of fvu_p,    fvu_p = SSE_p / (rows * target variance of the cache)
aux_loss as train/dead/aux_loss.py has it, where a feature is dead
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from common.device import to_device
from common.distributed import Ranks
from train.arrays.batch_share import BatchShare
from train.arrays.graphs import Graphs, Inputs
from train.arrays.optim import in_one_pass, learning_rate, step_numbers, update_
from train.arrays.parameters import Parameters
from train.arrays.workspace import Workspace
from train.dead.aux_loss import add_auxiliary_loss_
from train.dead.features import Dead, Room, count_tokens_, dead_count, dead_share
from train.dead.revive import drawn_order, may_revive, revive_
from train.loss import StepResult, nested_step
from train.objective import Recipe
from train.record.step_metrics import StepMetrics
from train.resolved import ResolvedSettings
from train.state import State
from transcoder.constants import constant
from transcoder.rules.registry import RULES
from transcoder.sharded import UNSHARDED, Shard


@dataclass(frozen=True)
class StepForm:
    """What decides the shapes and the operations of a step: steps of one form differ only in numbers.

    ``room``: how many dead features of this process a step can treat; ``is_exact``: that is exactly their number.
    """

    rows: int
    room: int
    is_exact: bool
    has_auxiliary: bool
    revives: bool


def train_step(
    state: State,
    source: Float[Tensor, "rows d_source"],
    *,
    target: Float[Tensor, "rows d_target"],
    recipe: Recipe,
    workspace: Workspace,
    ranks: Ranks,
    shard: Shard = UNSHARDED,
    graphs: Graphs | None = None,
) -> StepMetrics:
    """Advance ``state`` by this process's rows of a batch; all processes take the step of the whole batch.

    With a ``shard``, every process has all rows, and ``state`` is that of its own features. A process without rows, as
    at the end of an epoch, computes on a row of zeros, which has no effect. With ``graphs``, which must be used only
    with this state, recipe and workspace, steps whose number of rows comes again are recorded as CUDA graphs.
    """
    settings = recipe.settings
    share = BatchShare.from_rows(len(source), ranks, source.device)
    form = form_of(state, settings, share=share, shard=shard)
    if not share.rows:
        source = source.new_zeros(1, source.shape[1])
        target = target.new_zeros(1, target.shape[1])
    numbers, order = numbers_and_order(state, settings, form, share)
    inputs = (source, target, numbers, order)

    def work(inputs: Inputs) -> dict[str, Tensor]:
        return advance_(state, *inputs, form=form, recipe=recipe, workspace=workspace, share=share, shard=shard)

    measured = None
    if graphs and numbers is not None and share.rows and not form.is_exact:
        measured = graphs.play(form, inputs, work)
    if measured is None:
        measured = work([None if array is None else to_device(array, source.device) for array in inputs])
    return counted_(state, measured, settings, share)


def numbers_and_order(
    state: State, settings: ResolvedSettings, form: StepForm, share: BatchShare
) -> tuple[Float[Tensor, " numbers"] | None, Int[Tensor, " batch_rows"] | None]:
    """What differs between two steps of one form, on the host: the numbers of the one-pass update, and the order in
    which dead features draw rows."""
    numbers = step_numbers(settings, state.step) if in_one_pass(state.weights) else None
    order = drawn_order(state.step, share.batch_rows) if form.revives else None
    return numbers, order


def counted_(state: State, measured: dict[str, Tensor], settings: ResolvedSettings, share: BatchShare) -> StepMetrics:
    """Count a finished step, and return its metrics."""
    metrics = StepMetrics(**measured, lr=learning_rate(settings, state.step))
    state.step += 1
    state.tokens += share.batch_rows
    return metrics


def form_of(state: State, settings: ResolvedSettings, *, share: BatchShare, shard: Shard) -> StepForm:
    """The form of the next step."""
    is_exact = not runs_ahead(state, settings, share=share, shard=shard)
    room = _room(state, settings, is_exact=is_exact) if settings.revive or settings.aux_alpha else 0
    is_treated = bool(share.batch_rows and (room if shard.world == 1 else shard.total(room, state.since_fired.device)))
    has_auxiliary = is_treated and settings.aux_alpha > 0
    revives = is_treated and may_revive(settings, state.step)
    if not (has_auxiliary or revives):
        room = 0
    return StepForm(share.rows, room, is_exact, has_auxiliary, revives)


def dead_of(state: State, settings: ResolvedSettings, form: StepForm) -> Dead:
    """The features that are dead before a step."""
    after_tokens = settings.dead_after_tokens
    return Dead.among(state.since_fired, after_tokens=after_tokens, room=form.room, exact=form.is_exact)


def runs_ahead(state: State, settings: ResolvedSettings, *, share: BatchShare, shard: Shard) -> bool:
    """Whether the host goes on while the device computes: one process with a GPU, and a rule that always selects the
    same number of entries. Several processes wait for each other; with thresholds, the entries must be counted."""
    is_alone = share.ranks.world == shard.world == 1
    return state.since_fired.is_cuda and is_alone and RULES[settings.activation].load().scope != "feature"


def _room(state: State, settings: ResolvedSettings, *, is_exact: bool) -> int:
    if is_exact:
        return dead_count(state.since_fired, after_tokens=settings.dead_after_tokens)
    given = {"after_tokens": settings.dead_after_tokens, "batch_rows": settings.batch_rows}
    state.room = state.room or Room.first(state.since_fired, **given)
    return state.room.size_at(state.step, state.since_fired, **given)


@torch.no_grad()
def advance_(
    state: State,
    source: Float[Tensor, "rows d_source"],
    target: Float[Tensor, "rows d_target"],
    numbers: Float[Tensor, " numbers"] | None,
    order: Int[Tensor, " batch_rows"] | None,
    *,
    form: StepForm,
    recipe: Recipe,
    workspace: Workspace,
    share: BatchShare,
    shard: Shard = UNSHARDED,
) -> dict[str, Tensor]:
    """A step's work on the device; returns the tensors of its metrics.

    On a GPU it launches the same kernels for every step of a form: only ``numbers``, of the update, and ``order``, in
    which dead features draw rows, differ.
    """
    dead = dead_of(state, recipe.settings, form)
    if recipe.settings.subtract_b_dec:
        source = source - state.weights.b_dec
    result = nested_step(
        state.weights,
        source,
        target=target,
        loss=recipe.loss_at(state.step),
        workspace=workspace,
        project=True,
        watch=dead.features,
        share=share,
        shard=shard,
    )
    return finish_(
        state,
        source,
        numbers,
        order,
        result=result,
        dead=dead,
        form=form,
        recipe=recipe,
        workspace=workspace,
        share=share,
        shard=shard,
    )


def finish_(
    state: State,
    source: Float[Tensor, "rows d_source"],
    numbers: Float[Tensor, " numbers"] | None,
    order: Int[Tensor, " batch_rows"] | None,
    *,
    result: StepResult,
    dead: Dead,
    form: StepForm,
    recipe: Recipe,
    workspace: Workspace,
    share: BatchShare,
    shard: Shard = UNSHARDED,
) -> dict[str, Tensor]:
    """What comes after the gradient of the loss: the auxiliary loss, the update, and the revival of dead features.

    ``source`` is what the encoder read, ``dead`` the features that were dead before the step.
    """
    settings = recipe.settings
    aux_loss = result.sse.new_zeros(())
    if form.has_auxiliary:
        dtype = workspace.pre.dtype
        aux_loss = add_auxiliary_loss_(
            state.weights, source, dead=dead, result=result, settings=settings, share=share, dtype=dtype, shard=shard
        )
    if settings.subtract_b_dec:
        add_gradient_through_source_(result.gradients, state.weights, shard=shard)
    fvu, l0, fired = _of_whole_batch(result, recipe, share)
    norm = update_(
        state.weights,
        result.gradients,
        moments=state.moments,
        settings=settings,
        step=state.step,
        numbers=numbers,
        rounded=workspace.weights,
        shard=shard,
    )
    workspace.is_current = in_one_pass(state.weights)
    count_tokens_(state.since_fired, fired, tokens=share.batch_rows)
    dead_now = dead_share(state.since_fired, after_tokens=settings.dead_after_tokens)
    if form.revives:
        assert order is not None
        silent = dead.silent(fired)
        rounded = workspace.weights if workspace.is_current else None
        revive_(
            state.weights, source, result=result, dead=silent, order=order, share=share, shard=shard, rounded=rounded
        )
        silent.give_(state.since_fired, torch.zeros_like(silent.features))
    return {
        "l2_loss": (fvu * constant(recipe.nested.prefix_weights, fvu.dtype, fvu.device)).sum(),
        "aux_loss": aux_loss,
        "batch_fvu": fvu,
        "l0": l0,
        "dead": shard.mean(dead_now, len(state.since_fired)),
        "gradient_norm": norm,
        **({} if result.penalty is None else {"sparsity_loss": result.penalty}),
    }


def _of_whole_batch(
    result: StepResult, recipe: Recipe, share: BatchShare
) -> tuple[Float[Tensor, " prefixes"], Float[Tensor, " prefixes"], Bool[Tensor, " dict_size"]]:
    """FVU, L0 and the features that fired, of all processes' rows; the gradients become those of all rows too."""
    fvu = result.sse * bool(share.rows) / (max(1, share.batch_rows) * recipe.nested.target_variance)
    l0 = result.l0 * share.fraction
    if share.ranks.world > 1 or not share.rows:
        share.ranks.sum_all_([array.mul_(share.fraction) for array in result.gradients.tensors().values()] + [fvu, l0])
    return fvu, l0, share.ranks.any_of(result.fired & bool(share.rows))


def add_gradient_through_source_(gradients: Parameters, weights: Parameters, *, shard: Shard) -> None:
    """Add the gradient of b_dec through the source: pre = W_enc (source - b_dec) + b_enc."""
    gradients.b_dec.sub_(shard.sum_(gradients.b_enc @ weights.W_enc))
