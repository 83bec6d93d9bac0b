"""``python -m nestcoder``: runs the command line and turns stated problems into three lines and an exit code."""

import sys
from importlib.util import find_spec
from pathlib import Path

import click

from common.errors import NestcoderError, UsageError

_STAGES = ("cache", "harvest", "train", "evaluate")


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code (``nestcoder --help`` lists them)."""
    from nestcoder.cli import command_line

    try:
        _refuse_strangers()
        command_line.main(args=arguments, standalone_mode=False)
    except NestcoderError as error:
        _leave(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        _leave("Interrupted; run the same command again to go on.", 130)


def _leave(message: str, code: int) -> None:
    """Print the problem as what, where, what to do; leave."""
    first, *rest = message.split("\n")
    print("\n".join([f"nestcoder: {first}", *(f"  {line}" for line in rest)]), file=sys.stderr)
    sys.exit(code)


def _refuse_strangers() -> None:
    """A package of a stage's name from elsewhere (Hugging Face has an ``evaluate``) must not be taken for ours."""
    home = Path(__file__).resolve().parent.parent
    inside = NestcoderError.__module__.removesuffix("common.errors")  # "nestcoder." in an installed wheel
    for stage in _STAGES:
        spec = find_spec(inside + stage)
        place = Path(spec.origin).resolve() if spec and spec.origin else None
        if place is None or home not in place.parents:
            what = f"The package '{stage}' that Python finds is not nestcoder's."
            raise UsageError(what, where=place or "not found", remedy=f"Run 'python -m nestcoder' from {home}.")


if __name__ == "__main__":
    main()
