"""The command line. It has no logic: a command reads the settings, names the folders and calls its stage.

Only click is imported at the top, so that ``--help`` is fast.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.processes.garbage import no_collections
from nestcoder import __version__
from nestcoder.commands.cache_import import import_cache
from nestcoder.commands.features_group import features
from nestcoder.commands.interop_group import export, import_dictionary
from nestcoder.commands.model_group import finetune, publish
from nestcoder.invocation import CommandResult, Invocation
from nestcoder.options import device_option, dry_run_option, fresh_option, layers_option, name_option

if TYPE_CHECKING:
    from cache.format.codec import Codec

_EPILOG = """\b
Exit codes: 0 done, or nothing to do; 1 a bug (with a traceback);
2 arguments or settings; 3 damaged data; 4 in use by another process;
5 disk or network; 6 belongs to other settings, model or cache;
7 will not fit; 8 not a number, or a proof failed; 130 Ctrl-C; 143 SIGTERM.
"""

_path = click.argument("path", type=str)
_CODECS = click.Choice(["zstd", "blosc-zstd", "blosc-zstd-bit", "blosc-lz4"])


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings [default: pipeline.yaml].")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; may be repeated.")
@click.option("--model", help="Shorthand for --set model=...: a folder, a Hub name, or an alias such as gpt2.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on standard output.")
@click.version_option(__version__, prog_name="nestcoder")
@click.pass_context
def command_line(
    context: click.Context, *, config: Path | None, overrides: tuple[str, ...], model: str | None, as_json: bool
) -> None:
    """Harvest activations once, train nested-prefix transcoders from disk, measure them on held-out text."""
    model_override = [f"model={json.dumps(model)}"] if model else []
    context.obj = Invocation(config, [*overrides, *model_override], as_json)


@command_line.command()
@layers_option(required=True, of_model=True)
@device_option
@dry_run_option
@fresh_option
@click.option("--probe", type=click.Choice(["first-letter"]), help="Harvest the absorption probe instead of text.")
@click.pass_obj
def harvest(
    invocation: Invocation, *, layers: tuple[int, ...], device: str, dry_run: bool, fresh: bool, probe: str | None
) -> None:
    """Run the model over text, all layers in one pass, and write each layer's activation cache."""
    with no_collections():
        from nestcoder.commands import stage_commands

    chosen = list(dict.fromkeys(layers))
    if probe and dry_run:
        result = stage_commands.plan_probe(invocation, chosen, device)
    elif probe:
        result = stage_commands.harvest_probe(invocation, chosen, device, fresh=fresh)
    elif dry_run:
        result = stage_commands.plan_harvest(invocation, chosen, device)
    else:
        result = stage_commands.harvest(invocation, chosen, device, fresh=fresh)
    invocation.show(result)


@command_line.command()
@layers_option(required=True)
@device_option
@dry_run_option
@fresh_option
@name_option
@click.pass_obj
def train(
    invocation: Invocation, *, layers: tuple[int, ...], device: str, dry_run: bool, fresh: bool, name: str
) -> None:
    """Train a nested-prefix transcoder on each layer's cache."""
    with no_collections():
        from nestcoder.commands import stage_commands

    chosen = list(dict.fromkeys(layers))
    if dry_run:
        result = stage_commands.plan_train(invocation, chosen, device, name=name)
    else:
        result = stage_commands.train(invocation, chosen, device, name=name, fresh=fresh)
    invocation.show(result)


@command_line.command()
@layers_option(required=False)
@device_option
@name_option
@click.option("--lm", is_flag=True, help="Also splice the transcoder into the language model.")
@click.option(
    "--together",
    "all_at_once",
    is_flag=True,
    help="Only splice all layers into the language model at once, and report.",
)
@click.option("--gemma-scope", metavar="PATH|download", help="Compare with Google's transcoder of this layer.")
@click.option("--against", type=click.Path(path_type=Path), help="Compare with another dictionary on disk.")
@click.option("--force", is_flag=True, help="Compare although the convention check fails.")
@click.option(
    "--beside", multiple=True, metavar="NAME", help="Measure this one too, all layers together, in one table."
)
@click.pass_obj
def evaluate(
    invocation: Invocation,
    *,
    layers: tuple[int, ...],
    device: str,
    name: str,
    lm: bool,
    all_at_once: bool,
    gemma_scope: str | None,
    against: Path | None,
    force: bool,
    beside: tuple[str, ...],
) -> None:
    """Replay held-out rows through the trained transcoders (default: of every layer) and report."""
    with no_collections():
        from nestcoder.commands import stage_commands

    if all_at_once:
        if gemma_scope or against:
            raise click.UsageError("--together cannot be given with --gemma-scope or --against.")
        chosen = list(dict.fromkeys(layers))
        invocation.show(stage_commands.evaluate_together(invocation, chosen, device, name=name, beside=beside))
        return
    options = stage_commands.EvaluateOptions(name, lm, gemma_scope, against, force, beside)
    result = stage_commands.evaluate(invocation, list(dict.fromkeys(layers)), device, options)
    invocation.show(result)


