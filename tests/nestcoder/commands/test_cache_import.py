"""The command is one of ``cache``'s; what it does is tested in tests/harvest/elsewhere."""

import click

from nestcoder.cli import command_line
from nestcoder.commands.cache_import import import_cache


def test_import_is_a_command_of_cache() -> None:
    group = command_line.commands["cache"]
    assert isinstance(group, click.Group)
    assert group.commands["import"] is import_cache
