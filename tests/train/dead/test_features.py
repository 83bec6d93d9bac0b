"""When features count as dead, and for how many a step on a GPU reserves memory."""

import pytest
import torch

from train.dead.features import WINDOW, Dead, Room, count_tokens_, dead_count, room_for

ROWS = 32


def test_features_are_dead_when_they_were_silent_for_long_enough():
    since_fired = torch.tensor([0, 70, 20])
    count_tokens_(since_fired, torch.tensor([True, False, False]), tokens=29)
    assert dead_count(since_fired, after_tokens=100) == 0
    count_tokens_(since_fired, torch.tensor([False, False, False]), tokens=1)
    assert dead_count(since_fired, after_tokens=100) == 1
    assert Dead.among(since_fired, after_tokens=100, room=1, exact=True).features.tolist() == [1]


def test_the_dead_come_first_in_a_larger_array():
    since_fired = torch.tensor([5, 100, 0, 300, 7, 100])
    dead = Dead.among(since_fired, after_tokens=100, room=4, exact=False)
    assert dead.features.tolist() == [1, 3, 5, 0]
    assert dead.counts.tolist() == [True, True, True, False]
    assert float(dead.number()) == 3
    silent = dead.silent(torch.tensor([True, True, True, False, True, False]))
    assert silent.features[silent.counts].tolist() == [3, 5]


@pytest.mark.parametrize("exact", [False, True])
def test_values_are_given_to_dead_features_only(exact):
    since_fired = torch.tensor([5, 100, 0, 300])
    dead = Dead.among(since_fired, after_tokens=100, room=2 if exact else 4, exact=exact)
    array = torch.arange(8.0).view(4, 2)
    dead.give_(array, -torch.ones(len(dead.features), 2))
    assert array.tolist() == [[0, 1], [-1, -1], [4, 5], [-1, -1]]
    dead.give_(array, torch.zeros(len(dead.features), 2), mask=torch.arange(len(dead.features)) == 1)
    assert array.tolist() == [[0, 1], [-1, -1], [4, 5], [0, 0]]


def test_few_sizes_are_reserved():
    assert [room_for(count, dict_size=1000) for count in (0, 1, 64, 65, 512, 513)] == [0, 64, 64, 128, 512, 1000]


def steps(since_fired, *, after_tokens, first, room=None, interrupted=()):
    """The room of every step up to the 80th; asserts that it suffices. Some features fire again at times."""
    rooms = []
    room = room or Room.first(since_fired, after_tokens=after_tokens, batch_rows=ROWS)
    for step in range(first, 80):
        if step in interrupted:
            room = Room(*room.record())
        rooms.append(room.size_at(step, since_fired, after_tokens=after_tokens, batch_rows=ROWS))
        assert rooms[-1] >= dead_count(since_fired, after_tokens=after_tokens)
        interval = torch.ones(len(since_fired), dtype=torch.int64)
        interval[:40] = 1000  # never, in these steps
        interval[40:300] = 13
        count_tokens_(since_fired, (step + 1) % interval == 0, tokens=ROWS)
    return rooms


def test_there_is_always_room_and_an_interruption_does_not_change_it():
    after_tokens = 40 * ROWS
    rooms = steps(torch.zeros(2000, dtype=torch.int64), after_tokens=after_tokens, first=0)
    assert len(set(rooms)) > 2
    assert all(len(set(rooms[first : first + WINDOW])) == 1 for first in range(0, 80, WINDOW))
    again = steps(
        torch.zeros(2000, dtype=torch.int64), after_tokens=after_tokens, first=0, interrupted=(5, 16, 31, 32, 33, 70)
    )
    assert again == rooms


def test_a_checkpoint_without_a_room_has_enough_of_it():
    since_fired = torch.arange(0, 4000, 2)
    steps(since_fired, after_tokens=3000, first=21)
