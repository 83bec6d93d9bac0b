"""``cache import``: turns a folder of another tool's activations into a cache in the runs folder."""

from dataclasses import asdict
from pathlib import Path

import click

from common.units import in_bytes
from nestcoder.invocation import CommandResult, Invocation
from nestcoder.options import dry_run_option
from nestcoder.text import as_lines

_folder = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command("import")
@click.argument("path", type=_folder)
@click.option("--layer", type=click.IntRange(min=0), required=True, help="The layer of the rows.")
@click.option("--target", type=_folder, help="A folder of targets: the same examples in the same order.")
@click.option("--tokens", type=_folder, help="A folder of token ids: the same examples in the same order.")
@click.option("--source-site", help="The site of the source if the files do not name it: mlp_in, resid_post, ...")
@click.option("--target-site", help="The site of the target if the files do not name it.")
@click.option("--special-id", "special_ids", type=int, multiple=True, help="A token that no metric counts; repeat it.")
@dry_run_option
@click.pass_obj
def import_cache(
    invocation: Invocation,
    *,
    path: Path,
    layer: int,
    target: Path | None,
    tokens: Path | None,
    source_site: str | None,
    target_site: str | None,
    special_ids: tuple[int, ...],
    dry_run: bool,
) -> None:
    """Make a cache of activations that another tool wrote into the folder PATH.

    PATH has safetensors or npy files, a dataset of SAELens's cached activations, or saev's shards. Nobody proved which
    tensors these rows are: the cache says so, and so does every report on it. The cache gets the folder of a harvest of
    --model.
    """
    from harvest.elsewhere.importing import ImportRequest, import_folder, plan_import
    from nestcoder.progress import shown_progress

    request = ImportRequest(
        source=path,
        target=target,
        tokens=tokens,
        out=invocation.folders(layer).cache,
        model=invocation.settings.model,
        layer=layer,
        source_site=source_site,
        target_site=target_site,
        special_ids=special_ids,
        settings=invocation.settings.cache,
    )
    with shown_progress() as progress:
        if dry_run:
            found = asdict(plan_import(request, progress))
            invocation.show(CommandResult(found, as_lines(found)))
            return
        done = import_folder(request, progress)
    text = f"{done['train_rows']:,} training rows and {done['held_out_rows']:,} held out, {in_bytes(done['bytes'])}"
    invocation.show(CommandResult(done, f"{text}.\nimported: {request.out}"))
