"""How is zeroi2v run as a module? `python -m zeroi2v` runs the command line."""

import sys

from zeroi2v.cli.main import main

sys.exit(main())
