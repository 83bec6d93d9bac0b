"""The page that leads to the feature pages of every layer of a cross-layer transcoder, to be opened from disk too."""

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from common import disk
from common.run_layout import FEATURES_PAGE
from evaluate.features.evidence import read_evidence

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "table{border-collapse:collapse;width:100%}td,th{padding:.3rem .6rem;text-align:right}td{border-top:1px solid gray}"
    "td:first-child,th:first-child{text-align:left}.bar{display:flex;height:.8rem;min-width:9rem}"
    ".bar i{background:#47c}.bar i+i{background:#c74}"
)


def write_index(folder: Path, name: str, heads: Mapping[int, Mapping[str, Any]], pages: Mapping[int, Path]) -> None:
    """Write it into ``folder``; ``heads`` are what each layer's evidence.json says, and ``pages`` its folder."""
    rows = [_row(layer, head, pages[layer], folder) for layer, head in heads.items()]
    first = next(iter(heads.values()))
    model = escape(str(first["cache"]["model"]).rstrip("/").split("/")[-1])
    heading = "".join(
        f"<th>{title}</th>" for title in ("layer", "features", "that fired", "L0", "FVU", "own and later")
    )
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        f"<h1>{escape(name)}</h1>\n<p>Features of a cross-layer transcoder of {model}, by the layer that they read. "
        "FVU is that of all layers that they write to; the bar says how much of their decoders' squared norm goes to "
        f"their own layer and how much to later ones.</p>\n<table><thead><tr>{heading}</tr></thead><tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table></body></html>\n"
    )
    disk.write_file(folder / FEATURES_PAGE, text.encode())


def _row(layer: int, head: Mapping[str, Any], page: Path, folder: Path) -> str:
    arrays = read_evidence(page).arrays
    own = float(arrays["written_share"][:, 0].mean())
    address = Path(os.path.relpath(page / FEATURES_PAGE, folder)).as_posix()
    cells = [
        f'<a href="{escape(address)}">layer {layer}</a>',
        f"{len(arrays['firings']):,}",
        f"{int((arrays['firings'] > 0).sum()):,}",
        f"{head['l0']:.1f}",
        f"{head['fvu_per_prefix'][-1]:.4f}",
        f'<span class="bar" title="{own:.1%} to its own layer"><i style="width:{own:.1%}"></i>'
        f'<i style="width:{1 - own:.1%}"></i></span>',
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
