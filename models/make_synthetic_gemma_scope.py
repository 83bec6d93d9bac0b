"""Writes a file in Gemma Scope's format whose L0 and FVU on a cache's held-out rows are known in closed form.

    python -m models.make_synthetic_gemma_scope runs/gemma2-stdlib/layer08/cache /tmp/scope --l0 16

The dictionary is the best affine map of rank r from x, the normalised residual before the gain, to the target y, on the
held-out rows without special tokens, written as r pairs of opposed features without a threshold:

    y_r = mean(y) + sum_j p_j v_j       p_j = (x - mean(x)) . u_j      v_j the j-th eigenvector of Syx Sxx^-1 Sxy
    features 2j and 2j + 1 encode +u_j and -u_j, decode +v_j and -v_j, and have threshold 0

Of every pair exactly one fires, so L0 is r on every token; and FVU is 1 - (sum of the r largest eigenvalues) /
trace(Syy). It is no competitor: it was fitted on the very rows that it is judged on. It shows that files of this format
are read, fed and measured rightly.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cache.reader import CacheReader

BLOCK = 4096


@dataclass(frozen=True)
class Truth:
    """What an evaluation of the file must find."""

    path: Path
    l0: int
    fvu: float


def make(cache: Path, out: Path, *, l0: int) -> Truth:
    """Write the file below ``out``, laid out as Google's."""
    reader = CacheReader.open(cache)
    mean_x, mean_y, xx, xy, yy = _moments(reader)
    best = torch.linalg.pinv(xx, hermitian=True) @ xy
    strengths, directions = torch.linalg.eigh(xy.T @ best)
    strengths, directions = strengths.flip(0)[:l0], directions.flip(1)[:, :l0]
    encoder = best @ directions
    arrays = {
        "W_enc": _paired(encoder),
        "b_enc": _paired(-(mean_x @ encoder)[None])[0],
        "threshold": torch.zeros(2 * l0),
        "W_dec": _paired(directions).T,
        "b_dec": mean_y,
    }
    path = out / f"layer_{reader.identity['layer']}" / f"width_{2 * l0}" / f"average_l0_{l0}" / "params.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: array.float().contiguous().numpy() for name, array in arrays.items()})
    return Truth(path, l0, float(1 - strengths.sum() / yy.trace()))


def _moments(reader: CacheReader) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Means and centred second moments, in float64 and two passes."""
    view = reader.split("held_out")
    special = torch.tensor(reader.special_ids)
    blocks: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(view), BLOCK):
        rows = view.rows(slice(start, start + BLOCK), view="ln2_normalized")
        kept = ~torch.isin(torch.from_numpy(rows.tokens.copy()), special)
        blocks.append((rows.source[kept].double(), rows.target[kept].double()))
    count = sum(len(x) for x, _ in blocks)
    mean_x, mean_y = (torch.stack([block[index].sum(0) for block in blocks]).sum(0) / count for index in (0, 1))
    centred = [(x - mean_x, y - mean_y) for x, y in blocks]
    xx, xy, yy = (
        torch.stack([pair[left].T @ pair[right] for pair in centred]).sum(0) for left, right in ((0, 0), (0, 1), (1, 1))
    )
    return mean_x, mean_y, xx, xy, yy


def _paired(columns: Tensor) -> Tensor:
    """Every column, then its opposite: +, -, +, -, ..."""
    return torch.stack([columns, -columns], dim=2).flatten(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="a finished activation cache")
    parser.add_argument("out", type=Path, help="the folder to write layer_L/width_W/average_l0_N/params.npz into")
    parser.add_argument("--l0", type=int, default=16, help="features that fire on every token (16)")
    arguments = parser.parse_args()
    truth = make(arguments.cache, arguments.out, l0=arguments.l0)
    print(f"{truth.path}: L0 is {truth.l0} and FVU {truth.fvu:.4f} on the cache's held-out rows")


if __name__ == "__main__":
    main()
