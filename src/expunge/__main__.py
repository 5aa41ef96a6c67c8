"""`python -m expunge`."""

import sys

from expunge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
