"""The loops of these tests: as those of the shared parts."""

from tests.unit.faasd.conftest import each_loop

__all__ = ["each_loop"]
