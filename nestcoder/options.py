"""Options of several commands."""

from typing import Any

import click


class _Layer(click.ParamType[Any, Any]):
    """A layer's number, or ``all``."""

    name = "LAYER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; ``all`` stays a word until the settings are read."""
        return value if value == "all" else click.IntRange(min=0).convert(value, param, ctx)


def layers_option(*, required: bool, of_model: bool = False) -> Any:
    """``--layer``, any number of times; ``all`` is every layer that has a cache, or that the model has."""

    def resolve(context: click.Context, _: click.Parameter, given: tuple[Any, ...]) -> tuple[int, ...]:
        if "all" not in given:
            return given
        from nestcoder.stages.folders import harvested_layers, layers_of_model

        settings = context.obj.settings
        return tuple(layers_of_model(settings) if of_model else harvested_layers(settings))

    text = "Layer, counted from 0, or all; repeat it for several."
    return click.option(
        "--layer", "layers", type=_Layer(), multiple=True, required=required, help=text, callback=resolve
    )


device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say rows, bytes, minutes and memory; change nothing.")
fresh_option = click.option("--fresh", is_flag=True, help="Throw away what an earlier run left and begin again.")
name_option = click.option("--name", default="main", show_default=True, help="Name of the transcoder's run.")
