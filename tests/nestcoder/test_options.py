"""Options are one object each, so that all commands use the same names."""

import click

from nestcoder.cli import command_line
from nestcoder.options import device_option, layers_option


def test_the_commands_share_their_options() -> None:
    @layers_option(required=False)
    @device_option
    @click.command()
    def own() -> None: ...

    named = {option.name: option.help for option in own.params if isinstance(option, click.Option)}
    of_evaluate = {option.name: getattr(option, "help", None) for option in command_line.commands["evaluate"].params}
    assert named.items() <= of_evaluate.items()
