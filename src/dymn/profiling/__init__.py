"""Costs of a network: parameters, multiply-adds, memory, receptive field and time, and the paper's numbers."""

from dymn.profiling.counting import KINDS, Count, count
from dymn.profiling.memory import PeakMemory, ReceptiveField, peak_memory, receptive_field
from dymn.profiling.networks import Network, resolve
from dymn.profiling.report import Comparison, Latency, Profile, compare, latency, profile, rows_of

__all__ = [
    "KINDS",
    "Comparison",
    "Count",
    "Latency",
    "Network",
    "PeakMemory",
    "Profile",
    "ReceptiveField",
    "compare",
    "count",
    "latency",
    "peak_memory",
    "profile",
    "receptive_field",
    "resolve",
    "rows_of",
]
