"""`python -m shiqrun` runs the same as the console script `shiqrun`."""

import sys

from shiqrun.cli import main

sys.exit(main())
