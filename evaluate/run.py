"""Evaluates one trained transcoder on the held-out rows of its cache, and writes the report.

From the cache alone, with no language model and no network: everything in ``metrics.catalogue``, feature samples, and
absorption where a probe cache lies beside the cache. With ``lm``, the transcoder is spliced into the model as well;
with ``gemma_scope`` or ``against``, another dictionary is measured on the same rows.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from cache.config import CacheSettings
from cache.open import open_cache
from cache.reader import CacheReader
from common.device import choose_device
from common.distributed import Ranks
from common.errors import UsageError
from common.progress import Progress
from common.run_layout import CHECKPOINTS, CONFIG_FILE, METRICS_FILE, RunFolders
from evaluate.absorption.first_letter import absorption_scorer
from evaluate.compare import Comparison, compare, early_l0
from evaluate.config import EvaluateSettings
from evaluate.held_out import open_held_out
from evaluate.measure import Measurement, measure
from evaluate.memory import batch_rows_for
from evaluate.metrics.inputs import MetricInputs, Splice
from evaluate.reference import CompareRequest, Reference, check_belongs, open_reference
from evaluate.replay import Replay
from evaluate.report import report, samples
from evaluate.report.summary import summary
from evaluate.token_text import speller
from transcoder.formats.native import load_transcoder
from transcoder.transcoder import Transcoder

_DRAWS = "matplotlib.figure"
"""It takes half a second to import, and figures longer to draw: in a thread beside the replay and the comparison."""


def evaluate_layer(
    *,
    cache: Path,
    transcoder: Path,
    out: Path,
    settings: EvaluateSettings,
    device: str,
    progress: Progress,
    lm: str | None = None,
    gemma_scope: str | None = None,
    against: Path | None = None,
    force: bool = False,
    cache_settings: CacheSettings | None = None,
) -> dict[str, Any]:
    """The contents of metrics.json, written with its report into ``out``; the same in every process.

    ``lm`` names the language model to splice into, ``gemma_scope`` or ``against`` a dictionary to compare with, and
    ``force`` lets doubtful things pass (``CompareRequest``).
    Raises UsageError, DamagedError, MismatchError (a transcoder of another cache or width), CapacityError.
    """
    _check_trained(transcoder)
    device_name = str(choose_device(device))
    dictionary = load_transcoder(transcoder, progress=progress).on(device_name)
    reader = open_cache(cache, cache_settings, device=device_name, column=dictionary.column)
    check_belongs(dictionary, reader, path=transcoder, force=force)
    replay = Replay(open_held_out(reader), _batch_rows(settings, dictionary, device_name), device_name, progress)

    # Whatever may be refused is refused before hours go into replaying.
    request = CompareRequest(gemma_scope=gemma_scope, against=against, force=force)
    reference = _reference(request, dictionary, replay=replay, reader=reader, progress=progress)
    inputs = MetricInputs(
        dictionary=dictionary,
        held_out=replay.held_out,
        reader=reader,
        settings=settings,
        device=device_name,
        absorption=absorption_scorer(reader, RunFolders.of_cache(cache).probe(), column=dictionary.column),
        splice=_splice(lm, replay, reader, settings=settings, device=device) if lm else None,
    )
    _note_damaged_report(out, progress)

    with ThreadPoolExecutor(1, thread_name_prefix="figures") as background:
        background.submit(import_module, _DRAWS)
        measurement = measure(replay, inputs)
        metrics = _heading(reader, dictionary) | measurement.metrics
        drawn = background.submit(_plots, metrics)
        comparison = reference and compare(measurement, reference, replay=replay, inputs=inputs, force=force)
        if replay.ranks.rank == 0:
            files = _files(metrics, measurement, inputs) | drawn.result()
            if reference and comparison:
                files |= _comparison_files(comparison, files, label=reference.label)
            earlier = report.write_report(out, files)
            if earlier:
                progress.note(f"The earlier report was moved to {earlier}.")
    replay.ranks.wait()
    return metrics | ({"comparison": comparison.document} if comparison else {})


def _plots(metrics: dict[str, Any]) -> dict[str, bytes]:
    from evaluate.report.plots import plots

    return plots(metrics)


def _comparison_files(comparison: Comparison, files: dict[str, bytes], *, label: str) -> dict[str, bytes]:
    from evaluate.report.comparison import comparison_files

    return comparison_files(comparison, files, label=label)


def _check_trained(transcoder: Path) -> None:
    """Raises UsageError where no training has ended, and says whether one has begun."""
    if (transcoder / CONFIG_FILE).is_file():
        return
    if (transcoder / CHECKPOINTS).is_dir():
        raise UsageError(
            "The training of this transcoder is not finished: its weights are written at its end.",
            where=transcoder,
            remedy="Wait for it, or run train again, which goes on from the last checkpoint; then evaluate.",
        )
    remedy = "Run harvest and train for this layer first, or name another run."
    raise UsageError("There is no trained transcoder here.", where=transcoder, remedy=remedy)


def _note_damaged_report(out: Path, progress: Progress) -> None:
    """Whatever is wrong with an earlier report is no reason not to write a new one."""
    _, problem = report.read_earlier(out)
    if problem:
        progress.note(f"The earlier report in {out} is damaged: {problem}. It is moved aside anyway.")


def _reference(
    request: CompareRequest, evaluated: Transcoder, *, replay: Replay, reader: CacheReader, progress: Progress
) -> Reference | None:
    """The dictionary to compare with, where one is asked for, found and seen to be rightly fed."""
    if request.gemma_scope is None and request.against is None:
        return None
    reference = open_reference(
        reader, evaluated=evaluated, l0=early_l0(replay, evaluated), request=request, progress=progress
    )
    l0 = early_l0(replay, reference.dictionary.on(replay.device))
    progress.note(f"{reference.convention(l0, force=request.force)} (on a few rows).")
    return reference


def _splice(model: str, replay: Replay, reader: CacheReader, *, settings: EvaluateSettings, device: str) -> Splice:
    """Raises MismatchError for another model than the cache's."""
    # Only here does evaluation meet a language model; everything else runs without transformers.
    from evaluate.spliced.loss import SplicedModel
    from evaluate.spliced.splicer import open_splicer

    splicer = open_splicer(model, {reader.identity["layer"]: reader}, device=device)
    return SplicedModel(splicer, reader, replay, settings).measure


