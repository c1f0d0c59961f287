"""faasd: a standalone Function-as-a-Service platform for machine-learning inference."""

__version__ = "0.1.0"
