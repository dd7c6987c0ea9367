"""``python -m actionqueue``: the command line."""

import sys

from actionqueue.cli import main

if __name__ == "__main__":
    sys.exit(main())