command_line.add_command(features)


@command_line.command()
@click.option("--serve", is_flag=True, help="Serve it on 127.0.0.1, renewed while runs go on, until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of --serve [default: a free one].")
@click.pass_obj
def browse(invocation: Invocation, *, serve: bool, port: int) -> None:
    """Write index.html into the runs folder: every dictionary in one table, plots over runs and over training."""
    from nestcoder.commands import browse_command

    if serve:
        browse_command.serve(invocation, port)
    else:
        invocation.show(browse_command.write(invocation))


@command_line.group()
def cache() -> None:
    """Look at an activation cache, check it, mend it, pack it for an archive."""


@cache.command()
@_path
@click.pass_obj
def info(invocation: Invocation, *, path: str) -> None:
    """What PATH (a folder or URL) holds: model, sites, rows, statistics, mixing."""
    from nestcoder.commands import cache_commands

    invocation.show(cache_commands.cache_info(path))


@cache.command()
@_path
@click.option("--fast", is_flag=True, help="Sizes and the journal only, no checksums.")
@click.pass_obj
def verify(invocation: Invocation, *, path: str, fast: bool) -> None:
    """Check every byte against its checksum; exit code 3 names what is damaged."""
    from nestcoder.commands import cache_commands

    invocation.show(cache_commands.cache_verify(path, fast=fast))


@cache.command()
@_path
@click.pass_obj
def repair(invocation: Invocation, *, path: str) -> None:
    """Set damaged shards aside, so that the next harvest redoes exactly those."""
    from nestcoder.commands import cache_commands

    invocation.show(cache_commands.cache_repair(path))


@cache.command()
@_path
@click.argument("archive", type=click.Path(path_type=Path))
@click.option("--codec", type=_CODECS, default="zstd", show_default=True, help="How to compress the rows.")
@click.pass_obj
def pack(invocation: Invocation, *, path: str, archive: Path, codec: "Codec") -> None:
    """Write PATH as a compressed cache, without loss, and say the ratio."""
    from nestcoder.commands import cache_commands

    invocation.show(cache_commands.cache_pack(path, archive, codec))


@cache.command()
@_path
@click.argument("folder", type=click.Path(path_type=Path))
@click.pass_obj
def unpack(invocation: Invocation, *, path: str, folder: Path) -> None:
    """Turn a compressed cache back into one whose rows are mapped as they lie."""
    from nestcoder.commands import cache_commands

    invocation.show(cache_commands.cache_pack(path, folder, "none"))


@command_line.command("verify")
@click.argument("paths", type=str, nargs=-1, required=True)
@click.option("--fast", is_flag=True, help="Sizes of a cache's shards only, no checksums of their bytes.")
@click.pass_obj
def verify_run(invocation: Invocation, *, paths: tuple[str, ...], fast: bool) -> None:
    """Check all that a run left.

    PATHS are folders of runs/ (or all of it), or URLs of caches. Every cache, probe, transcoder and report in or
    below them is compared with its checksums; exit code 3 names what is damaged.
    """
    from nestcoder.commands.verify import verify as verify_paths

    result, damage = verify_paths(paths, fast=fast)
    invocation.show(result)
    if damage:
        raise damage


@command_line.command()
@click.option("--model", help="A folder, or a known short name: tell of this model alone.")
@click.pass_obj
def doctor(invocation: Invocation, *, model: str | None) -> None:
    """Devices, memory, disk, versions, which models fit, and what would be chosen."""
    from nestcoder.commands.doctor import examine

    invocation.show(examine(Path.cwd(), model=model))


@command_line.group()
def config() -> None:
    """The settings."""


@config.command()
@click.pass_obj
def show(invocation: Invocation) -> None:
    """Every setting with its value, defaults and overrides included."""
    from nestcoder.yamlfile import write_yaml

    settings = invocation.settings.model_dump(mode="json")
    invocation.show(CommandResult(settings, write_yaml(settings)))


command_line.add_command(export)
command_line.add_command(finetune)
command_line.add_command(publish)
command_line.add_command(import_dictionary)
cache.add_command(import_cache)
