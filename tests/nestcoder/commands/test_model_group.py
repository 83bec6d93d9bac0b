"""The commands of this file are commands of the top level."""

from nestcoder.cli import command_line
from nestcoder.commands import model_group


def test_the_commands_are_those_of_the_top_level() -> None:
    assert command_line.commands["finetune"] is model_group.finetune
