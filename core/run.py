"""``python -m core.run CASE ...``, the same as ``python -m core run CASE ...``."""

import sys

from core.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
