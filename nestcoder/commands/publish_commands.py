"""The ``publish`` command: shows the files and the card, or uploads them."""

from pathlib import Path
from typing import TYPE_CHECKING

from common.run_layout import check_of_one_layer, joint_folders
from common.units import in_bytes
from nestcoder.invocation import CommandResult, Invocation
from nestcoder.progress import shown_progress
from nestcoder.stages.folders import folders_of
from nestcoder.stages.joint import is_cross_layer

if TYPE_CHECKING:
    from evaluate.publish.upload import PublishRequest


def request_of(
    invocation: Invocation,
    layers: list[int],
    *,
    name: str,
    to: str,
    license_name: str,
    base_model: str | None,
    exported: Path | None,
    private: bool,
) -> "PublishRequest":
    """The request of the options."""
    from evaluate.publish.upload import PublishRequest

    settings = invocation.settings
    runs = Path(settings.runs)
    if not is_cross_layer(settings, layers, name):
        check_of_one_layer(runs, settings.model, layers, name)
    return PublishRequest(
        to=to,
        folders={layer: folders_of(settings, layer) for layer in layers},
        joint=joint_folders(runs, settings.model, layers) if len(layers) > 1 else None,
        name=name,
        license_name=license_name,
        base_model=base_model,
        exported=exported,
        private=private,
    )


def publish(request: "PublishRequest", *, really: bool) -> CommandResult:
    """Show what would be uploaded, and upload it if ``really``."""
    from evaluate.publish.upload import prepare, push

    publication = prepare(request)
    found = {"repository": publication.repository, "files": dict(publication.sizes), "card": publication.card}
    if not really:
        lines = [f"{in_bytes(size):>9}  {name}" for name, size in publication.sizes.items()]
        text = "\n".join([publication.card, *lines, "", "Nothing was uploaded; give --push to upload it."])
        return CommandResult(found | {"pushed": None}, text)
    with shown_progress() as progress:
        page = push(publication, request, progress)
    return CommandResult(found | {"pushed": page}, f"published: {page}")
