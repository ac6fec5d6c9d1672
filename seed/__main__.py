"""`python -m seed` runs the `seed` command."""

import sys

from .commands.main import main

sys.exit(main())
