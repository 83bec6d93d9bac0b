"""Lent memory belongs to its borrower while any view of it exists; then it is lent again."""

import torch

from cache.storage.buffers import Buffers


def test_memory_is_lent_again_when_the_last_view_is_gone():
    buffers = Buffers(rows=8, pinned=False)
    first = buffers.lend(8, width=3, dtype=torch.float32)
    address = first.data_ptr()
    view = first[2:]
    del first
    assert buffers.lend(8, width=3, dtype=torch.float32).data_ptr() != address
    view.fill_(7)
    del view
    assert buffers.lend(5, width=3, dtype=torch.bfloat16).shape == (5, 3)
    addresses = {buffers.lend(8, width=3, dtype=torch.float32).data_ptr() for _ in range(9)}
    assert len(addresses) == 2, "no more than were ever lent at once"
