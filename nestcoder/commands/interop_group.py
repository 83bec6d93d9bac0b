"""The commands ``export`` and ``import``: arguments, options and help."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nestcoder.invocation import Invocation
from nestcoder.options import device_option, layers_option, name_option

if TYPE_CHECKING:
    from transcoder.transcoder import SourceView

_source_view = click.option(
    "--source-view",
    type=click.Choice(["mlp_in", "ln2_normalized"]),
    help="The input that the encoder reads: what the MLP consumes, or the same before the norm's gain and bias.",
)
PAGES = ["neuronpedia", "delphi"]
TOOLS = ["saelens", "saelens-jumprelu", "sparsify", "dictionary-learning", "circuit-tracer", "gemma-scope"]


@click.command()
@layers_option(required=True)
@device_option
@name_option
@click.option(
    "--to", "to", required=True, metavar="TOOL[,TOOL...]", help=f"What to write: {', '.join([*TOOLS, *PAGES])}."
)
@click.option("--prefix", type=click.IntRange(min=1), help="Export only this prefix [default: the whole dictionary].")
@_source_view
@click.option("--dry-run", is_flag=True, help="Say what would be written; change nothing.")
@click.option("--fresh", is_flag=True, help="Replace an earlier export of something else.")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.pass_obj
def export(
    invocation: Invocation,
    *,
    layers: tuple[int, ...],
    device: str,
    name: str,
    to: str,
    prefix: int | None,
    source_view: "SourceView | None",
    dry_run: bool,
    fresh: bool,
    out: Path,
) -> None:
    """Write trained transcoders for other tools below the folder OUT.

    Each file is measured on held-out rows after it was converted; its EXPORT.json says whether it is exact, what was
    done, and its FVU and L0 before and after.
    """
    from nestcoder.commands import interop_commands

    options = interop_commands.ExportOptions(
        to=tuple(filter(None, (tool.strip() for tool in to.split(",")))),
        out=out,
        name=name,
        prefix=prefix,
        source_view=source_view,
        fresh=fresh,
    )
    command = interop_commands.plan_export if dry_run else interop_commands.export
    invocation.show(command(invocation, list(dict.fromkeys(layers)), device, options))


@click.command("import")
@click.argument("path", type=str)
@click.option("--as", "name", required=True, metavar="NAME", help="Name of the run that it becomes.")
@layers_option(required=True)
@device_option
@_source_view
@click.option("--dry-run", is_flag=True, help="Read and check it; write nothing.")
@click.option("--force", is_flag=True, help="Import it even if it is of another layer or its L0 is not the stated one.")
@click.option("--fresh", is_flag=True, help="Replace an earlier import of this name.")
@click.pass_obj
def import_dictionary(
    invocation: Invocation,
    *,
    path: str,
    name: str,
    layers: tuple[int, ...],
    device: str,
    source_view: "SourceView | None",
    dry_run: bool,
    force: bool,
    fresh: bool,
) -> None:
    """Take a dictionary of another tool from PATH: a folder, a file, hf:user/repository/path or s3://bucket/path.

    It becomes a run like those that were trained here: evaluate, features, export and --against work on it.
    """
    from nestcoder.commands import interop_commands

    options = interop_commands.ImportOptions(
        name=name, source_view=source_view, force=force, fresh=fresh, dry_run=dry_run
    )
    invocation.show(interop_commands.import_dictionary(invocation, path, list(dict.fromkeys(layers)), device, options))
