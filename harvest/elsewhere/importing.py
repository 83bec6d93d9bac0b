"""Imports a folder of activations as a cache: first it reads and counts the examples, then it writes the rows."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from cache.config import CacheSettings
from cache.partition import check_partition
from cache.writer import manifest_of
from common import disk
from common.errors import UsageError
from common.progress import Progress
from harvest.config import Site
from harvest.elsewhere.folders import Paired, open_folder
from harvest.elsewhere.write import NO_TARGET, Batch, check_batch, held_out_documents, identity_of, write_cache
from harvest.model.sites import HOOKS


@dataclass(frozen=True)
class ImportRequest:
    """What to import: the folders, their model and layer, and the new cache. A site of None is taken from the files."""

    source: Path
    target: Path | None
    tokens: Path | None
    out: Path
    model: str
    layer: int
    source_site: str | None
    target_site: str | None
    special_ids: tuple[int, ...]
    settings: CacheSettings


@dataclass(frozen=True)
class ImportPlan:
    """What an import would write."""

    kind: str
    source_site: str
    target_site: str
    examples: int
    train_rows: int
    held_out_rows: int
    d_source: int
    d_target: int
    bytes: int
    free_disk_bytes: int


def plan_import(request: ImportRequest, progress: Progress) -> ImportPlan:
    """Read and check all examples once, and write nothing.

    Raises UsageError, DamagedError and NumericalError for what cannot become a cache, MismatchError if another cache is
    in its folder, CapacityError if there is no room.
    """
    paired = _paired(request)
    sites = _sites(request, paired)
    counts = np.zeros(2, np.int64)
    examples = 0
    first: Batch | None = None
    progress.begin("read the folders", total=0, unit="examples")
    for number, given in enumerate(paired.batches()):
        batch = Batch.from_given(given, number=number)
        settings = request.settings
        apart = held_out_documents(batch.document, fraction=settings.held_out_fraction, seed=settings.split_seed)
        counts += np.bincount(apart, minlength=2)
        first = first or batch
        check_batch(batch, like=first, number=number, dtype=settings.dtype)
        examples += 1
        progress.advance(1)
    progress.end()
    if first is None or not counts[0]:
        raise UsageError("The folder has no rows to train on.", where=request.source)
    d_source, d_target = (first.source.shape[1], first.target.shape[1])
    sizes = {"train_rows": int(counts[0]), "held_out_rows": int(counts[1])}
    manifest = manifest_of(
        identity=identity_of(request.model, request.layer, *sites, facts=_facts(paired)),
        settings=request.settings,
        d_source=d_source,
        d_target=d_target,
        **sizes,
        special_ids=list(request.special_ids),
        arrays={},
    )
    check_partition(request.out, manifest)
    return ImportPlan(
        kind=paired.source.kind,
        source_site=sites[0],
        target_site=sites[1],
        examples=examples,
        **sizes,
        d_source=d_source,
        d_target=d_target,
        bytes=manifest.geometry.size_bytes,
        free_disk_bytes=disk.free_bytes(request.out),
    )


def import_folder(request: ImportRequest, progress: Progress) -> dict[str, Any]:
    """Import the folder; a rerun goes on. Raises as ``plan_import`` and ``write_cache``."""
    plan = plan_import(request, progress)
    paired = _paired(request)
    done = write_cache(
        request.out,
        paired.batches(),
        train_rows=plan.train_rows,
        held_out_rows=plan.held_out_rows,
        model=request.model,
        layer=request.layer,
        source_site=plan.source_site,
        target_site=plan.target_site,
        special_ids=request.special_ids,
        facts=_facts(paired),
        settings=request.settings,
        progress=progress,
    )
    return done | asdict(plan)


def _facts(paired: Paired) -> dict[str, Any]:
    # A folder may have a hundred thousand files; the manifest, which is read often, stays small.
    return {"from": paired.source.kind, "files": [path.name for path in paired.source.files][:1000]}


def _paired(request: ImportRequest) -> Paired:
    def opened(path: Path | None) -> Any:
        return None if path is None else open_folder(path, layer=request.layer)

    return Paired(open_folder(request.source, layer=request.layer), opened(request.target), opened(request.tokens))


def _sites(request: ImportRequest, paired: Paired) -> tuple[str, str]:
    """The two sites, as given or from the files' hooks. Raises UsageError if there is neither."""
    source = _site(request.source_site, paired.source.hook, "--source-site", request)
    # Safetensors files may have targets next to their sources, without a folder of targets.
    first = next(paired.batches(), {})
    if "target" not in first:
        return source, NO_TARGET
    hook = paired.target.hook if paired.target else ""
    return source, _site(request.target_site, hook, "--target-site", request)


def _site(given: str | None, hook: str, option: str, request: ImportRequest) -> str:
    if given is not None:
        return given
    for site, template in HOOKS.items():
        if hook == template.format(layer=request.layer):
            return site
    known = ", ".join(get_args(Site))
    what = f"The site {hook!r} of the files is not known." if hook else "The files do not name their site."
    raise UsageError(what, where=request.source, remedy=f"Give {option}: {known}.")
