"""What ``make interop`` exports: the transcoder of a finished run, and an autoencoder trained here on the same cache.

OUT/...                 the transcoder, complete and one prefix of it, in every format
OUT/normalised/...      the same reading ln2.hook_normalized
OUT/autoencoder/...     one of mlp_out, in the formats for autoencoders
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import step

import nestcoder
from transcoder.formats.foreign import WRITERS
from transcoder.transcoder import Transcoder

OF_AUTOENCODERS = ("saelens", "saelens-jumprelu", "sparsify", "dictionary-learning")
_PREFIXED = ("saelens", "saelens-jumprelu", "sparsify", "circuit-tracer")
_AUTOENCODER = "autoencoder"
_STEPS = 200
"""Enough for features that differ; what is compared is arithmetic, not quality."""


@dataclass(frozen=True)
class Exported:
    """What was written: the record of each folder (relative to ``out``), and the dictionary that it was made of."""

    out: Path
    records: dict[str, dict[str, Any]]
    transcoder: Transcoder
    autoencoder: Transcoder

    def made_of(self, folder: str) -> Transcoder:
        """The dictionary that this folder was exported from."""
        return self.autoencoder if folder.startswith(f"{_AUTOENCODER}/") else self.transcoder


def export(*, model: Path, runs: Path, layer: int, name: str, out: Path, keep: bool) -> Exported:
    """Train the autoencoder and write every folder; with ``keep`` the files of an earlier call are used."""
    own_runs = out.parent / "runs"
    folder = runs / model.name / f"layer{layer:02d}"
    settings = nestcoder.load_settings(overrides=[f"model={model}", f"runs={runs}"])
    autoencoders = nestcoder.load_settings(
        overrides=[f"model={model}", f"runs={own_runs}", "train.kind=sae", "train.side=target", f"train.steps={_STEPS}"]
    )
    layer_folder = own_runs / model.name / f"layer{layer:02d}"
    with step(f"training an autoencoder of mlp_out, {_STEPS} steps, in {layer_folder}"):
        _borrow_cache(folder / "cache", layer_folder / "cache")
        nestcoder.run_train(autoencoders, [layer], name=_AUTOENCODER, device="cpu")
    transcoder = nestcoder.load_transcoder(folder / "transcoder" / name)
    kept = out / "records.json"
    if keep:
        records = json.loads(kept.read_text())
    else:
        second = {"prefix": transcoder.prefixes[min(1, len(transcoder.prefixes) - 1)]}
        normalised = {"source_view": "ln2_normalized"}
        records = {
            **_written(settings, out, out, name, layer, tuple(WRITERS), {}),
            **_written(settings, out, out, name, layer, _PREFIXED, second),
            **_written(settings, out, out / "normalised", name, layer, ("saelens", "saelens-jumprelu"), normalised),
            **_written(autoencoders, out, out / _AUTOENCODER, _AUTOENCODER, layer, OF_AUTOENCODERS, {}),
        }
        kept.write_text(json.dumps(records, indent=1))
    autoencoder = nestcoder.load_transcoder(layer_folder / "transcoder" / _AUTOENCODER)
    return Exported(out, records, transcoder, autoencoder)


def _written(
    settings: nestcoder.PipelineSettings,
    out: Path,
    folder: Path,
    name: str,
    layer: int,
    to: tuple[str, ...],
    wish: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Records of one export by their folders below ``out``."""
    wishes = ", ".join(f"{key} {value}" for key, value in wish.items())
    with step(f"exporting {name} to {', '.join(to)} {wishes}".rstrip()):
        results = nestcoder.run_export(
            settings, [layer], to=to, out=folder, name=name, device="cpu", fresh=True, **wish
        )
    return {str(Path(result["folder"]).relative_to(out)): result["layers"][str(layer)] for result in results}


def _borrow_cache(cache: Path, link: Path) -> None:
    """The cache of the run under another runs folder, so that nothing is written into the user's folder."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(cache.resolve())
