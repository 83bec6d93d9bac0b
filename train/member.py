"""One transcoder in training: its state, its folder, its log and its checkpoints.

``train/run.py`` hands it batches in order; several members of a sweep share them.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader
from common import disk
from common.errors import NumericalError
from common.sealed.tensors import FileSeal
from train.arrays.units import Units
from train.config import LogSettings
from train.context import TrainingContext
from train.kinds.kind import RunState
from train.kinds.registry import kind_of
from train.record.activation_samples import SAMPLES_FOLDER, samples_folder, write_samples
from train.record.checkpoint import CHECKPOINTS_FOLDER, Checkpoints, Restored
from train.record.identity import RunIdentity
from train.record.log import LOG_FILE, MetricsLog, WandbMirror
from train.record.overfitting import OverfittingWatch
from train.record.step_metrics import StepMetrics
from train.resolved import ResolvedSettings
from transcoder.formats.native import CONFIG_FILE, WEIGHTS_FILE, has_both_files, read_config

_SHOWN = ("l0", "dead", "loss")
_NO_LOG = FileSeal(0, "")


class Member:
    """One transcoder's training, from its newest checkpoint or from the start. Only rank 0 writes."""

    def __init__(self, folder: Path, settings: ResolvedSettings, *, context: TrainingContext, log: LogSettings) -> None:
        self.folder = folder
        self.settings = settings
        self._context = context
        self._writes = context.ranks.rank == 0
        self._kind = kind_of(settings, context)
        self._identity = run_identity(settings, reader=context.reader, units=context.units)
        self._checkpoints = Checkpoints(
            folder / CHECKPOINTS_FOLDER,
            identity=self._identity,
            keep=settings.keep,
            progress=context.progress,
            writes=self._writes,
            to_arrays=self._kind.arrays_of,
            from_arrays=self._kind.state_of,
        )
        restored = self._checkpoints.restore(device=context.home) or Restored(self._kind.first_state(), _NO_LOG)
        self.state = restored.state.dealt(context.shard, device=context.device)
        self._saved_step = self.state.step

        self._kind.prepare(self.state)
        self._first_bad = torch.tensor(-1, device=context.device)
        self._overfitting = OverfittingWatch()
        self._held_out_fvu: float | None = None
        self._samples = log.activation_samples
        if self._writes:
            self._log = MetricsLog(
                folder / LOG_FILE, seal=restored.log, step=self.state.step, progress=context.progress
            )
            self._mirror = WandbMirror(log, folder=folder, config=self._identity.record(), progress=context.progress)

    def take(
        self, source: Float[Tensor, "rows d_source"], *, target: Float[Tensor, "rows d_target"], batch: int
    ) -> dict[str, float]:
        """Train on batch ``batch``; returns the metrics to show, on most steps none. A batch that was done before is
        skipped.

        Raises NumericalError if loss or gradient is not finite; the last checkpoint stays as it was.
        """
        if batch < self.state.step:
            return {}
        assert batch == self.state.step, "batches come in order"
        metrics = self._kind.take(self.state, source, target=target)
        self._overfitting.add(metrics.batch_fvu[-1])

        step = self.state.step
        settings = self.settings
        is_logged = step % settings.log_every == 0 or step in (1, settings.steps)
        is_saved = step % settings.checkpoint_every == 0 or step == settings.steps
        self._check_finite(metrics, now=is_logged or is_saved or source.device.type == "cpu")
        line = metrics.as_dict() if is_logged else {}
        if line:
            self._record({"step": step, "tokens": self.state.tokens, **line})
        if is_saved:
            self._save(held_out_fvu=self._measure_held_out())
        if self._samples.every and step % self._samples.every == 0:
            self._write_samples()
        return self._shown(line) if is_logged or is_saved else {}

    def save(self) -> None:
        """Save the present state between two checkpoints; the log gets no line, so that it is the same with or without
        this.

        Raises NumericalError like ``take``, if a step that was not checked yet was not finite.
        """
        if self._saved_step < self.state.step < self.settings.steps:
            self._require_finite()
            self._save(held_out_fvu=None)

    def finish(self) -> dict[str, Any]:
        """Write the transcoder in the cache's units; its config.json, written last, says that the run is complete."""
        state = self._whole_state()
        if not self._writes:
            return self._config(state)
        if self.settings.save_best:
            state = self._checkpoints.best_state(device=self._context.home) or state
        config = self._kind.save(state, self.folder, config=self._config(state))
        self._mirror.close()
        return config

    @property
    def first_bad(self) -> int:
        """The first batch whose loss or gradient was not finite, -1 if there is none. Waits for the device."""
        return int(self._first_bad)

    def _check_finite(self, metrics: StepMetrics, *, now: bool) -> None:
        """Remember the first batch whose loss or gradient was not finite; ``now`` looks, and waits."""
        bad = ~(metrics.l2_loss + metrics.aux_loss + metrics.gradient_norm).isfinite()
        self._first_bad = torch.where(bad & (self._first_bad < 0), self.state.step - 1, self._first_bad)
        if now:
            self._require_finite()

    def _require_finite(self) -> None:
        if (batch := self.first_bad) >= 0:
            raise NumericalError(
                f"The loss or gradient of batch {batch} is not finite.",
                where=self.folder,
                remedy=f"The checkpoint of step {self._saved_step} is intact." if self._saved_step else "",
            )

    def _record(self, line: Mapping[str, Any]) -> None:
        if self._writes:
            self._log.add(line)
            self._mirror.add(line)

    def _shown(self, line: Mapping[str, Any]) -> dict[str, float]:
        """What the progress line shows: the epoch, some of the step's metrics, and the last held-out FVU."""
        step = self.state.step
        # The most important first: a short line has no room for the last ones.
        shown = {"epoch": self._context.epochs(step, batch_rows=self.settings.batch_rows)}
        if "batch_fvu" in line:
            shown["batch_fvu"] = line["batch_fvu"]
        if self._held_out_fvu is not None:
            shown["held_out_fvu"] = self._held_out_fvu
        return shown | {name: line[name] for name in _SHOWN if name in line}

    def _measure_held_out(self) -> float | None:
        """Measure, record and return held-out FVU; None if there are no held-out rows. Notes over-fitting."""
        context = self._context
        if context.held_out is None:
            return None
        per_prefix = self._kind.held_out_fvu(self.state)
        step = self.state.step
        line = {"held_out_fvu": per_prefix[-1], "held_out_fvu_per_prefix": per_prefix}
        self._record({"step": step, "tokens": self.state.tokens, **line})
        self._held_out_fvu = per_prefix[-1]
        overfitting = self._overfitting.checkpoint(step=step, held_out_fvu=per_prefix[-1])
        if overfitting and self._writes:
            context.progress.note(overfitting)
        return per_prefix[-1]

    def _save(self, *, held_out_fvu: float | None) -> None:
        state = self._whole_state()
        if self._writes:
            # The log first: after a power cut the log must not be shorter than a checkpoint says.
            self._log.flush()
            self._checkpoints.save(state, log=self._log.seal, held_out_fvu=held_out_fvu)
        self._saved_step = self.state.step

    def _write_samples(self) -> None:
        """What features fire on now, from the weights and the cache; later steps do not change by it."""
        reader = self._context.reader
        state = self._whole_state()
        if self._writes and len(reader.split("held_out")):
            self._require_finite()
            for layer, arrays in self._kind.samples(state, self._samples).items():
                folder = samples_folder(self.folder, layer)
                write_samples(folder, arrays, step=state.step, tokens=state.tokens, settings=self._samples)

    def _whole_state(self) -> RunState:
        """The state of the whole dictionary. Every process takes part."""
        if self._context.shard.world == 1:
            return self.state
        return self.state.gathered(self._context.shard, dict_size=self.settings.dict_size)

    def _config(self, state: RunState) -> dict[str, Any]:
        """What config.json says of where the transcoder comes from. ``state`` is the one that is saved."""
        best = self._checkpoints.best
        saved = [entry.held_out_fvu for entry in self._checkpoints.entries if entry.step == state.step]
        return {
            **self._kind.facts(),
            **self._identity.record(),
            "tokens_trained": self.state.tokens,
            "steps": self.state.step,
            "saved_step": state.step,
            "held_out_fvu": saved[-1] if saved else None,
            "best_step": best.step if best else None,
            "dead": float((state.since_fired >= self.settings.dead_after_tokens).double().mean()),
            "completed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def remove_run(folder: Path) -> None:
    """Remove a run's files, config.json first, so that a half-removed run never looks complete."""
    for name in (CONFIG_FILE, WEIGHTS_FILE, CHECKPOINTS_FOLDER, LOG_FILE, SAMPLES_FOLDER):
        disk.remove(folder / name)


def run_identity(settings: ResolvedSettings, *, reader: CacheReader, units: Units) -> RunIdentity:
    """What makes two runs the same run."""
    return RunIdentity(settings, cache_fingerprint=reader.fingerprint, d_target=units.width)


def complete_config(folder: Path, identity: RunIdentity) -> dict[str, Any] | None:
    """config.json of a complete run; None if the run is not complete, or has fewer steps than the settings ask for.

    A run whose weights were removed is not complete: they are written again from its last checkpoint.
    Raises MismatchError for another run's.
    """
    if not has_both_files(folder):
        return None
    config = read_config(folder)
    return config if identity.is_of(config, location=folder / CONFIG_FILE) else None
