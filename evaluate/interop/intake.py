"""Takes a dictionary of another tool into a run: read, held against the layer's cache where there is one, and saved.

From then on it is a transcoder like any: evaluated, shown, compared, exported. Its config.json says under ``imported``
where it came from, with the hashes of its files; without training settings, so ``train`` never goes on from it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache.config import CacheSettings
from cache.format.layout import ActivationName
from cache.format.manifest import MANIFEST
from cache.open import open_cache
from cache.reader import CacheReader
from common import disk
from common.device import choose_device
from common.errors import UsageError
from common.hashing import hash_file
from common.processes import locks
from common.progress import Progress
from common.run_layout import CHECKPOINTS, CONFIG_FILE, WEIGHTS_FILE
from evaluate.held_out import open_held_out
from evaluate.interop.fidelity import fidelity
from evaluate.memory import batch_rows_for
from evaluate.reference import IMPORTED, check_belongs, reading_the_cache
from evaluate.replay import Replay
from transcoder.formats.foreign import Wanted, files_of, read_named
from transcoder.formats.native import read_config, save_transcoder
from transcoder.formats.peers.gemma_scope import check_convention
from transcoder.transcoder import SourceView, Transcoder

# A few seconds' work, and enough to tell a dictionary that is fed rightly from one that is not.
_MEASURED_ROWS = 16_384


@dataclass(frozen=True)
class ImportRequest:
    """What to take: ``path`` for ``layer``, into the folder ``out``, whose cache lies in ``cache``.

    ``source_view`` says what the encoder reads, where the file's own word may mean two things. ``force`` takes one of
    another layer, or one whose L0 is not what its folder names; ``fresh`` replaces an earlier import.
    """

    path: Path
    layer: int
    out: Path
    cache: Path
    source_view: SourceView | None = None
    force: bool = False
    fresh: bool = False
    origin: str = ""
    """Where ``path`` was fetched from, if it was."""


def import_layer(
    request: ImportRequest,
    *,
    device: str,
    progress: Progress,
    cache_settings: CacheSettings | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """What config.json says, having written it and the weights into ``request.out`` (not on a ``dry_run``).

    UsageError: nothing there, or a run lies in ``out``. DamagedError: not what its layout promises. MismatchError:
    another layer or width, tensors that the cache does not hold, or more than one affine map and a selection.
    """
    refuse_another(request.out, fresh=request.fresh)
    wanted = Wanted(request.layer, force=request.force, source_view=request.source_view)
    layout, dictionary = read_named(request.path, wanted)
    reader, column = _cache(request.cache, dictionary, device=device, cache_settings=cache_settings)
    measured = None
    if reader:
        dictionary = fitted(dictionary, reader)
        check_belongs(dictionary, reader, path=request.path, force=request.force)
        measured = _measured(dictionary, reader, request, device=device, progress=progress)
    config = {
        **dictionary.config,
        **_of_cache(reader, column),
        "tokens_trained": dictionary.tokens_trained,
        IMPORTED: {
            "format": layout,
            "origin": request.origin or str(request.path),
            "files": {file.name: hash_file(file) for file in files_of(layout, request.path, wanted)},
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "measured": measured,
        },
    }
    if dry_run:
        return config | {"dict_size": dictionary.dict_size, "activation": dictionary.rule.name}
    if request.fresh:
        disk.remove(request.out / CONFIG_FILE)
    with locks.lock(request.out / ".lock"):
        return save_transcoder(dictionary, request.out, config=config)


def fitted(dictionary: Transcoder, reader: CacheReader) -> Transcoder:
    """The dictionary asking the reader for its own input. Raises MismatchError where the cache does not hold it."""
    reading_the_cache(dictionary, reader)  # refuses another source or target
    is_stored = reader.identity.get("source_site") == dictionary.config["source_site"]
    return dictionary.replaced(source_view="mlp_in") if is_stored else dictionary


def column_of(dictionary: Transcoder, sites: tuple[object, object]) -> ActivationName | None:
    """The side of a cache with these sites that an autoencoder reads; None for a transcoder, or where there is none."""
    site = dictionary.config["source_site"]
    if site != dictionary.config["target_site"]:
        return None
    return "source" if sites[0] == site else "target" if sites[1] == site else None


def _cache(
    folder: Path, dictionary: Transcoder, *, device: str, cache_settings: CacheSettings | None
) -> tuple[CacheReader | None, ActivationName | None]:
    """The layer's cache, where there is one, and, of an autoencoder, the side that it reads."""
    if not (folder / MANIFEST).is_file():
        return None, "source" if dictionary.config["source_site"] == dictionary.config["target_site"] else None
    device_name = str(choose_device(device))
    reader = open_cache(folder, cache_settings, device=device_name)
    sites = (reader.identity.get("source_site"), reader.identity.get("target_site"))
    column = column_of(dictionary, sites)
    return (open_cache(folder, cache_settings, device=device_name, column=column) if column else reader), column


def _of_cache(reader: CacheReader | None, column: ActivationName | None) -> dict[str, Any]:
    """Entries of config.json that the cache gives, because it is more reliable than the files."""
    kind = {"kind": "sae" if column else "transcoder", "side": column}
    if reader is None:
        return kind
    numbers = {name: reader.arrays[name].astype(float).tolist() for name in ("gain", "bias") if name in reader.arrays}
    return {
        **kind,
        "model": reader.identity.get("model"),
        "model_revision": reader.identity.get("model_revision"),
        **numbers,
    }


def _measured(
    dictionary: Transcoder, reader: CacheReader, request: ImportRequest, *, device: str, progress: Progress
) -> dict[str, Any]:
    """FVU and L0 on some held-out rows. Raises MismatchError where the L0 is far from what its folder names."""
    device_name = str(choose_device(device))
    there = dictionary.on(device_name)
    replay = Replay(open_held_out(reader), batch_rows_for(there, device_name), device_name, progress)
    found = fidelity(replay, there, rows=_MEASURED_ROWS)
    convention = check_convention(dictionary, found.l0[-1], force=request.force, location=str(request.path))
    progress.note(f"{convention}.")
    if found.fvu[-1] >= 1:
        progress.note(
            f"The FVU is {found.fvu[-1]:.2f}, no better than the mean's: is this dictionary of this model and layer?"
        )
    return {"rows": found.rows, **found.of_prefix(-1)}


def refuse_another(out: Path, *, fresh: bool) -> None:
    """Raises UsageError where a training lies in ``out``, or an earlier import that is not to be replaced."""
    if (out / CHECKPOINTS).is_dir():
        raise UsageError("This folder has a training run.", where=out, remedy="Import under another name.")
    if not (out / CONFIG_FILE).is_file():
        if (out / WEIGHTS_FILE).is_file():
            disk.remove(out / WEIGHTS_FILE)  # of an import that was broken off
        return
    if IMPORTED not in read_config(out):
        raise UsageError("This folder has a trained transcoder.", where=out, remedy="Import under another name.")
    if not fresh:
        what = "This folder has an imported transcoder."
        raise UsageError(what, where=out, remedy="Replace it with --fresh, or import under another name.")
