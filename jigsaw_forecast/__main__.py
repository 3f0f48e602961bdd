"""`python -m jigsaw_forecast`: the command line."""

import sys

from jigsaw_forecast.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
