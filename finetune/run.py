"""Fine-tunes trained dictionaries inside the language model that made their caches, and says what that bought.

    <runs>/<model>/finetune/<name>/state/, steps.jsonl                  while it runs: what a rerun goes on from
    <runs>/<model>/finetune/<name>/report/                              before and after, on held-out rows
    <runs>/<model>/layer08/transcoder/<name>/                           the result, of the form of every transcoder

No text is needed: contexts come from the training rows of the cache of the first layer.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cache.config import CacheSettings
from cache.open import open_cache
from cache.reader import CacheReader
from common import disk
from common.device import choose_device
from common.errors import MismatchError, NumericalError, UsageError
from common.progress import Progress
from common.run_layout import CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE, RunFolders
from evaluate.absorption.first_letter import absorption_scorer
from evaluate.config import EvaluateSettings
from evaluate.reference import check_belongs
from evaluate.report import report
from evaluate.spliced.splicer import Splicer, open_splicer
from evaluate.spliced.together import check_same_text
from finetune.compare import Comparison, comparison_table
from finetune.config import FinetuneSettings
from finetune.contexts import TrainText
from finetune.objective import Balance, Measured, Objective
from finetune.state import LOG_FILE, STATE_FOLDER, Progressed, State
from finetune.tuned import Tuned
from train.arrays.optim import learning_rate
from train.config import TrainSettings
from train.resolved import ResolvedSettings, resolve
from transcoder.formats.native import load_transcoder, read_config, save_transcoder

_TIMED_STEPS = 2
_OF_FILE = ("weights", "seal", "completed_at", "held_out_fvu", "best_step", "dead", "saved_step")
"""What a config.json says of its own file or of the training's last step; the result has its own."""
_FVU_LIMIT = 1.1
"""Above this many times the FVU before, a note says so: the KL divergence was bought with reconstruction."""


@dataclass(frozen=True)
class FinetuneRequest:
    """What to fine-tune: the transcoder ``name`` of each layer's ``folders``, into ``result``, working in ``work``."""

    folders: Mapping[int, RunFolders]
    name: str
    result: str
    work: Path
    lm: str
    device: str
    settings: FinetuneSettings
    evaluate: EvaluateSettings
    cache: CacheSettings


def finetune_layers(request: FinetuneRequest, *, fresh: bool, progress: Progress) -> dict[str, Any]:
    """Fine-tune, save every layer's transcoder, and return the comparison that is also written as a report.

    A rerun goes on where it was, to the same bits; a complete one is only compared again. Raises what evaluating with
    a language model raises, MismatchError for another run of that name, NumericalError for a loss that is not finite.
    """
    with disk.lock(request.work / ".lock"):
        if fresh:
            _remove(request)
        run = _Run(request, progress)
        if not run.is_complete():
            run.train()
            run.save()
        return run.compare()


