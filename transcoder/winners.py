"""Which candidates win where several processes make them: one selection over all, exact, from one exchange of values.

Every process offers its own largest, as many as win in all: no other of its candidates could be among the winners.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, distributed

from transcoder.sparse_code import Selection


def winners(
    values: Float[Tensor, "rows candidates"], count: int, *, rank: int, world: int
) -> Bool[Tensor, "rows candidates"]:
    """Which of this process's candidates, at most ``count`` a row, are among a row's ``count`` largest of all.

    Exactly ``count`` win a row: of equals the first ones, in the order of the processes. Where there is a NaN all win,
    so that it is not lost.
    """
    rows, own = values.shape
    exact = values.to(torch.promote_types(values.dtype, torch.float32))  # what every back end can send
    padded = torch.nn.functional.pad(exact, (0, count - own), value=float("-inf"))
    parts = padded.new_empty(world, rows, count)
    distributed.all_gather(list(parts.unbind()), padded)
    offered = parts.transpose(0, 1).flatten(1)
    least = offered.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    above, equal = ~(offered <= least), offered == least
    won = above | (equal & (equal.cumsum(dim=1) <= count - above.sum(dim=1, keepdim=True)))
    return won[:, rank * count :][:, :own]


def keep_winners(candidates: Selection, count: int, *, rows: int, rank: int, world: int) -> Selection:
    """The candidates that win, ``count`` in each of so many equal runs of them. Counting them waits for the device."""
    if world == 1 or not count:
        return candidates
    won = winners(candidates.values.view(rows, -1), count, rank=rank, world=world).flatten()
    before = torch.zeros(won.numel() + 1, dtype=torch.int32, device=won.device)
    torch.cumsum(won, dim=0, dtype=torch.int32, out=before[1:])
    return Selection(candidates.values[won], candidates.features[won], before[candidates.offsets.long()])