def _batch_rows(settings: EvaluateSettings, dictionary: Transcoder, device: str) -> int:
    """The same in every process, so that batches are the same whatever the number of processes."""
    found = settings.batch_rows or batch_rows_for(dictionary, device)
    return Ranks.current().smallest(found, device)


def _heading(reader: CacheReader, dictionary: Transcoder) -> dict[str, Any]:
    """What was evaluated, on what, when."""
    known = ("model", "model_revision", "layer", "source_site", "target_site", "dataset", "context", "provenance")
    return {
        "version": report.VERSION,
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "transcoder": {
            "name": dictionary.name,
            "dict_size": dictionary.dict_size,
            "top_k": dictionary.rule.row_limit,
            "activation": dictionary.rule.name,
            "threshold": dictionary.rule.as_config().get("threshold"),
            "kind": dictionary.kind,
            "source_view": dictionary.source_view,
            "tokens_trained": dictionary.tokens_trained,
            "weights": dictionary.config.get("weights"),
        },
        "cache": {"fingerprint": reader.fingerprint} | {key: reader.identity.get(key) for key in known},
    }


def _files(metrics: dict[str, Any], measurement: Measurement, inputs: MetricInputs) -> dict[str, bytes]:
    """The report, by file name, but for its figures."""
    contexts = {name: array.cpu().numpy() for name, array in measurement.states["TopContexts"].items()}
    firings = measurement.states["Sparsity"]["firings"].cpu().numpy()
    dictionary = inputs.dictionary
    chosen = samples.chosen_features(
        firings, contexts["document"], groups=dictionary.groups, count=inputs.settings.samples_per_group
    )
    shown = samples.sample(
        inputs.held_out,
        dictionary,
        features=chosen,
        rows=contexts["row"],
        firings=firings,
        spell=speller(inputs.reader.arrays),
    )
    return {
        METRICS_FILE: report.as_json(metrics),
        "summary.txt": summary(metrics).encode(),
        "samples.json": report.as_json({"version": report.VERSION, "features": samples.as_json(shown)}),
        "samples.txt": samples.as_text(shown).encode(),
    }
