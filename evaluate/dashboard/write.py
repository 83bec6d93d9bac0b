"""Writes the pages that show evidence: a folder to open from disk, with nothing else installed and no network.

index.html          what to open
pages/              style sheet and scripts, the same for every run
data/               index.js and the packs (``evaluate.dashboard.packs``)
"""

from collections.abc import Generator
from pathlib import Path

from common import disk
from common.progress import Progress
from common.run_layout import FEATURES_PAGE
from evaluate.dashboard.packs import PACK_FEATURES, index, packs, script
from evaluate.features.evidence import Evidence

DATA = "data"
_STATIC = Path(__file__).with_name("static")


def write_dashboard(folder: Path, evidence: Evidence, *, progress: Progress) -> None:
    """Write the pages into ``folder``; those of an earlier run go first, so that no pack of theirs is left."""
    disk.remove(folder / FEATURES_PAGE)
    disk.remove(folder / DATA)
    progress.begin("pages", total=evidence.dict_size, unit="features")
    disk.write_files(_data_files(folder, evidence, progress), tag="0")
    progress.end()
    disk.write_files(_static_files(folder), tag="0")


def _data_files(folder: Path, evidence: Evidence, progress: Progress) -> Generator[tuple[Path, tuple[bytes, ...]]]:
    yield folder / DATA / "index.js", (script("index", index(evidence)),)
    left = evidence.dict_size
    for name, data in packs(evidence):
        yield folder / DATA / f"{name}.js", (data,)
        done = min(left, PACK_FEATURES)
        progress.advance(done)
        left -= done


def _static_files(folder: Path) -> Generator[tuple[Path, tuple[bytes, ...]]]:
    for path in sorted(_STATIC.iterdir()):
        target = folder if path.name == FEATURES_PAGE else folder / "pages"
        yield target / path.name, (path.read_bytes(),)
