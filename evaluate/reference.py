"""The dictionary that ours is compared with: found, loaded, and made to read the rows of our cache.

For a dictionary trained on the normalised residual, the norm's gain and bias, which the cache has, are folded into its
encoder. That is the same as giving it (mlp_in - bias) / gain, and both dictionaries read the same rows.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache.reader import CacheReader
from common.distributed import Ranks
from common.errors import MismatchError, UsageError
from common.norm import NormAffine
from common.progress import Progress
from common.run_layout import WEIGHTS_FILE
from transcoder.formats.foreign import Wanted, read_foreign
from transcoder.formats.hub import HubRepository
from transcoder.formats.native import load_transcoder
from transcoder.formats.peers.gemma_scope import (
    MODEL,
    REPOSITORY,
    WIDTH,
    check_convention,
    check_widths,
    locate,
    read_gemma_scope,
)
from transcoder.norm import fold_gain
from transcoder.transcoder import Transcoder

DOWNLOAD = "download"
IMPORTED = "imported"
"""The key of config.json with the origin of an imported transcoder."""


@dataclass(frozen=True)
class Reference:
    """``label`` names its files: google_metrics.json, other_metrics.json. ``origin`` is where it was read.

    ``is_own_run``: it is one of our own runs, whose files say what it reads and which cache it was made for.
    """

    dictionary: Transcoder
    label: str
    origin: str
    is_own_run: bool = False

    def convention(self, l0: float, *, force: bool) -> str:
        """What its L0 on our rows tells about whether it gets the right input. Raises as ``check_convention``."""
        if self.is_own_run:
            return (
                f"{self.dictionary.name}: L0 is {l0:.1f}; one of our own runs, which reads what its config.json names"
            )
        return check_convention(self.dictionary, l0, force=force, location=self.origin)


@dataclass(frozen=True)
class CompareRequest:
    """What to compare with; ``force`` accepts doubtful cases."""

    gemma_scope: str | None = None
    against: Path | None = None
    force: bool = False


def open_reference(
    reader: CacheReader, *, evaluated: Transcoder, l0: float, request: CompareRequest, progress: Progress
) -> Reference:
    """The dictionary that ``--gemma-scope`` or ``--against`` names, reading what the cache stores.

    UsageError: both are given, or there is no such dictionary. DamagedError: wrong files. MismatchError: another model,
    layer, width or convention. DiskError: the download failed.
    """
    gemma_scope = request.gemma_scope
    against = request.against
    if gemma_scope is not None and against is not None:
        what = "Both --gemma-scope and --against were given."
        raise UsageError(what, remedy="Compare with one dictionary at a time.")
    wanted = Wanted(
        d_source=reader.d_source,
        d_target=reader.d_target,
        layer=int(reader.identity.get("layer", -1)),
        dict_size=evaluated.dict_size,
        l0=l0,
        force=request.force,
    )
    if gemma_scope is not None:
        path = _google_file(gemma_scope, wanted, progress)
        dictionary = read_gemma_scope(path, d_source=wanted.d_source, d_target=wanted.d_target)
        reference = Reference(dictionary, "google", str(path))
    else:
        assert against is not None
        reference = _read(against, wanted, reader)
    if reference.is_own_run:
        return reference
    return replace(reference, dictionary=reading_the_cache(reference.dictionary, reader))


def reading_the_cache(dictionary: Transcoder, reader: CacheReader) -> Transcoder:
    """The same dictionary, reading stored rows. Raises MismatchError if they do not contain its input."""
    source = reader.identity.get("source_site")
    target = reader.identity.get("target_site")
    read = dictionary.config.get("source_site", dictionary.source_view)
    reconstructed = dictionary.config.get("target_site", "mlp_out")
    if target != reconstructed:
        what = f"The cache's target is {target}; the dictionary reconstructs {reconstructed}."
        raise MismatchError(what, where=reader.path, remedy=f"Harvest with target {reconstructed}.")
    if source == read:
        # ``mlp_in`` makes the reader serve the stored rows, of whatever site.
        return dictionary.replaced(source_view="mlp_in")
    if source != "mlp_in" or read != "ln2_normalized":
        what = f"The cache's source is {source}; the dictionary reads {read}."
        remedy = f"Harvest with source {'mlp_in' if read == 'ln2_normalized' else read}."
        raise MismatchError(what, where=reader.path, remedy=remedy)
    norm = NormAffine.of_arrays(reader.arrays)
    if norm is None:
        what = "The cache has no gain of the norm, so the norm's input cannot be computed."
        raise MismatchError(what, where=reader.path, remedy="Harvest again.")
    return fold_gain(dictionary.replaced(source_view="ln2_normalized"), norm)


def check_belongs(trained: Transcoder, reader: CacheReader, *, path: Path, force: bool) -> None:
    """Raise MismatchError if the cache is not the one that the transcoder in ``path`` was made for."""
    widths = (reader.d_source, reader.d_target)
    if (trained.d_source, trained.d_target) != widths:
        what = f"The transcoder maps {trained.d_source} dimensions to {trained.d_target}, the cache has {widths}."
        raise MismatchError(what, where=path, remedy=f"The cache is {reader.path}.")
    if IMPORTED in trained.config:
        reading_the_cache(trained, reader)  # refuses other sites than those that its files named
    made_for = trained.config.get("cache_fingerprint")
    if made_for and made_for != reader.fingerprint and not force:
        what = f"The transcoder was trained on the cache {made_for}, this one is {reader.fingerprint}."
        raise MismatchError(what, where=path, remedy="Evaluate it on its own cache, or use --force.")


def reference_fields(reference: Reference) -> dict[str, Any]:
    """The reference's entries in a report, besides its metrics."""
    dictionary = reference.dictionary
    return {
        "name": dictionary.name,
        "origin": reference.origin,
        "dict_size": dictionary.dict_size,
        "top_k": dictionary.rule.row_limit,
        "nominal_l0": dictionary.nominal_l0,
        "tokens_trained": dictionary.tokens_trained,
    }


def _google_file(gemma_scope: str, wanted: Wanted, progress: Progress) -> Path:
    if gemma_scope != DOWNLOAD:
        return locate(Path(gemma_scope), layer=wanted.layer, dict_size=wanted.dict_size, l0=wanted.l0)
    assert wanted.d_source is not None
    assert wanted.d_target is not None
    assert wanted.dict_size is not None
    assert wanted.l0 is not None
    check_widths((WIDTH, WIDTH), (wanted.d_source, wanted.d_target), REPOSITORY)
    hub = HubRepository(progress=progress)
    ranks = Ranks.current()
    if ranks.rank:
        # By now the first process has the file, so it is not downloaded twice.
        ranks.wait()
    path, choice = hub.fetch_nearest(layer=wanted.layer, dict_size=wanted.dict_size, l0=wanted.l0)
    if not ranks.rank:
        ranks.wait()
    what = f"{choice.path} is nearest to {wanted.dict_size:,} features and an L0 of {wanted.l0:.1f}"
    progress.note(f"Gemma Scope ({MODEL}): {what}; the file is {path}.")
    return path


def _read(against: Path, wanted: Wanted, reader: CacheReader) -> Reference:
    """One of our own runs, or a file of another tool."""
    folder = against.parent if against.name == WEIGHTS_FILE else against
    if not (folder / WEIGHTS_FILE).is_file():
        return Reference(read_foreign(against, wanted), "other", str(against))
    trained = load_transcoder(folder)
    check_belongs(trained, reader, path=folder, force=wanted.force)
    return Reference(trained, "other", str(against), is_own_run=True)
