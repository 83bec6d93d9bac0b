"""A checkpoint gives back what was saved, to the last bit; a state of another run and a damaged one are refused."""

from pathlib import Path

import pytest
import torch

from common.errors import DamagedError, MismatchError
from finetune.objective import Balance
from finetune.state import LOG_FILE, STATE_FILE, STATE_FOLDER, Progressed, State
from finetune.tuned import Tuned
from train.arrays.optim import Moments
from train.arrays.parameters import Parameters
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


def made(seed: int) -> dict[int, Tuned]:
    piece = Transcoder(**random_arrays(4, 5, dict_size=8, seed=seed), rule=TopK(2)).requires_grad_()
    weights = Parameters(**{name: array.detach().clone() for name, array in piece.arrays().items()})
    factors = {name: torch.ones(1) for name in weights.tensors()}
    tuned = Tuned(piece, weights, Moments.zero(weights), factors)
    for array in (*tuned.moments.first.values(), *tuned.moments.second.values()):
        array.add_(seed + 1.0)
    return {3: tuned}


def test_a_restored_state_is_the_one_that_was_saved(tmp_path: Path) -> None:
    state = State(tmp_path, {"seed": 0})
    assert state.restore(made(0)).step == 0
    tuned = made(1)
    state.add_line({"step": 1})
    state.save(tuned, Progressed(5, Balance(kl=0.25, fvu=0.5, steps=5)))
    state.add_line({"step": 6})
    fresh = made(2)
    found = State(tmp_path, {"seed": 0}).restore(fresh)
    assert (found.step, found.balance) == (5, Balance(kl=0.25, fvu=0.5, steps=5))
    for name, array in tuned[3].weights.tensors().items():
        assert torch.equal(fresh[3].weights.tensors()[name], array)
        assert torch.equal(fresh[3].moments.second[name], tuned[3].moments.second[name])
        assert torch.equal(fresh[3].transcoder.arrays()[name], array)
    assert (tmp_path / LOG_FILE).read_text() == '{"step": 1}\n', "what is beyond the checkpoint is cut off"
    state.save(tuned, Progressed(6, Balance()))
    assert [path.name for path in (tmp_path / STATE_FOLDER).glob("step-*")] == ["step-00000006.safetensors"]


def test_a_process_that_does_not_write_only_reads(tmp_path: Path) -> None:
    State(tmp_path, {}).save(made(1), Progressed(2, Balance()))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    reading = State(tmp_path, {}, writes=False)
    assert reading.restore(made(2)).step == 2
    reading.add_line({"step": 3})
    reading.save(made(2), Progressed(3, Balance()))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_state_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    state = State(tmp_path, {"seed": 0})
    state.add_line({"step": 1})
    state.save(made(1), Progressed(1, Balance()))
    with pytest.raises(MismatchError, match="seed was 0, is now 1"):
        State(tmp_path, {"seed": 1}).restore(made(1))
    (tmp_path / LOG_FILE).write_text("")
    with pytest.raises(DamagedError, match="log is shorter"):
        state.restore(made(1))
    (tmp_path / STATE_FOLDER / STATE_FILE).write_text("{")
    with pytest.raises(DamagedError, match="cannot be read"):
        state.restore(made(1))
