"""The ``features`` group: which commands it has, and arguments that are refused before anything is read."""

import pytest
from click.testing import CliRunner

from nestcoder.cli import command_line


def test_the_group_lists_its_commands() -> None:
    text = CliRunner().invoke(command_line, ["features", "--help"]).stdout
    for name in ("compare", "export", "find", "show", "similar"):
        assert f"  {name} " in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["features"],
        ["features", "--layer", "-1"],
        ["features", "export", "--to", "nobody", "--layer", "3", "out"],
        ["features", "export", "--to", "jsonl", "out"],
        ["features", "compare"],
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(command_line, arguments).exit_code == 2
