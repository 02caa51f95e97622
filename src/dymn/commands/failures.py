"""The report of recordings that failed or were read in part: a file next to the output."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from dymn.commands.options import note
from dymn.inference.formats.layout import Layout, R
from dymn.inference.formats.writers import marks_damage


def is_file(output: Path | None) -> TypeGuard[Path]:
    """Whether output goes to a file, which may not be there yet, rather than to a stream, a device or a folder."""
    return output is not None and (output.is_file() or not output.exists())


def report_path(output: Path) -> Path:
    """Return the path of the report: next to the output, which may be a folder."""
    named = output if output.name not in ("", "..") else Path(os.path.abspath(output))
    return named.parent / f"{named.name}.failed.jsonl"


def has_errors(output: Path) -> bool:
    """Whether the report lists recordings that failed, and not only such that were read in part."""
    try:
        return any('"error": ' in line for line in report_path(output).read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def report(
    output: Path | None, layout: Layout[R], name: str, damaged: list[str], quiet: bool
) -> Iterator[Callable[[Iterable[R]], Iterator[R]]]:
    """Yield a function that yields results unchanged, and reports those that failed or were read in part.

    An output to a stream or a device has no report. Recordings that were read in part are listed in it if the format
    of the output does not mark them; their names are always added to `damaged`.
    """
    from dymn.system.files import atomic_write

    marked = marks_damage(layout, name)
    with contextlib.ExitStack() as stack:
        path = report_path(output) if output is not None and (is_file(output) or output.is_dir()) else None
        lines = stack.enter_context(atomic_write(path)) if path else None

        def listed(found: Iterable[R]) -> Iterator[R]:
            for result in found:
                line: dict[str, Any] = {"file": result.name}
                line |= {"channel": result.channel.number} if result.channel else {}
                about = len(line)
                if result.partial and damaged[-1:] != [result.name]:  # once, whatever the number of channels
                    damaged.append(result.name)
                    line |= {} if marked else {"partial": result.notes}
                if result.error is not None:
                    line |= {"error": str(result.error)}
                if lines and len(line) > about:
                    lines.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
                yield result

        yield listed
    if damaged and path:
        where = "the output" if marked else str(path)
        note(f"{len(damaged):,} recording(s) are damaged and were read partially; {where} lists them.", quiet)
    if path and not path.stat().st_size:
        path.unlink()
