"""Takes the evidence of one trained transcoder and writes it, with the pages that show it, into a folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cache.config import CacheSettings
from cache.reader import CacheReader
from common.device import choose_device
from common.errors import UsageError
from common.progress import Progress
from evaluate.features.collect import collect_evidence
from evaluate.features.config import FeatureSettings
from evaluate.features.evidence import write_evidence
from evaluate.features.self_check import check_evidence
from evaluate.reference import check_belongs, of_transcoder
from transcoder.transcoder import CONFIG_FILE, load_transcoder


def features_of_layer(
    *,
    cache: Path,
    transcoder: Path,
    out: Path,
    settings: FeatureSettings,
    device: str,
    lm: str | None,
    force: bool,
    progress: Progress,
    cache_settings: CacheSettings | None = None,
) -> dict[str, Any]:
    """What evidence.json says, having written the evidence into ``out``.

    ``lm`` names the language model whose unembedding gives the logits; without it there are none.
    Raises UsageError, DamagedError, MismatchError (a transcoder of another cache or width), NumericalError.
    """
    if not (transcoder / CONFIG_FILE).is_file():
        remedy = "Run harvest and train for this layer first, or name another run."
        raise UsageError("There is no trained transcoder here.", where=transcoder, remedy=remedy)
    place = str(choose_device(device))
    reader = CacheReader.open_near(cache, cache_settings, device=place)
    trained = load_transcoder(transcoder)
    check_belongs(trained, reader, where=transcoder, force=force)
    dictionary = of_transcoder(trained, name=transcoder.name).to(place)

    unembedding = None
    if lm:
        # Only here does evidence meet a language model; everything else runs without transformers.
        from evaluate.features.unembedding import read_unembedding

        revision = reader.identity.get("model_revision")
        unembedding = read_unembedding(lm, width=trained.d_target, revision=revision)
    evidence = collect_evidence(
        reader, dictionary, settings, origin=trained.config, progress=progress, unembedding=unembedding
    )
    checked = check_evidence(evidence, reader, dictionary)
    evidence = replace(evidence, head={**evidence.head, "self_check": checked})
    write_evidence(out, evidence)
    return dict(evidence.head)
