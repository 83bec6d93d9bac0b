"""The commands of this file hang where people look for them."""

from nestcoder.cli import command_line
from nestcoder.commands import model_group


def test_the_commands_are_the_command_lines_own() -> None:
    assert command_line.commands["finetune"] is model_group.finetune