def plan_finetune(request: FinetuneRequest, *, progress: Progress) -> dict[str, Any]:
    """What it would take, from a few timed steps; nothing is written. Raises what ``finetune_layers`` raises first."""
    run = _Run(request, progress)
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
    """Everything that a fine-tuning has open."""

    def __init__(self, request: FinetuneRequest, progress: Progress) -> None:
        self._request = request
        self._progress = progress
        self.device = str(choose_device(request.device))
        self._check_names()
        self._before = {
            layer: load_transcoder(folders.transcoder(request.name), progress=progress).on(self.device)
            for layer, folders in request.folders.items()
        }
        self._readers = {layer: self._open(layer) for layer in request.folders}
        check_same_text(self._readers)
        for layer, dictionary in self._before.items():
            where = request.folders[layer].transcoder(request.name)
            check_belongs(dictionary, self._readers[layer], where=where, force=False)
        self._splicer = open_splicer(request.lm, self._readers, device=request.device)
        self.text = TrainText.of(self._readers[min(self._readers)])
        self.settings = self._resolved()
        self._tuned = {layer: Tuned.begin(one, self._readers[layer]) for layer, one in self._before.items()}
        self._objective = self._make_objective(self._splicer)
        self._state = State(request.work, self._identity())
        self._at = Progressed(0, Balance())

    def is_complete(self) -> bool:
        """Whether every layer's result is there. Raises MismatchError where one is of another run."""
        results = [self._result_folder(layer) for layer in self._request.folders]
        if not all((folder / CONFIG_FILE).is_file() for folder in results):
            return False
        for layer, folder in zip(self._request.folders, results, strict=True):
            _check_same(read_config(folder).get("finetuned"), self._identity(), where=folder)
            done = load_transcoder(folder).on(self.device)
            self._tuned[layer].transcoder = done
        return True

    def train(self) -> None:
        """All steps that are left."""
        self._at = self._state.restore(self._tuned)
        settings = self._request.settings
        self._progress.begin("fine-tune", total=self.settings.steps, unit="steps", done=self._at.step)
        while self._at.step < self.settings.steps:
            line = self.step(self._at.step)
            self._at.step += 1
            shown: dict[str, float] = {}
            if self._at.step % settings.log_every == 0 or self._at.step == self.settings.steps:
                self._state.add_line({"step": self._at.step, **line})
                shown = {name: line[name] for name in ("kl", "fvu")}
            if self._at.step % settings.checkpoint_every == 0 or self._at.step == self.settings.steps:
                self._state.save(self._tuned, self._at)
            self._progress.advance(1, **shown)
        self._progress.end()

    def step(self, step: int) -> dict[str, Any]:
        """One step; what there is to log of it."""
        settings = self._request.settings
        contexts = self.text.batch(
            step, contexts=settings.batch_contexts, seed=settings.seed, device=str(self._splicer.model.device)
        )
        found = self._objective.measure(contexts, step)
        kl = {layer: one.in_training_units(found.gradients_kl[layer]) for layer, one in self._tuned.items()}
        fvu = {layer: one.in_training_units(found.gradients_fvu[layer]) for layer, one in self._tuned.items()}
        norms = {"kl": _norm(kl), "fvu": _norm(fvu)}
        self._require_finite(found, norms, step)
        scale = settings.kl_weight * self._at.balance.add(**norms)
        for layer, one in self._tuned.items():
            for name, gradient in fvu[layer].items():
                gradient.add_(kl[layer][name], alpha=scale)
            one.update(fvu[layer], settings=self.settings, step=step)
        return {
            "kl": found.kl,
            "fvu": found.fvu,
            "prefix": found.prefix,
            "kl_scale": scale,
            "lr": learning_rate(self.settings, step),
        }

    def save(self) -> None:
        """Write every layer's result; config.json comes last in each."""
        tokens = self.settings.steps * self._request.settings.batch_contexts * self.text.context
        for layer, one in self._tuned.items():
            before = self._before[layer]
            kept = {key: value for key, value in before.config.items() if key not in _OF_FILE}
            config = kept | {
                "finetuned": self._identity() | {"tokens": tokens, "steps": self.settings.steps},
                "completed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            save_transcoder(one.transcoder, self._result_folder(layer), config=config)

    def compare(self) -> dict[str, Any]:
        """The comparison, written with its table."""
        after = {layer: one.transcoder.requires_grad_(False) for layer, one in self._tuned.items()}
        comparison = Comparison(
            splicer=self._splicer,
            readers=self._readers,
            absorption={
                layer: absorption_scorer(self._readers[layer], folders.probe(), side=after[layer].side)
                for layer, folders in self._request.folders.items()
            },
            settings=self._request.evaluate,
            device=self.device,
            progress=self._progress,
        )
        metrics = {
            "version": report.VERSION,
            "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "before": self._request.name,
            "after": self._request.result,
            "finetuned": self._identity(),
            **comparison.compared(self._before, after),
        }
        self._note_fvu(metrics)
        files = {METRICS_FILE: report.as_json(metrics), "summary.txt": comparison_table(metrics).encode() + b"\n"}
        report.write_report(self._request.work / "report", files)
        return metrics

    def _note_fvu(self, metrics: Mapping[str, Any]) -> None:
        for entry in metrics["layers"]:
            old, new = (entry[which]["fvu_per_prefix"][-1] for which in ("before", "after"))
            if new > _FVU_LIMIT * old:
                what = f"layer {entry['layer']}: FVU rose from {old:.4f} to {new:.4f}"
                self._progress.note(f"{what}: lower finetune.kl_weight or finetune.lr to keep more of it")

    def _open(self, layer: int) -> CacheReader:
        return open_cache(
            self._request.folders[layer].cache,
            self._request.cache,
            device=self.device,
            side=self._before[layer].side,
        )

    def _make_objective(self, splicer: Splicer) -> Objective:
        variances: dict[int, float] = {}
        for layer, reader in self._readers.items():
            target = reader.statistics.target
            assert target is not None
            variances[layer] = target.variance_sum
        transcoders = {layer: one.transcoder for layer, one in self._tuned.items()}
        return Objective(splicer, transcoders, variances, self._request.settings.seed)

    def _resolved(self) -> ResolvedSettings:
        """Training's settings of the update: its default rate, lowered; from the warm-up on it falls to 0."""
        settings = self._request.settings
        tokens = settings.batch_contexts * self.text.context
        steps = max(1, settings.tokens // tokens)
        first = next(iter(self._before.values()))
        warmup = min(settings.warmup_steps, steps // 2)
        stated = TrainSettings(
            prefixes=first.prefixes,
            top_k=1,
            steps=steps,
            warmup_steps=warmup,
            lr=settings.lr or 0.004 / first.d_target**0.5,
        )
        return resolve(stated, model="", d_target=first.d_target)

    def _identity(self) -> dict[str, Any]:
        """What determines every bit of the result, but the software."""
        unlogged = self._request.settings.model_dump(mode="json", exclude={"log_every", "checkpoint_every"})
        weights = {str(layer): one.config.get("weights") for layer, one in self._before.items()}
        caches = {str(layer): reader.fingerprint for layer, reader in self._readers.items()}
        return {"settings": unlogged, "from": self._request.name, "weights": weights, "caches": caches}

    def _result_folder(self, layer: int) -> Path:
        return self._request.folders[layer].transcoder(self._request.result)

    def _check_names(self) -> None:
        if self._request.result == self._request.name:
            raise UsageError("The result must not replace what it is made from.", remedy="Give another --as.")
        for folders in self._request.folders.values():
            folder = folders.transcoder(self._request.name)
            if not (folder / CONFIG_FILE).is_file():
                raise UsageError("There is no trained transcoder here.", where=folder, remedy="Train this layer first.")

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


def _check_same(record: Any, identity: Mapping[str, Any], *, where: Path) -> None:
    """Raises MismatchError where a result is of another fine-tuning, or of none."""
    known = record if isinstance(record, dict) else {}
    if any(known.get(key) != _from_json(value) for key, value in identity.items()):
        what = "There is another transcoder of this name: it was not made by this fine-tuning."
        raise MismatchError(what, where=where, remedy="Give the result another name (--as), or --fresh to replace it.")


def _from_json(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))


def _remove(request: FinetuneRequest) -> None:
    """What an earlier run of this result left; a transcoder of the name only where fine-tuning made it."""
    for folders in request.folders.values():
        folder = folders.transcoder(request.result)
        if (folder / CONFIG_FILE).is_file() and "finetuned" in read_config(folder):
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                disk.remove(folder / name)
    for name in (STATE_FOLDER, LOG_FILE):
        disk.remove(request.work / name)
