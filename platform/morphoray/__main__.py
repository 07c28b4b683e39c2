"""`python -m morphoray`: the same as the command `morphoray`."""

import sys

from morphoray.cli import main

if __name__ == "__main__":
    sys.exit(main())
