"""See the dynamics: what a dynamic network decided about one recording, as arrays, as a picture, as a page."""

from dymn.explain.arrays import BlockDecisions, Explanation, explain, is_dynamic

__all__ = ["BlockDecisions", "Explanation", "explain", "is_dynamic"]
