"""The ``features`` commands of the command line: arguments, options and help. ``features_commands`` does the work.

Only click is imported at the top, as in ``nestcoder/cli.py``.
"""

from pathlib import Path

import click

from nestcoder.invocation import Invocation
from nestcoder.options import device_option, layers_option, name_option

_dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Say rows, features, bytes, minutes, and the folder; write nothing."
)
_EXPORTS = click.Choice(["circuit-tracer", "neuronpedia", "delphi", "jsonl", "parquet"])


@click.group("features", invoke_without_command=True)
@layers_option(required=False)
@device_option
@name_option
@click.option(
    "--lm", is_flag=True, help="Take the unembedding from the language model: for logits where the cache has none."
)
@click.option("--force", is_flag=True, help="Take the evidence on another cache than the transcoder's.")
@_dry_run_option
@click.pass_context
def features(
    context: click.Context, *, layers: tuple[int, ...], device: str, name: str, lm: bool, force: bool, dry_run: bool
) -> None:
    """Take the evidence of every feature of each --layer, and write the pages that show it."""
    from nestcoder.commands import features_commands

    if context.invoked_subcommand:
        return
    if not layers:
        raise click.UsageError("Give --layer, or one of the commands below.", context)
    chosen = list(dict.fromkeys(layers))
    command = features_commands.plan_collect if dry_run else features_commands.collect
    context.obj.show(command(context.obj, chosen, device, name=name, lm=lm, force=force))


@features.command("show")
@click.argument("feature")
@name_option
@click.pass_obj
def show_feature(invocation: Invocation, *, feature: str, name: str) -> None:
    """Everything about one FEATURE, written as 8/123."""
    from nestcoder.commands import features_commands

    invocation.show(features_commands.show(invocation, feature, name))


@features.command("compare")
@click.argument("features", nargs=-1, required=True)
@name_option
@click.pass_obj
def compare_features(invocation: Invocation, *, features: tuple[str, ...], name: str) -> None:
    """Several FEATURES side by side, each written as 8/123."""
    from nestcoder.commands import features_commands

    invocation.show(features_commands.compare(invocation, features, name))


@features.command("similar")
@click.argument("feature")
@name_option
@click.pass_obj
def similar_features(invocation: Invocation, *, feature: str, name: str) -> None:
    """The features nearest to FEATURE: by direction, by the rows they fire on, coarser and finer."""
    from nestcoder.commands import features_commands

    invocation.show(features_commands.similar(invocation, feature, name))


@features.command("find")
@click.argument("text")
@click.option("--layer", type=click.IntRange(min=0), help="Only this layer [default: all that have evidence].")
@name_option
@click.pass_obj
def find_feature(invocation: Invocation, *, text: str, layer: int | None, name: str) -> None:
    """Features whose label or tokens have TEXT in them."""
    from nestcoder.commands import features_commands

    invocation.show(features_commands.find(invocation, text, layer, name))


@features.command("history")
@click.argument("feature")
@name_option
@click.pass_obj
def feature_history(invocation: Invocation, *, feature: str, name: str) -> None:
    """How FEATURE formed: what it fired on at the steps that its training took samples at."""
    from nestcoder.commands import features_commands

    invocation.show(features_commands.history(invocation, feature, name))


@features.command("export")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", "target", type=_EXPORTS, required=True, help="Whose file format.")
@layers_option(required=True)
@device_option
@name_option
@_dry_run_option
@click.pass_obj
def export_features(
    invocation: Invocation, *, out: Path, target: str, layers: tuple[int, ...], device: str, name: str, dry_run: bool
) -> None:
    """Write the evidence of each --layer into the new folder OUT, as another tool reads it."""
    from nestcoder.commands import features_export

    chosen = list(dict.fromkeys(layers))
    command = features_export.plan_export if dry_run else features_export.export
    invocation.show(command(invocation, chosen, target, out, name=name, device=device))
