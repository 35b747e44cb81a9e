"""`python -m pliant.cli` is `pliant`."""

import sys

from pliant.cli.app import main

sys.exit(main())
