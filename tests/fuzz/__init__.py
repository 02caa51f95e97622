"""Hostile input, made by the ten thousand.

`python -m fuzz` (from the folder `tests`; `make fuzz` from that of the project) feeds every way into dymn with cases
that hypothesis draws: files and messages that are right but for a few edits. A case passes if dymn takes it or refuses
it with an error of its own. Any other exception, a crash, more memory or time than a case may take (running out of
memory is no refusal), a file written outside the case's folder, a process or a connection that is begun, or a pickle
that asks for a function fails it. `tests/test_hostile.py` runs a few cases of each.
"""
