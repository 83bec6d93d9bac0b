"""The plan: its arithmetic agrees with what is then written and kept in memory."""

from dataclasses import asdict
from pathlib import Path

import pytest

from cache.reader import CacheReader
from common.distributed import Ranks
from common.errors import CapacityError
from common.progress import Silent
from tests.helpers.training import train
from train import plan as planning
from train.arrays.units import units_of
from train.config import LogSettings, TrainSettings
from train.plan import check_fit, disk_bytes, plan_train, resolved_members
from train.run import train_layer


def test_the_plan_agrees_with_the_run(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    out = tmp_path / "run"
    plan = plan_train(cache=small_cache, settings=quick, device="cpu", out=out)
    assert not out.exists()
    assert (plan.dict_size, plan.prefixes, plan.top_k, plan.transcoders) == (64, (16, 32, 64), 4, 1)
    assert plan.parameters == 64 * (12 + 8 + 1) + 8
    assert plan.epochs == pytest.approx(40 * 64 / 1000)
    assert plan.held_out_documents == 3
    assert 0 < plan.seconds < 600
    train(small_cache, out, quick)
    checkpoint = (out / "checkpoints" / "step-00000040.safetensors").stat().st_size
    arrays = 12 * plan.parameters + 8 * 64
    assert 0 < checkpoint - arrays < 2000
    assert plan.disk_bytes == 4 * arrays + 4 * plan.parameters


def test_a_sweep_is_planned_together(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    swept = TrainSettings.model_validate(quick.model_dump() | {"sweep": ({"name": "a"}, {"name": "b", "top_k": 2})})
    single = plan_train(cache=small_cache, settings=quick, device="cpu", out=tmp_path)
    three = plan_train(cache=small_cache, settings=swept, device="cpu", out=tmp_path)
    assert (three.transcoders, three.parameters) == (3, 3 * single.parameters)
    assert three.memory_bytes == 3 * single.memory_bytes
    assert set(asdict(three)) == set(asdict(single))


def test_files_of_a_complete_run_reduce_only_its_own_need_of_disk(
    small_cache: Path, tmp_path: Path, quick: TrainSettings
) -> None:
    _train(cache=small_cache, settings=quick, device="cpu", out=tmp_path)
    reader = CacheReader.open(small_cache)
    units = units_of(reader, quick.source)
    resolved = resolved_members(quick, reader, units, device_dtype="float32")
    needed = check_fit({"more": resolved[""]}, units=units, device="cpu", out=tmp_path)[1]
    assert needed == disk_bytes(resolved[""], units)
    assert check_fit(resolved, units=units, device="cpu", out=tmp_path)[1] < needed


def test_what_will_not_fit_is_refused(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    huge = TrainSettings.model_validate(quick.model_dump() | {"prefixes": (16, 1 << 30)})
    for ask in (plan_train, _train):
        with pytest.raises(CapacityError, match=r"Training needs \d+ GB of memory, but"):
            ask(cache=small_cache, settings=huge, device="cpu", out=tmp_path / "run")


def _train(*, cache: Path, settings: TrainSettings, device: str, out: Path) -> None:
    train_layer(
        cache=cache, out=out, settings=settings, device=device, fresh=False, progress=Silent(), log=LogSettings()
    )


def test_all_processes_compute_in_bfloat16_only_if_every_card_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "has_bfloat16", lambda _: True)
    assert planning.best_dtype("cuda") == "bfloat16"

    class OneWithout(Ranks):
        def smallest(self, number: int, device: object) -> int:
            return min(number, 0)

    assert planning.best_dtype("cuda", OneWithout()) == "float32"
