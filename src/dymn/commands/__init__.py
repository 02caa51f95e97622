"""The commands of `dymn`, one module each.

Each has options and help texts, one call into the library, and the printing of its result.
"""
