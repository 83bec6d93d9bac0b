"""Imports a folder of activations as a cache: what is there, how much of it is held out, then the rows."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from cache.config import CacheSettings
from cache.format.manifest import make_geometry
from common import disk
from common.errors import UsageError
from common.progress import Progress
from harvest.config import Site
from harvest.elsewhere.folders import Paired, open_folder
from harvest.elsewhere.write import NO_TARGET, Batch, held_out_documents, write_cache
from harvest.model.sites import HOOKS


@dataclass(frozen=True)
class ImportRequest:
    """What to import: folders, what they are of, and where to. Sites are None where the files are to say them."""

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
    """Read all examples once, and write nothing. Raises UsageError, DamagedError for what cannot become a cache."""
    paired = _paired(request)
    sites = _sites(request, paired)
    counts = np.zeros(2, np.int64)
    examples = 0
    widths: set[tuple[int, int]] = set()
    progress.begin("read the folders", total=0, unit="examples")
    for number, given in enumerate(paired.batches()):
        batch = Batch.of(given, number=number)
        settings = request.settings
        apart = held_out_documents(batch.document, fraction=settings.held_out_fraction, seed=settings.split_seed)
        counts += np.bincount(apart, minlength=2)
        widths.add((batch.source.shape[1], batch.target.shape[1]))
        examples += 1
        progress.advance(1)
    progress.end()
    if len(widths) != 1 or not counts[0]:
        raise UsageError(f"The examples have the widths {sorted(widths)} and {counts[0]} rows.", where=request.source)
    ((d_source, d_target),) = widths
    sizes = {"train_rows": int(counts[0]), "held_out_rows": int(counts[1])}
    geometry = make_geometry(request.settings, d_source=d_source, d_target=d_target, **sizes, parts=1)
    return ImportPlan(
        kind=paired.source.kind,
        source_site=sites[0],
        target_site=sites[1],
        examples=examples,
        **sizes,
        d_source=d_source,
        d_target=d_target,
        bytes=geometry.size_bytes,
        free_disk_bytes=disk.free_bytes(request.out),
    )


def import_folder(request: ImportRequest, progress: Progress) -> dict[str, Any]:
    """Import it; a rerun goes on. Raises as ``plan_import`` and ``write_cache``."""
    plan = plan_import(request, progress)
    paired = _paired(request)
    facts = {"from": plan.kind, "files": [path.name for path in paired.source.files][:1000]}
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
        facts=facts,
        settings=request.settings,
        progress=progress,
    )
    return done | asdict(plan)


def _paired(request: ImportRequest) -> Paired:
    def opened(path: Path | None) -> Any:
        return None if path is None else open_folder(path, layer=request.layer)

    return Paired(open_folder(request.source, layer=request.layer), opened(request.target), opened(request.tokens))


def _sites(request: ImportRequest, paired: Paired) -> tuple[str, str]:
    """The two sites, as given or as the files' hooks say. Raises UsageError where neither does."""
    source = _site(request.source_site, paired.source.hook, "--source-site", request)
    if paired.target is None:
        return source, NO_TARGET
    return source, _site(request.target_site, paired.target.hook, "--target-site", request)


def _site(given: str | None, hook: str, option: str, request: ImportRequest) -> str:
    if given is not None:
        return given
    for site, template in HOOKS.items():
        if hook == template.format(layer=request.layer):
            return site
    known = ", ".join(get_args(Site))
    what = f"The files call their site {hook!r}." if hook else "The files do not say which site they are of."
    raise UsageError(what, where=request.source, remedy=f"Give {option}: {known}.")
