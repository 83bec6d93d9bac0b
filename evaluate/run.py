"""Evaluates one trained transcoder on the held-out rows of its cache, and writes the report.

From the cache alone, with no language model and no network: fit, sparsity, redundancy, baselines, feature samples, and
absorption where a probe cache lies beside the cache. With ``lm``, the transcoder is spliced into the model as well;
with ``gemma_scope`` or ``against``, another dictionary is judged on the same rows.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from cache.config import CacheSettings
from cache.open import open_cache
from cache.reader import CacheReader
from common.device import choose_device
from common.errors import UsageError
from common.progress import Progress
from evaluate.compare import Judged, compare, early_l0
from evaluate.config import EvaluateSettings
from evaluate.measure import Judgement, judge
from evaluate.memory import batch_rows_for
from evaluate.metrics.absorption import fit_letter_probes, measure_absorption
from evaluate.metrics.probe_set import probe_folder, read_probe_set
from evaluate.reference import Asked, Other, check_belongs, open_other
from evaluate.replay import Replay, open_held_out
from evaluate.report import report, samples
from evaluate.report.comparison import comparison_files
from evaluate.report.plots import figures
from evaluate.together import least, wait
from train.ranks import Ranks
from transcoder.formats.native import CONFIG_FILE, load_transcoder
from transcoder.transcoder import Transcoder

_NOT_TRAINED = "Run harvest and train for this layer first, or name another run."


def evaluate_layer(
    *,
    cache: Path,
    transcoder: Path,
    out: Path,
    settings: EvaluateSettings,
    device: str,
    lm: str | None,
    gemma_scope: str | None,
    against: Path | None,
    force: bool,
    progress: Progress,
    cache_settings: CacheSettings | None = None,
) -> dict[str, Any]:
    """What metrics.json says, having written it with its report into ``out``; on every rank the same.

    Raises UsageError, DamagedError, MismatchError (a transcoder of another cache or width), CapacityError.
    """
    if not (transcoder / CONFIG_FILE).is_file():
        raise UsageError("There is no trained transcoder here.", where=transcoder, remedy=_NOT_TRAINED)
    place = str(choose_device(device))
    reader = open_cache(cache, cache_settings, device=place)
    dictionary = load_transcoder(transcoder)
    check_belongs(dictionary, reader, where=transcoder, force=force)
    dictionary = dictionary.to(place)
    replay = Replay(open_held_out(reader), _batch_rows(settings, dictionary, place), place, progress)
    # Whatever may be refused is refused before hours go into replaying.
    asked = Asked(gemma_scope=gemma_scope, against=against, force=force)
    other = _opponent(asked, dictionary, replay=replay, reader=reader, progress=progress)
    absorption = absorption_scorer(reader, probe_folder(cache))
    splice = _splice(lm, replay, reader, settings=settings, device=device) if lm else None
    judgement = judge(replay, dictionary, reader=reader, settings=settings)
    metrics = _heading(reader, dictionary) | judgement.metrics
    metrics["documents"] = replay.held_out.documents
    metrics["absorption_first_letter"] = absorption(dictionary)
    metrics["language_model"] = splice(dictionary, judgement.mean_target) if splice else None
    comparison = other and compare(
        Judged(dictionary, judgement, metrics["absorption_first_letter"]),
        other,
        replay=replay,
        reader=reader,
        settings=settings,
        absorption=absorption,
        force=force,
    )
    if replay.ranks.rank == 0:
        files = _files(metrics, judgement, replay=replay, dictionary=dictionary, reader=reader, settings=settings)
        if other and comparison:
            files |= comparison_files(comparison, files, label=other.label)
        earlier = report.write_report(out, files)
        if earlier:
            progress.note(f"the earlier evaluation is now {earlier}")
    wait(replay.ranks)
    return metrics | ({"comparison": comparison.document} if comparison else {})


def _opponent(
    asked: Asked, ours: Transcoder, *, replay: Replay, reader: CacheReader, progress: Progress
) -> Other | None:
    """The dictionary to compare with, where one is asked for, found and seen to be rightly fed."""
    if asked.gemma_scope is None and asked.against is None:
        return None
    other = open_other(reader, ours=ours, l0=early_l0(replay, ours), asked=asked, progress=progress)
    said = other.convention(early_l0(replay, other.dictionary.to(replay.device)), force=asked.force)
    progress.note(f"{said} (a few rows)")
    return other


def absorption_scorer(reader: CacheReader, folder: Path) -> Callable[[Transcoder], dict[str, Any]]:
    """Scores dictionaries on the probe cache in ``folder``; gives a reason where there is none."""
    if not (folder / "probe.json").is_file():
        reason = "there is no probe cache: run 'nestcoder harvest --probe first-letter'"
        return lambda _: {"score": None, "reason": reason}
    words = read_probe_set(folder, fingerprint=reader.fingerprint)
    probes = fit_letter_probes(words)

    def score(dictionary: Transcoder) -> dict[str, Any]:
        source = reader.as_view(words.source, dictionary.source_view)
        return measure_absorption(dictionary.on("cpu"), replace(words, source=source), probes)

    return score


Splice = Callable[[Transcoder, Float[Tensor, " d_target"]], dict[str, Any]]
"""What the language model loses with a dictionary, and with the mean that is given, in place of its MLP."""


def _splice(model: str, replay: Replay, reader: CacheReader, *, settings: EvaluateSettings, device: str) -> Splice:
    """Raises MismatchError for another model than the cache's."""
    # Only here does evaluation meet a language model; everything else runs without transformers.
    from evaluate.splice import Splicer, check_model, spliced
    from harvest.model.language_model import load_model

    made_by = reader.identity
    loaded = load_model(
        model, device=device, dtype=made_by.get("model_dtype", "auto"), revision=made_by.get("model_revision")
    )
    check_model(loaded, reader)
    splicer = Splicer(loaded, reader.identity["layer"], tuple(reader.special_ids))

    def measure(dictionary: Transcoder, mean: Float[Tensor, " d_target"]) -> dict[str, Any]:
        """As ``Splice``; ``mean`` is in the target's units."""
        return spliced(
            replay,
            dictionary,
            splicer=splicer,
            reader=reader,
            mean=mean,
            tokens=settings.lm_tokens,
            replicates=settings.bootstrap,
            seed=settings.seed,
        )

    return measure


