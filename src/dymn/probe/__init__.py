"""How much a linear model can tell from embeddings: the usual measure of what a network has learned."""

from dymn.probe.measure import Probed, probe
from dymn.probe.rounds import Round, rounds_of

__all__ = ["Probed", "Round", "probe", "rounds_of"]
