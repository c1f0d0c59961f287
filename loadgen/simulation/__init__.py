"""Policies of preloading and keep-alive on a trace, in virtual time: `simulate`, for notebooks as well."""

from loadgen.simulation.api import simulate
from loadgen.simulation.node import Node
from loadgen.simulation.outcome import Outcome

__all__ = ["Node", "Outcome", "simulate"]
