"""Collects the evidence of one trained transcoder, and writes it with its pages into a folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cache.config import CacheSettings
from cache.open import open_cache
from cache.reader import CacheReader
from cache.storage.unembedding import Unembedding
from common import disk
from common.device import choose_device
from common.distributed import Ranks
from common.errors import UsageError
from common.progress import Progress
from evaluate.dashboard.write import write_dashboard
from evaluate.features.collect import block_starts, encode_part, evidence_of
from evaluate.features.config import FeatureSettings
from evaluate.features.evidence import Evidence, read_head, write_evidence
from evaluate.features.gather import gathered, share_of
from evaluate.features.history import formation_of
from evaluate.features.self_check import check_evidence
from evaluate.features.text.plots import plots
from evaluate.features.text.report import REPORT_FILE, as_markdown
from evaluate.reference import check_belongs
from transcoder.formats.native import CONFIG_FILE, load_transcoder
from transcoder.transcoder import Transcoder


def features_of_layer(
    *,
    cache: Path,
    transcoder: Path,
    out: Path,
    settings: FeatureSettings,
    device: str,
    progress: Progress,
    lm: str | None = None,
    force: bool = False,
    cache_settings: CacheSettings | None = None,
) -> dict[str, Any]:
    """What evidence.json says, having written the evidence into ``out``; the same in every process. Each encodes its
    share of the rows, and the first one does the rest.

    ``lm`` names the language model whose unembedding gives the logits; without it the one in the cache does, where
    the harvest stored one.
    Raises UsageError, DamagedError, MismatchError (a transcoder of another cache or width), NumericalError.
    """
    reader, trained = open_both(
        cache, transcoder, device=device, force=force, progress=progress, cache_settings=cache_settings
    )
    unembedding = read_logits(lm, reader, trained)
    # The samples of a training name rows of its own cache.
    is_its_cache = trained.config.get("cache_fingerprint") == reader.fingerprint
    formation = formation_of(transcoder, reader) if is_its_cache else None
    ranks = Ranks.current()
    starts = share_of(block_starts(reader, settings), ranks)
    blocks = encode_part(reader, trained, settings, starts, progress=progress)
    blocks = gathered(blocks, ranks, device=str(trained.W_dec.device))
    if ranks.rank == 0:
        evidence = evidence_of(blocks, reader, trained, settings, unembedding=unembedding, formation=formation)
        checked = check_evidence(evidence, reader, trained)
        write_all(out, replace(evidence, head={**evidence.head, "self_check": checked}), progress)
    ranks.wait()
    return read_head(out)


def open_both(
    cache: Path,
    transcoder: Path,
    *,
    device: str,
    force: bool,
    progress: Progress,
    cache_settings: CacheSettings | None = None,
) -> tuple[CacheReader, Transcoder]:
    """The cache and the transcoder, which must belong together unless ``force``; the transcoder on its device.

    Raises UsageError, DamagedError, MismatchError.
    """
    if not (transcoder / CONFIG_FILE).is_file():
        remedy = "Run harvest and train for this layer first, or name another run."
        raise UsageError("There is no trained transcoder here.", where=transcoder, remedy=remedy)
    device_name = str(choose_device(device))
    trained = load_transcoder(transcoder, progress=progress)
    reader = open_cache(cache, cache_settings, device=device_name, column=trained.column)
    check_belongs(trained, reader, path=transcoder, force=force)
    return reader, trained.to(device_name)


def read_logits(lm: str | None, reader: CacheReader, trained: Transcoder) -> Unembedding | None:
    """The unembedding of the language model ``lm``; without ``lm`` that in the cache, or None."""
    if not lm:
        # What an autoencoder of the source writes is no part of the residual stream.
        return reader.unembedding() if reader.has_unembedding and trained.column != "source" else None
    # Only here does evidence meet a language model; everything else runs without transformers.
    from harvest.model.unembedding import read_unembedding

    revision = reader.identity.get("model_revision")
    return read_unembedding(lm, width=trained.d_target, revision=revision)


def write_all(out: Path, evidence: Evidence, progress: Progress) -> None:
    """Write the evidence, the report with its plots, and then the pages, which ``write_dashboard`` removes before it
    writes new ones."""
    write_evidence(out, evidence)
    for name, data in (REPORT_FILE, as_markdown(evidence).encode()), *plots(evidence).items():
        disk.write_file(out / name, data)
    write_dashboard(out, evidence, progress=progress)
