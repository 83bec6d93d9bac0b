"""``python -m harvest``: the command of the same name."""

import sys

from nestcoder.__main__ import main

if __name__ == "__main__":
    main(["harvest", *sys.argv[1:]])
