"""Work that does not fit is done in halves, in order; errors other than lack of memory are raised."""

import pytest

from common.errors import CapacityError
from common.halving import Halving, is_out_of_memory
from tests.helpers.progress import Notes


def halving(notes: Notes) -> Halving:
    return Halving(notes, "rows", CapacityError("One row does not fit."))


@pytest.mark.parametrize("room", [1, 3, 8, 100])
def test_every_item_is_done_once_in_order(room: int) -> None:
    def work(first: int, stop: int) -> list[int]:
        if stop - first > room:
            raise MemoryError
        return list(range(first, stop))

    notes = Notes()
    pieces = list(halving(notes).run(work, 2, 25))
    assert [item for piece in pieces for item in piece] == list(range(2, 25))
    assert max(map(len, pieces)) <= room
    assert bool(notes.texts) == (room < 23)


def test_the_size_stays_halved() -> None:
    notes = Notes()
    shared = halving(notes)

    def work(first: int, stop: int) -> int:
        if stop - first > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return stop - first

    list(shared.run(work, 0, 16))
    told = len(notes.texts)
    assert max(shared.run(work, 0, 16)) == 4
    assert len(notes.texts) == told


def test_one_item_that_does_not_fit_is_refused_and_bugs_are_raised() -> None:
    def never(_first: int, _stop: int) -> None:
        raise MemoryError

    def bug(_first: int, _stop: int) -> None:
        raise RuntimeError("ours")

    with pytest.raises(CapacityError, match="One row"):
        list(halving(Notes()).run(never, 0, 9))
    with pytest.raises(RuntimeError, match="ours"):
        list(halving(Notes()).run(bug, 0, 9))
    assert not is_out_of_memory(RuntimeError("ours"))
