"""`python -m faasd` is the `faasd` command."""

import sys

from faasd.cli.main import main

sys.exit(main())
