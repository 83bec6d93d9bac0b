"""Fine-tunes trained dictionaries inside the language model that made their caches, and measures the gain.

    <runs>/<model>/finetune/<name>/state/, steps.jsonl                  while it runs: what a rerun goes on from
    <runs>/<model>/finetune/<name>/report/                              before and after, on held-out rows
    <runs>/<model>/layer08/transcoder/<name>/                           the result, of the form of every transcoder
    <runs>/<model>/layers00-11/transcoder/<name>/                       that of a cross-layer transcoder

No text is needed: contexts come from the training rows of the first layer's cache. Several processes share the contexts
of a step; only the first of them writes.
"""

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from common import disk
from common.device import choose_device
from common.distributed import Ranks
from common.errors import MismatchError, NumericalError, UsageError
from common.processes import locks
from common.progress import Progress
from common.run_layout import CONFIG_FILE, LOCK_FILE, METRICS_FILE, WEIGHTS_FILE
from evaluate.held_out import open_held_out
from evaluate.replay import Replay
from evaluate.report import report
from evaluate.spliced.loss import SplicedModel
from evaluate.spliced.splicer import open_splicer
from finetune.compare import LayerMeasures, compared, comparison_table, in_language_model
from finetune.contexts import TrainText
from finetune.cross_layer import CrossLayerSubject
from finetune.in_model import InModel
from finetune.layer_set import LayerSet
from finetune.objective import Balance, Measured, Objective
from finetune.request import FinetuneRequest
from finetune.state import LOG_FILE, STATE_FOLDER, Progressed, State
from finetune.subject import Subject
from train.arrays.optim import learning_rate
from train.config import TrainSettings
from train.resolved import ResolvedSettings, resolve
from transcoder.formats.native import has_both_files, read_config

_TIMED_STEPS = 2
"""After one step to warm up."""
_FVU_LIMIT = 1.1
"""If FVU grows by more than this factor, a note says so: the gain in KL divergence cost too much reconstruction."""
_LR_SHARE = 0.1
"""Share of training's learning rate: these dictionaries are trained already."""


def finetune_layers(request: FinetuneRequest, *, fresh: bool, progress: Progress) -> dict[str, Any]:
    """Fine-tune, save the result, and return the comparison that is also written as a report; the same in every
    process.

    A rerun goes on and gives the same bits; a complete run is only compared again. Raises what evaluating with a
    language model raises, MismatchError for another run of that name, NumericalError for a loss that is not finite.
    """
    ranks = Ranks.current()
    with ExitStack() as stack:
        if ranks.rank == 0:
            stack.enter_context(locks.lock(request.work / LOCK_FILE))
            if fresh:
                _remove(request)
        ranks.wait()
        run = _Run(request, progress, ranks)
        if not run.is_complete():
            run.train()
            run.save()
        return run.compare()


def plan_finetune(request: FinetuneRequest, *, progress: Progress) -> dict[str, Any]:
    """What it would need, from a few timed steps; writes nothing. Raises what ``finetune_layers`` raises at its
    start."""
    run = _Run(request, progress, Ranks.current())
    run.step(0)  # warms up
    started = time.perf_counter()
    for step in range(1, 1 + _TIMED_STEPS):
        run.step(step)
    seconds = (time.perf_counter() - started) / _TIMED_STEPS
    contexts = request.settings.batch_contexts
    return {
        "layers": list(request.folders),
        "device": run.device,
        "context": run.text.context,
        "contexts_a_step": contexts,
        "steps": run.settings.steps,
        "tokens": run.settings.steps * contexts * run.text.context,
        "epochs": run.settings.steps * contexts / len(run.text.starts),
        "lr": run.settings.lr,
        "seconds": seconds * run.settings.steps,
    }