def _batch_rows(settings: EvaluateSettings, dictionary: Transcoder, device: str) -> int:
    """The same on every rank, so that batches are the same whatever the number of ranks."""
    found = settings.batch_rows or batch_rows_for(dictionary, device)
    return least(found, device=device, ranks=Ranks.current())


def _heading(reader: CacheReader, dictionary: Transcoder) -> dict[str, Any]:
    """What was evaluated, on what, when."""
    known = ("model", "model_revision", "layer", "source_site", "target_site", "dataset", "context")
    return {
        "version": report.VERSION,
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "transcoder": {
            "name": dictionary.name,
            "dict_size": dictionary.dict_size,
            "top_k": dictionary.rule.row_limit,
            "activation": dictionary.rule.name,
            "threshold": dictionary.rule.as_config().get("threshold"),
            "source_view": dictionary.source_view,
            "tokens_trained": dictionary.tokens_trained,
            "weights": dictionary.config.get("weights"),
        },
        "cache": {"fingerprint": reader.fingerprint} | {key: reader.identity.get(key) for key in known},
    }


def _files(
    metrics: dict[str, Any],
    judgement: Judgement,
    *,
    replay: Replay,
    dictionary: Transcoder,
    reader: CacheReader,
    settings: EvaluateSettings,
) -> dict[str, bytes]:
    contexts = {name: array.cpu().numpy() for name, array in judgement.states["contexts"].items()}
    firings = judgement.states["sparsity"]["firings"].cpu().numpy()
    chosen = samples.chosen_features(
        firings, contexts["document"], groups=dictionary.groups, count=settings.samples_per_group
    )
    shown = samples.sample(
        replay.held_out,
        dictionary,
        features=chosen,
        rows=contexts["row"],
        firings=firings,
        spell=samples.speller(reader.arrays),
    )
    return {
        report.METRICS_FILE: report.as_json(metrics),
        "summary.txt": report.summary(metrics).encode(),
        "samples.json": report.as_json({"version": report.VERSION, "features": samples.as_json(shown)}),
        "samples.txt": samples.as_text(shown).encode(),
        **figures(metrics),
    }
