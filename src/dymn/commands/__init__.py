"""The commands of `dymn`, one module each.

Options and help texts, one call into the library, the printing of its answer.
"""
