"""The options that several commands have."""

from typing import Any

import click


def layers_option(*, required: bool) -> Any:
    """``--layer``, any number of times."""
    text = "Layer, counted from 0; repeat it for several."
    return click.option("--layer", "layers", type=click.IntRange(min=0), multiple=True, required=required, help=text)


device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say rows, bytes, minutes and memory; change nothing.")
fresh_option = click.option("--fresh", is_flag=True, help="Throw away what an earlier run left and begin again.")
name_option = click.option("--name", default="main", show_default=True, help="Name of the transcoder's run.")
