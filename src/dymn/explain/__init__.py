"""Explanations: the decisions of a dynamic network for one recording, as arrays, a picture or a page."""

from dymn.explain.arrays import BlockDecisions, Explanation, explain, is_dynamic

__all__ = ["BlockDecisions", "Explanation", "explain", "is_dynamic"]
