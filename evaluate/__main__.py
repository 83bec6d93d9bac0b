"""``python -m evaluate``: the command of the same name."""

import sys

from nestcoder.__main__ import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
