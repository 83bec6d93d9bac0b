"""What goes into a repository of the Hub, and getting it there.

    README.md                                        the card
    layer08/config.json, transcoder.safetensors      ours, byte for byte
    layer08/metrics.json                             the evaluation that the card quotes
    layers00-11/...                                  the same of a cross-layer transcoder; of a set the evaluation alone
    saelens/, sparsify/, ...                         what ``nestcoder export`` wrote, where it is given

The token is the Hub client's own (``hf auth login`` or HF_TOKEN); it is neither asked for nor kept here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import DamagedError, MismatchError, UsageError
from common.hub_errors import hub_errors
from common.progress import Progress
from common.reading import parse_json
from common.run_layout import CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE, RunFolders
from evaluate.joint.reports import newest_reports
from evaluate.publish.card import CardOf, PublishedExport, PublishedLayer, model_card
from evaluate.publish.joint_card import PublishedLayers, joint_card, set_lines
from transcoder.formats.cross_layer import load_cross_layer
from transcoder.formats.native import load_transcoder

_ADDRESS = re.compile(r"hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)")
_REMEDY = "Check the network, and run 'hf auth login' with a token that may write; then run it again."
_NO_REPORT = "There is no report of this transcoder: the card is written from it."
_EXPORT = "EXPORT.json"
_PAGES = ("neuronpedia", "delphi")
"""What an export writes without weights, and so without a record of what they cost."""


@dataclass(frozen=True)
class PublishRequest:
    """What to publish where. ``folders`` by layer, ``joint`` those of all of the layers at once, if they are several;
    ``exported`` is a folder that ``nestcoder export`` wrote."""

    to: str
    folders: Mapping[int, RunFolders]
    name: str
    license_name: str
    base_model: str | None = None
    exported: Path | None = None
    private: bool = False
    endpoint: str | None = None
    joint: RunFolders | None = None

    @property
    def cross_layer(self) -> Path | None:
        """Where the cross-layer transcoder of the layers lies, if it is one that is published."""
        folder = self.joint.transcoder(self.name) if self.joint else None
        return folder if folder and (folder / CONFIG_FILE).is_file() else None


@dataclass(frozen=True)
class Publication:
    """Everything that would be uploaded: files on this disk by their name there, and the card."""

    repository: str
    files: Mapping[str, Path]
    card: str
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])


def prepare(request: PublishRequest) -> Publication:
    """Check all that is to be uploaded, and write its card. Nothing leaves this machine.

    Raises UsageError for an address that is none, or a layer without transcoder or report; DamagedError for files that
    are not what was written; MismatchError for a report of other weights.
    """
    matched = _ADDRESS.fullmatch(request.to)
    if not matched:
        raise UsageError(f"'{request.to}' is not an address on the Hub.", remedy="Write hf:user/repository.")
    exported = _exported(request.exported)
    card = CardOf(matched[1], request.license_name, request.base_model, _exports(exported))
    folder = request.cross_layer
    files, text = _several_layers(request, card, folder) if folder else _single_layers(request, card)
    files |= exported
    sizes = {name: path.stat().st_size for name, path in sorted(files.items())}
    return Publication(matched[1], files, text, {"README.md": len(text.encode())} | sizes)


def _single_layers(request: PublishRequest, card: CardOf) -> tuple[dict[str, Path], str]:
    """Files and card of a dictionary for every layer; where all of them were measured at once, that too."""
    files: dict[str, Path] = {}
    layers: list[PublishedLayer] = []
    for layer, folders in request.folders.items():
        layers.append(_layer(layer, folders, request.name))
        report = folders.report(request.name) / METRICS_FILE
        files |= _files_of(f"layer{layer:02d}", folders.transcoder(request.name), report)
    of_all: list[str] = []
    report, found = _joint(request, {})
    # A report on all layers is no must, so one of other weights is left out.
    if found and found.fields.get("weights") == {str(layer.layer): layer.config.get("weights") for layer in layers}:
        files[f"{found.folder}/{METRICS_FILE}"] = report
        of_all = set_lines(found)
    return files, model_card(card, layers, of_all=of_all)


def _several_layers(request: PublishRequest, card: CardOf, folder: Path) -> tuple[dict[str, Path], str]:
    """Files and card of a cross-layer transcoder."""
    config = load_cross_layer(folder).config
    report, found = _joint(request, config)
    if not found:
        layers = " ".join(f"--layer {layer}" for layer in request.folders)
        remedy = f"Run 'nestcoder evaluate {layers} --name {request.name} --lm'."
        raise UsageError(_NO_REPORT, where=report, remedy=remedy)
    _check_weights(found.fields.get("weights"), config.get("weights"), report)
    return _files_of(found.folder, folder, report), joint_card(card, found)


def _joint(request: PublishRequest, config: Mapping[str, Any]) -> tuple[Path, PublishedLayers | None]:
    """The newest report on all layers that has the dictionary, and what it says of it; None where there is none."""
    if not request.joint:
        return Path(), None
    reports = newest_reports(request.joint.layer_folder / "report")
    if request.name not in reports:
        return request.joint.report(request.name) / METRICS_FILE, None
    report, metrics = reports[request.name]
    fields = metrics["dictionaries"][request.name]
    return report / METRICS_FILE, PublishedLayers(request.joint.layer_folder.name, config, metrics, fields)


def _files_of(inside: str, folder: Path, report: Path) -> dict[str, Path]:
    """A dictionary's files and its report, by their names in the folder ``inside`` of the repository."""
    return {f"{inside}/{file}": folder / file for file in (CONFIG_FILE, WEIGHTS_FILE)} | {
        f"{inside}/{METRICS_FILE}": report
    }


