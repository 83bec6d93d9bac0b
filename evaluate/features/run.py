"""Takes the evidence of one trained transcoder and writes it, with the pages that show it, into a folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cache.config import CacheSettings
from cache.open import open_cache
from common import disk
from common.device import choose_device
from common.errors import UsageError
from common.progress import Progress
from evaluate.dashboard.write import write_dashboard
from evaluate.features.collect import collect_evidence
from evaluate.features.config import FeatureSettings
from evaluate.features.evidence import write_evidence
from evaluate.features.self_check import check_evidence
from evaluate.features.text.figures import figures
from evaluate.features.text.report import REPORT_FILE, as_markdown
from evaluate.reference import check_belongs
from transcoder.formats.native import CONFIG_FILE, load_transcoder


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
    trained = load_transcoder(transcoder, progress=progress)
    reader = open_cache(cache, cache_settings, device=place, side=trained.side)
    check_belongs(trained, reader, where=transcoder, force=force)
    trained = trained.to(place)

    unembedding = None
    if lm:
        # Only here does evidence meet a language model; everything else runs without transformers.
        from evaluate.features.unembedding import read_unembedding

        revision = reader.identity.get("model_revision")
        unembedding = read_unembedding(lm, width=trained.d_target, revision=revision)
    evidence = collect_evidence(reader, trained, settings, progress=progress, unembedding=unembedding)
    checked = check_evidence(evidence, reader, trained)
    evidence = replace(evidence, head={**evidence.head, "self_check": checked})
    write_evidence(out, evidence)
    for name, data in (REPORT_FILE, as_markdown(evidence).encode()), *figures(evidence).items():
        disk.write_file(out / name, data)
    write_dashboard(out, evidence, progress=progress)
    return dict(evidence.head)
