"""The formats that ``--help`` names are the existing ones."""

from nestcoder.commands import interop_commands
from nestcoder.commands.interop_group import PAGES, TOOLS
from transcoder.formats.foreign import WRITERS


def test_help_names_every_format() -> None:
    assert list(WRITERS) == TOOLS
    assert list(interop_commands.PAGES) == PAGES
