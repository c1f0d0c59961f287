from loadgen.simulation.api import simulate
from loadgen.simulation.node import Node
from loadgen.simulation.outcome import Outcome

__all__ = ["Node", "Outcome", "simulate"]
