"""The sparse code of some rows of a cache, block by block, and how much each active entry explains.

For a row with target y, reconstruction y_p of prefix p and error e_p = y - y_p, leaving feature f out adds a_f W_dec[f]
to the error of every prefix that has it, so the squared error grows by

    |e_p + a_f W_dec[f]|^2 - |e_p|^2  =  2 a_f (e_p . W_dec[f]) + a_f^2 |W_dec[f]|^2

The selection of the other features stays as it is. The dot products are taken for the whole dictionary and for the
shortest prefix that has the feature. Blocks begin at multiples of ``block_rows`` and do not see each other: whichever
process computes a block finds the same bytes, and parts of a run are joined in the order of their rows.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cache.reader import SplitView
from common.errors import UsageError
from common.progress import Progress
from transcoder.decode import Bags, activation_gradients, bags_of
from transcoder.sparse_code import SparseCode
from transcoder.transcoder import Transcoder

Errors = Callable[
    [int, int, Int[np.ndarray, " kept"], SparseCode],
    tuple[Float[Tensor, "rows prefixes d_target"], Float[Tensor, "rows d_target"]],
]
"""From a block's first and last row, those of it that are kept, and their code: target minus every prefix's
reconstruction, and target minus b_dec. For features that are not all that reconstructs their target."""


@dataclass(frozen=True)
class CodeBlock:
    """The firing entries of one block: row numbers within the split, ascending, and within a row by feature.

    ``lost`` and ``lost_prefix`` are what the squared error grows by without the entry's feature, over the whole
    dictionary and over the shortest prefix that has it. ``target_sum`` and ``target_square`` are sums over the
    ``tokens`` rows that are not special, in float64, of target - b_dec and of its square; ``error_square`` sums every
    prefix's squared error.
    """

    start: int
    tokens: int
    row: Int[np.ndarray, " entries"]
    feature: Int[np.ndarray, " entries"]
    value: Float[np.ndarray, " entries"]
    lost: Float[np.ndarray, " entries"]
    lost_prefix: Float[np.ndarray, " entries"]
    target_sum: Float[np.ndarray, " d_target"]
    target_square: float
    error_square: Float[np.ndarray, " prefixes"]


@dataclass(frozen=True)
class Code:
    """The joined blocks: ``tokens`` rows counted; ``total_square`` is the target's squared distance from its mean.

    ``error_square`` over ``total_square`` is FVU, by prefix.
    """

    tokens: int
    row: Int[np.ndarray, " entries"]
    feature: Int[np.ndarray, " entries"]
    value: Float[np.ndarray, " entries"]
    lost: Float[np.ndarray, " entries"]
    lost_prefix: Float[np.ndarray, " entries"]
    total_square: float
    error_square: Float[np.ndarray, " prefixes"]


def encode_blocks(
    view: SplitView,
    transcoder: Transcoder,
    starts: Sequence[int],
    *,
    rows: int,
    block_rows: int,
    special_ids: Sequence[int],
    progress: Progress,
    errors: Errors | None = None,
) -> list[CodeBlock]:
    """The blocks that begin at ``starts``, of the first ``rows`` rows of ``view``; the transcoder's device computes.
    ``errors`` are the transcoder's own where they are not given.

    Raises DamagedError for rows that are not what was written.
    """
    blocks: list[CodeBlock] = []
    progress.begin(f"features of {transcoder.name}", total=len(starts) * block_rows, unit="rows")
    for start in starts:
        end = min(start + block_rows, rows)
        blocks.append(_encode_block(view, transcoder, start, end, special_ids=special_ids, errors_of=errors))
        progress.advance(block_rows)
    progress.end()
    return blocks


def _encode_block(
    view: SplitView,
    transcoder: Transcoder,
    start: int,
    end: int,
    *,
    special_ids: Sequence[int],
    errors_of: Errors | None,
) -> CodeBlock:
    stored = view.rows(slice(start, end), view=transcoder.source_view)
    kept = np.flatnonzero(counted(stored.tokens, special_ids))
    device = transcoder.W_enc.device
    source = stored.source[torch.from_numpy(kept)].to(device)

    code = transcoder.sparse_code(source)
    if errors_of:
        errors, away = errors_of(start, end, kept, code)
    else:
        target = stored.target[torch.from_numpy(kept)].to(device).float()
        errors = target[:, None] - transcoder.reconstruct(code, source.float())
        away = target - transcoder.b_dec
    away = away.double()
    lost, lost_prefix = losses_without(transcoder, code, errors)
    fires = code.values > 0
    return CodeBlock(
        start=start,
        tokens=len(kept),
        row=(kept[_numpy(code.rows()[fires])] + start).astype(np.int32),
        feature=_numpy(code.features[fires]).astype(np.int32),
        value=_numpy(code.values[fires]),
        lost=_numpy(lost[fires]),
        lost_prefix=_numpy(lost_prefix[fires]),
        target_sum=_numpy(away.sum(dim=0)),
        target_square=float(away.square().sum()),
        # Row by row in float32, then in float64: the errors of all prefixes in float64 would be the largest array here.
        error_square=_numpy(torch.linalg.vector_norm(errors, dim=2).double().square().sum(dim=0)),
    )


@torch.no_grad()
def losses_without(
    transcoder: Transcoder, code: SparseCode, errors: Float[Tensor, "rows prefixes d_target"]
) -> tuple[Float[Tensor, " active"], Float[Tensor, " active"]]:
    """What a row's squared error grows by without each active entry: whole dictionary, shortest prefix that has it.

    ``errors`` are target minus reconstruction.
    """
    W_dec = transcoder.W_dec
    by_group = bags_of(code, transcoder.prefixes)
    by_row = Bags(code.rows(), code.offsets)
    in_all = activation_gradients(code, by_row, W_dec, grad_sums=errors[:, -1].contiguous())
    in_prefix = activation_gradients(code, by_group, W_dec, grad_sums=errors.flatten(0, 1).contiguous())
    square = code.values.square() * W_dec.square().sum(dim=1)[code.features.long()]
    return 2 * code.values * in_all + square, 2 * code.values * in_prefix + square


def join(blocks: Iterable[CodeBlock]) -> Code:
    """The code of all blocks, whatever order they come in. Raises UsageError when no row counts."""
    ordered = sorted(blocks, key=lambda block: block.start)
    tokens = sum(block.tokens for block in ordered)
    if not tokens:
        raise UsageError(
            "The cache has no rows here that are not special tokens.", remedy="Harvest with held_out_tokens above 0."
        )
    # Added block by block in the order of their rows, so that parts give the same last bit however they were dealt.
    square = sum(block.target_square for block in ordered)
    total = np.sum([block.target_sum for block in ordered], axis=0)
    return Code(
        tokens=tokens,
        row=np.concatenate([block.row for block in ordered]),
        feature=np.concatenate([block.feature for block in ordered]),
        value=np.concatenate([block.value for block in ordered]),
        lost=np.concatenate([block.lost for block in ordered]),
        lost_prefix=np.concatenate([block.lost_prefix for block in ordered]),
        total_square=square - float(total @ total) / tokens,
        error_square=np.sum([block.error_square for block in ordered], axis=0),
    )


def counted(tokens: Int[np.ndarray, " rows"], special_ids: Sequence[int]) -> Bool[np.ndarray, " rows"]:
    """Rows that count: those whose token is not special."""
    return ~np.isin(tokens, np.array(special_ids, dtype=np.int64))


def _numpy(array: Tensor) -> np.ndarray:
    return array.cpu().numpy()
