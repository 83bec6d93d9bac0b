"""``python -m nestcoder``: checks that Python finds nestcoder's own packages, then runs one command."""

import sys
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = ("common", "cache", "transcoder", "harvest", "train", "evaluate", "finetune")


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code (``nestcoder --help`` lists them)."""
    _refuse_foreign_packages()
    from nestcoder.entry import run

    run(arguments)


def _refuse_foreign_packages() -> None:
    """Leave with 2 if Python finds another package by our name: a ``common`` in this folder, Hugging Face's
    ``evaluate``.

    No module of ours is imported before: it would fail on the contents of the other package.
    """
    home = Path(__file__).resolve().parent.parent
    # In an installed wheel they are nestcoder.common and so on (build_hook.py), in a checkout they are next to it.
    prefix = "" if (home / "common" / "errors.py").is_file() else "nestcoder."
    for package in _PACKAGES:
        spec = find_spec(prefix + package)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found is None or home not in found.parents:
            print(f"nestcoder: The package '{package}' that Python finds is not nestcoder's.", file=sys.stderr)
            print(f"  {ascii(str(found or 'not found'))[1:-1]}", file=sys.stderr)
            print(f"  Run 'python -m nestcoder' from {home}.", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    main()
