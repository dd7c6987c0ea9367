"""``python -m actionqueue.demo``: the same as ``actionqueue demo``."""

import sys

from actionqueue.demo import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
