"""One transcoder in training: its state, its folder, its log and its checkpoints.

The loop hands it batches in order; several runs may share them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader
from common import disk
from common.errors import NumericalError
from common.progress import Progress
from train.checkpoint import Checkpoints, Restored
from train.config import LogSettings
from train.held_out_fvu import HeldOut, held_out_fvu
from train.identity import RunIdentity
from train.initial import initial_weights
from train.log import LOG_FILE, MetricsLog, WandbMirror
from train.optim import Moments
from train.parameters import Parameters
from train.ranks import Ranks
from train.resolved import ResolvedSettings
from train.step import Figures, Recipe, State, train_step
from train.threshold import calibrated_rule
from train.units import Units
from train.workspace import Workspace
from transcoder.formats.native import CONFIG_FILE, WEIGHTS_FILE, read_config, save_transcoder
from transcoder.rules.registry import make_rule
from transcoder.sharded import Shard
from transcoder.transcoder import Transcoder


@dataclass(frozen=True)
class Surroundings:
    """What all transcoders of one reading share."""

    reader: CacheReader
    units: Units
    held_out: HeldOut | None
    device: str
    ranks: Ranks
    shard: Shard
    progress: Progress

    @property
    def home(self) -> str:
        """Where whole dictionaries live: not on the device where they are dealt over several."""
        return self.device if self.shard.world == 1 else "cpu"

    @property
    def data_ranks(self) -> Ranks:
        """The processes that read different rows: dealt a dictionary, all read the same."""
        return self.ranks if self.shard.world == 1 else Ranks()


class Run:
    """One transcoder's training, from its newest checkpoint or from the beginning. Only rank 0 writes."""

    def __init__(self, folder: Path, settings: ResolvedSettings, *, around: Surroundings, log: LogSettings) -> None:
        self.folder, self.settings, self._around = folder, settings, around
        self._identity = run_identity(settings, reader=around.reader, units=around.units)
        self._writes = around.ranks.rank == 0
        self._checkpoints = Checkpoints(
            folder / "checkpoints",
            identity=self._identity,
            keep=settings.keep,
            progress=around.progress,
            writes=self._writes,
        )
        restored = self._checkpoints.restore(device=around.home) or Restored(first_state(settings, around), 0)
        self.state = restored.state.dealt(around.shard, device=around.device)
        self._saved_step = self.state.step
        self._recipe = Recipe.of(settings, target_variance=float(around.units.target_mean.numel()))
        self._workspace = workspace_of(self.state.weights, settings)
        self._first_bad = torch.tensor(-1, device=around.device)
        if self._writes:
            self._log = MetricsLog(folder / LOG_FILE, size_bytes=restored.log_bytes)
            self._mirror = WandbMirror(log, folder=folder, config=self._identity.record(), progress=around.progress)

    def take(
        self, source: Float[Tensor, "rows d_source"], *, target: Float[Tensor, "rows d_target"], batch: int
    ) -> dict[str, Any] | None:
        """Step by batch ``batch``; the figures where they are logged. A batch taken before is passed over.

        Raises NumericalError when loss or gradient is not finite, leaving the last checkpoint as it was.
        """
        if batch < self.state.step:
            return None
        assert batch == self.state.step, "batches come in order"
        figures = train_step(
            self.state,
            source,
            target=target,
            recipe=self._recipe,
            workspace=self._workspace,
            ranks=self._around.data_ranks,
            shard=self._around.shard,
        )
        step, every = self.state.step, self.settings
        is_logged = step % every.log_every == 0 or step in (1, every.steps)
        is_saved = step % every.checkpoint_every == 0 or step == every.steps
        self._check(figures, now=is_logged or is_saved or source.device.type == "cpu")
        said = figures.said() if is_logged else None
        if said:
            self._record({"step": step, "tokens": self.state.tokens, **said})
        if is_saved:
            self._save(self._judged())
        return said

    def save(self) -> None:
        """Save where it stands, out of turn; the log is left alone, so that it stays what it would have been.

        Raises NumericalError as ``take``, where a step that nobody looked at yet was not finite.
        """
        if self._saved_step < self.state.step < self.settings.steps:
            self._require_finite()
            self._save(None)

    def finish(self) -> dict[str, Any]:
        """Write the transcoder in the cache's units; its config.json, written last, says that the run is complete."""
        state = self._whole()
        said = self._facts(state)
        if self._writes:
            said = save_transcoder(self._transcoder(state), self.folder, config=said)
            self._mirror.close()
        return said

    @property
    def first_bad(self) -> int:
        """The first batch whose loss or gradient was not finite, -1 where there is none. Waits for the device."""
        return int(self._first_bad)

    def _check(self, figures: Figures, *, now: bool) -> None:
        """Remember the first batch whose loss or gradient was not finite; ``now`` looks, and waits."""
        bad = ~(figures.l2_loss + figures.aux_loss + figures.gradient_norm).isfinite()
        self._first_bad = torch.where(bad & (self._first_bad < 0), self.state.step - 1, self._first_bad)
        if now:
            self._require_finite()

    def _require_finite(self) -> None:
        if (batch := self.first_bad) >= 0:
            raise NumericalError(
                f"loss or gradient of batch {batch} is not finite",
                where=self.folder,
                remedy=f"The checkpoint of step {self._saved_step} is intact" if self._saved_step else "",
            )

    def _record(self, line: Mapping[str, Any]) -> None:
        if self._writes:
            self._log.add(line)
            self._mirror.add(line)

    def _judged(self) -> float | None:
        """Record held-out FVU; None where there is nothing to judge by."""
        held_out = self._around.held_out
        if held_out is None:
            return None
        per_prefix = held_out_fvu(self.state.weights, held_out, nested=self._recipe.nested, shard=self._around.shard)
        said = {"held_out_fvu": per_prefix[-1], "held_out_fvu_per_prefix": per_prefix}
        self._record({"step": self.state.step, "tokens": self.state.tokens, **said})
        return per_prefix[-1]

    def _save(self, held_out_fvu: float | None) -> None:
        state = self._whole()
        if self._writes:
            self._checkpoints.save(state, log_bytes=self._log.size_bytes, held_out_fvu=held_out_fvu)
        self._saved_step = self.state.step

    def _whole(self) -> State:
        """The state of the whole dictionary. Every process takes part."""
        if self._around.shard.world == 1:
            return self.state
        assert self.settings.dict_size
        return self.state.whole(self._around.shard, dict_size=self.settings.dict_size)

    def _transcoder(self, state: State) -> Transcoder:
        """What has been trained, in the cache's units, with a threshold where the rule needs one."""
        settings, around = self.settings, self._around
        weights = around.units.folded(state.weights)
        rule = calibrated_rule(
            weights, self._recipe.nested.rule, around.reader, view=settings.source, device=around.home
        )
        return Transcoder.from_arrays(
            weights.tensors(), rule=rule, prefixes=settings.prefixes, source_view=settings.source
        )

    def _facts(self, state: State) -> dict[str, Any]:
        """What config.json says of where the transcoder comes from."""
        reader, best = self._around.reader, self._checkpoints.best
        return {
            **{key: reader.identity.get(key) for key in _FROM_CACHE},
            "gain": _numbers(reader, "gain"),
            "bias": _numbers(reader, "bias"),
            **self._identity.record(),
            "tokens_trained": self.state.tokens,
            "steps": self.state.step,
            "held_out_fvu": self._checkpoints.entries[-1].held_out_fvu if self._checkpoints.entries else None,
            "best_step": best.step if best else None,
            "dead": float((state.since_fired >= self.settings.dead_after_tokens).double().mean()),
            "completed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


_FROM_CACHE = ("model", "model_revision", "layer", "source_site", "target_site")


def first_state(settings: ResolvedSettings, around: Surroundings) -> State:
    """Where training begins: no feature has been silent yet."""
    weights = initial_weights(
        around.reader,
        around.units,
        dict_size=settings.dict_size,
        skip=settings.skip,
        view=settings.source,
        seed=settings.seed,
        device=around.home,
    )
    silent = torch.zeros(settings.dict_size, dtype=torch.int64, device=around.home)
    return State(weights, Moments.zero(weights), silent)


def remove_run(folder: Path) -> None:
    """Remove what a run has left, config.json first, so that no moment shows a complete run of nothing."""
    for name in (CONFIG_FILE, WEIGHTS_FILE, "checkpoints", LOG_FILE):
        disk.remove(folder / name)


def run_identity(settings: ResolvedSettings, *, reader: CacheReader, units: Units) -> RunIdentity:
    """What a run is known by."""
    return RunIdentity(settings, cache_fingerprint=reader.fingerprint, d_target=units.target_mean.numel())


def complete_config(folder: Path, identity: RunIdentity) -> dict[str, Any] | None:
    """config.json of a complete run; None where it is not complete, or complete with fewer steps than it shall have.

    Raises MismatchError for another run's.
    """
    if not (folder / CONFIG_FILE).is_file():
        return None
    config = read_config(folder)
    return config if identity.is_of(config, where=folder / CONFIG_FILE) else None


def workspace_of(weights: Parameters, settings: ResolvedSettings) -> Workspace:
    """Room for the run's steps."""
    dtype = torch.bfloat16 if settings.compute_dtype == "bfloat16" else None
    return Workspace.like(
        weights, rows=settings.batch_rows, dtype=dtype, rule=make_rule(settings.activation, settings.top_k)
    )


def _numbers(reader: CacheReader, name: str) -> list[float] | None:
    """A vector stored with the cache, as plain numbers."""
    return reader.arrays[name].astype(float).tolist() if name in reader.arrays else None