class _Run:
    """A fine-tuning and everything that it has open."""

    def __init__(self, request: FinetuneRequest, progress: Progress, ranks: Ranks) -> None:
        if request.settings.batch_contexts < ranks.world:
            what = f"Each of the {ranks.world} processes needs at least one context in every step; a step has "
            what += f"{request.settings.batch_contexts}."
            raise UsageError(what, remedy="Raise finetune.batch_contexts, or start fewer processes.")
        self._request = request
        self._progress = progress
        self._ranks = ranks
        self.device = str(choose_device(request.device))
        self._results = request.results()
        kind = CrossLayerSubject if request.joint else LayerSet
        self._subject: Subject = kind(request, device=self.device, progress=progress)
        self._readers = self._subject.readers
        self._splicer = open_splicer(request.lm, self._readers, device=request.device)
        self.text = TrainText.from_reader(self._readers[min(self._readers)])
        self.settings = self._resolved()
        self._objective = self._make_objective()
        self._state = State(request.work, self._identity(), writes=ranks.rank == 0)
        self._progressed = Progressed(0, Balance())

    def is_complete(self) -> bool:
        """Whether every layer's result is there. Raises MismatchError if one is of another run."""
        folders = list(dict.fromkeys(self._results.values()))
        if not all(has_both_files(folder) for folder in folders):
            return False
        for folder in folders:
            _check_same(read_config(folder).get("finetuned"), self._identity(), path=folder)
        return True

    def train(self) -> None:
        """All steps that are left."""
        self._progressed = self._state.restore(self._subject.tuned)
        settings = self._request.settings
        self._progress.begin("fine-tune", total=self.settings.steps, unit="steps", done=self._progressed.step)
        while self._progressed.step < self.settings.steps:
            line = self.step(self._progressed.step)
            self._progressed.step += 1
            shown: dict[str, float] = {}
            if self._progressed.step % settings.log_every == 0 or self._progressed.step == self.settings.steps:
                self._state.add_line({"step": self._progressed.step, **line})
                shown = {name: line[name] for name in ("kl", "fvu")}
            if self._progressed.step % settings.checkpoint_every == 0 or self._progressed.step == self.settings.steps:
                self._state.save(self._subject.tuned, self._progressed)
            self._progress.advance(1, **shown)
        self._progress.end()

    def step(self, step: int) -> dict[str, Any]:
        """Take one step; returns its line of the log."""
        settings = self._request.settings
        tuned = self._subject.tuned
        contexts = self.text.batch(
            step, contexts=settings.batch_contexts, seed=settings.seed, device=str(self._splicer.model.device)
        )
        found = self._objective.measure(contexts.dealt(self._ranks.rank, self._ranks.world), step)
        kl = {layer: piece.in_training_units(found.gradients_kl[layer]) for layer, piece in tuned.items()}
        fvu = {layer: piece.in_training_units(found.gradients_fvu[layer]) for layer, piece in tuned.items()}
        norms = {"kl": _norm(kl), "fvu": _norm(fvu)}
        self._require_finite(found, norms, step)
        scale = settings.kl_weight * self._progressed.balance.add(**norms)
        for layer, piece in tuned.items():
            for name, gradient in fvu[layer].items():
                gradient.add_(kl[layer][name], alpha=scale)
            piece.update(fvu[layer], settings=self.settings, step=step)
        return {
            "kl": found.kl,
            "fvu": found.fvu,
            "prefix": found.prefix,
            "kl_scale": scale,
            "lr": learning_rate(self.settings, step),
        }

    def save(self) -> None:
        """Write the result; its config.json comes last."""
        tokens = self.settings.steps * self._request.settings.batch_contexts * self.text.context
        if self._ranks.rank == 0:
            self._subject.save(
                {
                    "finetuned": self._identity() | {"tokens": tokens, "steps": self.settings.steps},
                    "completed_at": datetime.now(UTC).isoformat(timespec="seconds"),
                }
            )
        self._ranks.wait()

    def compare(self) -> dict[str, Any]:
        """The comparison, written with its table."""
        models = tuple(self._measured(which) for which in (self._subject.before, self._subject.result()))
        (old_model, old_layers), (new_model, new_layers) = models
        metrics = {
            "version": report.VERSION,
            "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "before": self._request.name,
            "after": self._request.result,
            "finetuned": self._identity(),
            **compared((old_model, new_model), (old_layers, new_layers)),
        }
        self._note_fvu(metrics)
        if self._ranks.rank == 0:
            files = {METRICS_FILE: report.as_json(metrics), "summary.txt": comparison_table(metrics).encode() + b"\n"}
            report.write_report(self._request.work / "report", files)
        self._ranks.wait()
        return metrics

    def _measured(self, dictionaries: InModel) -> tuple[dict[str, Any], dict[int, LayerMeasures]]:
        """In the language model, and layer by layer."""
        first = self._readers[min(self._readers)]
        replay = Replay(open_held_out(first), 1, self.device, self._progress)
        measuring = SplicedModel(self._splicer, first, replay, self._request.evaluate)
        means = {layer: open_held_out(reader).mean_target.float() for layer, reader in self._readers.items()}
        return in_language_model(dictionaries, measuring, means), self._subject.measured(dictionaries)

    def _note_fvu(self, metrics: Mapping[str, Any]) -> None:
        for entry in metrics["layers"]:
            old, new = (entry[which]["fvu_per_prefix"][-1] for which in ("before", "after"))
            if new > _FVU_LIMIT * old:
                what = f"Layer {entry['layer']}: FVU rose from {old:.4f} to {new:.4f}."
                self._progress.note(f"{what} Lower finetune.kl_weight or finetune.lr if that is too much.")

    def _make_objective(self) -> Objective:
        variances: dict[int, float] = {}
        for layer, reader in self._readers.items():
            target = reader.statistics.target
            assert target is not None
            variances[layer] = target.variance_sum
        return Objective(self._splicer, self._subject.current, variances, self._request.settings.seed, self._ranks)

    def _resolved(self) -> ResolvedSettings:
        """Training's settings for the update: a lower rate, which falls to 0 after the warm-up."""
        settings = self._request.settings
        tokens = settings.batch_contexts * self.text.context
        steps = max(1, settings.tokens // tokens)
        width = next(iter(self._readers.values())).d_target
        stated = TrainSettings(
            prefixes=next(iter(self._subject.before.pieces.values())).prefixes,
            top_k=1,
            steps=steps,
            warmup_steps=min(settings.warmup_steps, steps // 2),
            lr=settings.lr,
        )
        resolved = resolve(stated, model="", d_target=width)
        return resolved if settings.lr else resolved.model_copy(update={"lr": _LR_SHARE * resolved.lr})

    def _identity(self) -> dict[str, Any]:
        """What decides every bit of the result, except software and number of processes."""
        unlogged = self._request.settings.model_dump(mode="json", exclude={"log_every", "checkpoint_every"})
        caches = {str(layer): reader.fingerprint for layer, reader in self._readers.items()}
        return {
            "settings": unlogged,
            "from": self._request.name,
            "weights": self._subject.weights(),
            "caches": caches,
        }

    def _require_finite(self, found: Measured, norms: Mapping[str, float], step: int) -> None:
        if not all(map(_is_finite, (found.kl, found.fvu, *norms.values()))):
            raise NumericalError(
                f"The loss or gradient of step {step} is not finite.",
                where=self._request.work,
                remedy="The last checkpoint is intact. Lower finetune.lr, and start again with --fresh.",
            )


def _norm(gradients: Mapping[int, Mapping[str, torch.Tensor]]) -> float:
    """Of all arrays of all layers, as one vector."""
    squares = [gradient.square().sum() for arrays in gradients.values() for gradient in arrays.values()]
    return float(torch.stack(squares).sum().sqrt())


def _is_finite(value: float) -> bool:
    return value - value == 0.0


def _check_same(record: Any, identity: Mapping[str, Any], *, path: Path) -> None:
    """Raises MismatchError where a result is of another fine-tuning, or of none."""
    known = record if isinstance(record, dict) else {}
    if any(known.get(key) != _from_json(value) for key, value in identity.items()):
        what = "Another transcoder has this name: it was not made by this fine-tuning."
        raise MismatchError(what, where=path, remedy="Give the result another name (--as), or replace it with --fresh.")


def _from_json(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))


def _remove(request: FinetuneRequest) -> None:
    """Remove the files of an earlier run; a transcoder of that name only if fine-tuning made it."""
    for folder in dict.fromkeys(request.results().values()):
        if (folder / CONFIG_FILE).is_file() and "finetuned" in read_config(folder):
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                disk.remove(folder / name)
    for name in (STATE_FOLDER, LOG_FILE):
        disk.remove(request.work / name)
