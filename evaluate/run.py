"""Evaluates one trained transcoder on the held-out rows of its cache, and writes the report.

From the cache alone, with no language model and no network: fit, sparsity, redundancy, baselines, feature samples, and
absorption where a probe cache lies beside the cache. With ``lm``, the transcoder is spliced into the model as well;
with ``gemma_scope`` or ``against``, another dictionary is judged on the same rows.
"""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from cache.errors import MismatchError, UsageError
from cache.progress import Progress
from cache.reader import CacheReader
from evaluate import report, samples
from evaluate.absorption import fit_letter_probes, measure_absorption
from evaluate.config import EvaluateSettings
from evaluate.dictionary import Dictionary, SourceView
from evaluate.figures import figures
from evaluate.judge import Judgement, judge
from evaluate.memory import batch_rows_for
from evaluate.probe_set import probe_folder, read_probe_set
from evaluate.replay import Replay, open_held_out
from train.ranks import Ranks
from train.topk import select_above, select_topk
from train.transcoder import Transcoder, load_transcoder


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
) -> dict[str, Any]:
    """What metrics.json says, having written it with its report into ``out``; on every rank the same.

    Raises UsageError, DamagedError, MismatchError (a transcoder of another cache or width), CapacityError.
    """
    assert gemma_scope is None, "set by --gemma-scope"
    assert against is None, "set by --against"
    reader, trained = CacheReader.open(cache), load_transcoder(transcoder)
    check_belongs(trained, reader, force=force)
    place = resolved_device(device)
    dictionary = of_transcoder(trained, name=transcoder.name).to(place)
    replay = Replay(open_held_out(reader), _batch_rows(settings, dictionary, place), place, progress)
    judgement = judge(replay, dictionary, reader=reader, settings=settings)
    metrics = _heading(reader, trained, dictionary) | judgement.metrics
    metrics["documents"] = replay.held_out.documents
    metrics["absorption_first_letter"] = absorption(dictionary, reader)
    metrics["language_model"] = (
        _spliced(lm, replay, dictionary, reader=reader, mean=judgement.mean_target, settings=settings) if lm else None
    )
    files = _files(metrics, judgement, replay=replay, dictionary=dictionary, reader=reader, settings=settings)
    if replay.ranks.rank == 0:
        earlier = report.write_report(out, files)
        if earlier:
            progress.note(f"the earlier evaluation is now {earlier}")
    replay.ranks.wait()
    return metrics


def resolved_device(device: str) -> str:
    """``auto`` is the GPU where there is one. Raises UsageError for a GPU that is not there."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if cards else []), *(f"cuda:{card}" for card in range(cards))]
    if device != "auto" and device not in known:
        raise UsageError(f"there is no device {device}", remedy=f"On this machine: auto, {', '.join(known)}")
    return ("cuda" if cards else "cpu") if device == "auto" else device


def of_transcoder(trained: Transcoder, *, name: str) -> Dictionary:
    """A transcoder under its evaluation rule: top-k, or its calibrated threshold."""
    rule = (
        partial(select_topk, top_k=trained.top_k)
        if trained.threshold is None
        else partial(select_above, threshold=trained.threshold)
    )
    return Dictionary(
        name=name,
        weights=trained.weights,
        rule=rule,
        prefixes=trained.prefixes,
        source_view=cast("SourceView", trained.source_view),
        top_k=trained.top_k if trained.threshold is None else None,
        tokens_trained=trained.config.get("tokens_trained"),
    )


def check_belongs(trained: Transcoder, reader: CacheReader, *, force: bool) -> None:
    """Refuse rows that the transcoder was not made for. Raises MismatchError."""
    geometry = reader.manifest.geometry
    widths = (geometry.d_source, geometry.d_target)
    if (trained.d_source, trained.d_target) != widths:
        what = f"the transcoder maps {trained.d_source} dimensions to {trained.d_target}, the cache has {widths}"
        raise MismatchError(what, where=reader.path)
    made_for = trained.config.get("cache_fingerprint")
    if made_for and made_for != reader.fingerprint and not force:
        what = f"the transcoder was trained on the cache {made_for}, this one is {reader.fingerprint}"
        raise MismatchError(what, where=reader.path, remedy="Evaluate on its own cache, or use --force")


def absorption(dictionary: Dictionary, reader: CacheReader) -> dict[str, Any]:
    """From the probe cache beside the cache; a reason where there is none."""
    folder = probe_folder(reader.path)
    if not (folder / "probe.json").is_file():
        return {"score": None, "reason": "there is no probe cache: run 'nestcoder harvest --probe first-letter'"}
    words = read_probe_set(folder, fingerprint=reader.fingerprint)
    return measure_absorption(dictionary.to("cpu"), words, fit_letter_probes(words))


def _spliced(
    model: str,
    replay: Replay,
    dictionary: Dictionary,
    *,
    reader: CacheReader,
    mean: Float[Tensor, " d_target"],
    settings: EvaluateSettings,
) -> dict[str, Any]:
    # Only here does evaluation meet a language model; everything else runs without transformers.
    from evaluate.splice import Splicer, check_model, spliced
    from harvest.model import load_model

    loaded = load_model(model, device=replay.device, dtype=reader.identity.get("model_dtype", "auto"))
    check_model(loaded, reader)
    return spliced(
        replay,
        dictionary,
        splicer=Splicer(loaded, reader.identity["layer"], tuple(reader.special_ids)),
        reader=reader,
        mean=mean,
        tokens=settings.lm_tokens,
        replicates=settings.bootstrap,
        seed=settings.seed,
    )


def _batch_rows(settings: EvaluateSettings, dictionary: Dictionary, device: str) -> int:
    """The same on every rank, so that batches are the same whatever the number of ranks."""
    found = settings.batch_rows or batch_rows_for(dictionary, device)
    ranks = Ranks.current()
    if ranks.world == 1:
        return found
    least = torch.tensor([found], device=device)
    torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
    return int(least)


def _heading(reader: CacheReader, trained: Transcoder, dictionary: Dictionary) -> dict[str, Any]:
    """What was evaluated, on what, when."""
    known = ("model", "model_revision", "layer", "source_site", "target_site", "dataset", "context")
    return {
        "version": report.VERSION,
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "transcoder": {
            "name": dictionary.name,
            "dict_size": dictionary.dict_size,
            "top_k": dictionary.top_k,
            "activation": trained.activation,
            "threshold": trained.threshold,
            "source_view": dictionary.source_view,
            "tokens_trained": dictionary.tokens_trained,
            "weights": trained.config.get("weights"),
        },
        "cache": {"fingerprint": reader.fingerprint} | {key: reader.identity.get(key) for key in known},
    }


def _files(
    metrics: dict[str, Any],
    judgement: Judgement,
    *,
    replay: Replay,
    dictionary: Dictionary,
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
