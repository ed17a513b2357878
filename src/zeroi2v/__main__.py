"""`python -m zeroi2v` is the command line."""

import sys

from zeroi2v.cli.main import main

sys.exit(main())
