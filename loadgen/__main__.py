"""`python -m loadgen`."""

from __future__ import annotations

from loadgen.cli import main

main()