def push(publication: Publication, request: PublishRequest, progress: Progress) -> str:
    """Make the repository where it is missing and put everything into one commit; the page of the commit.

    Raises UsageError or DiskError in the Hub's place. Whatever fails, no half of a commit is there.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=request.endpoint)
    operations = [CommitOperationAdd("README.md", publication.card.encode())]
    operations += [CommitOperationAdd(name, path) for name, path in sorted(publication.files.items())]
    progress.begin(f"upload to {publication.repository}", total=len(operations), unit="files")
    with hub_errors("model", publication.repository, remedy=_REMEDY):
        api.create_repo(publication.repository, private=request.private, exist_ok=True)
        done = api.create_commit(
            publication.repository, operations, commit_message=f"Publish {request.name}, layers {_named(request)}"
        )
    progress.advance(len(operations))
    progress.end()
    return str(done.commit_url)


def _layer(layer: int, folders: RunFolders, name: str) -> PublishedLayer:
    config = load_transcoder(folders.transcoder(name)).config
    path = folders.report(name) / METRICS_FILE
    if not path.is_file():
        remedy = f"Run 'nestcoder evaluate --layer {layer} --name {name} --lm'."
        raise UsageError(_NO_REPORT, where=path, remedy=remedy)
    try:
        metrics: Any = parse_json(path.read_bytes())
    except (ValueError, RecursionError):
        raise DamagedError("The report cannot be read.", where=path, remedy="Evaluate again.") from None
    _check_weights(metrics["transcoder"].get("weights"), config.get("weights"), path)
    return PublishedLayer(layer, config, metrics)


def _check_weights(measured: Any, own: Any, path: Path) -> None:
    """Raises MismatchError where a report is of other weights, or, of an earlier release, does not say of which."""
    if measured != own:
        what = "The report is of other weights than the transcoder has now."
        what = what if measured else "The report does not say of which weights it is."
        raise MismatchError(what, where=path, remedy="Evaluate again.")


def _exported(folder: Path | None) -> dict[str, Path]:
    """The files of an export by their name below its folder: what lies with an EXPORT.json, and pages, and nothing else
    that may be there. Raises UsageError for a folder without any."""
    if folder is None:
        return {}
    tops = {path.parent for path in folder.rglob(_EXPORT)}
    tops |= {folder / name for name in _PAGES if (folder / name).is_dir()}
    if not tops:
        what = "There is no export here: EXPORT.json is missing."
        raise UsageError(what, where=folder, remedy="Write one: nestcoder export --layer 8 --to saelens FOLDER.")
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and not tops.isdisjoint(path.parents)
    }


def _exports(exported: Mapping[str, Path]) -> list[PublishedExport]:
    """What each EXPORT.json says of its folder. Raises DamagedError."""
    found: list[PublishedExport] = []
    for name, path in exported.items():
        if PurePosixPath(name).name != _EXPORT:
            continue
        try:
            document: Any = parse_json(path.read_bytes())
            layers = {int(layer): record for layer, record in document["layers"].items()}
            found.append(PublishedExport(str(PurePosixPath(name).parent), str(document["format"]), layers))
            found[-1].line()  # what the card will ask of it is there
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise DamagedError("The record of an export does not read.", where=path, remedy="Export again.") from None
    return found


def _named(request: PublishRequest) -> str:
    return ", ".join(str(layer) for layer in request.folders)
