"""The expected digests of model files, and whether they are known, recorded or pinned.

The registry has the SHA-256 of few models: their authors publish none. The others are unverified at their first
download, but for their network, and the digest of that file is recorded next to it and enforced from then on. Those who
know digests from elsewhere pin them: a file `SHA256SUMS` in the cache folder, or the one that `DYMN_SHA256SUMS` names,
has lines as `sha256sum` writes them, a digest and the name of a model or of its file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from dymn.errors import WeightsError
from dymn.system.files import read_bounded

DigestOrigin = Literal["published", "pinned", "recorded", "none"]
PINS_FILE, PINS_VARIABLE = "SHA256SUMS", "DYMN_SHA256SUMS"
MAX_PINS = 2**20  # bytes
LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](\S.*)")


class Expected(NamedTuple):
    """The digest that a file must have ("" if unknown), the kind of its source, and its place for messages."""

    digest: str
    origin: DigestOrigin
    place: str = ""


def expected_digest(names: tuple[str, ...], published: str | None, record: Path) -> Expected:
    """Return what is known of a model's file.

    Args:
        names: of the model and its file.
        published: the SHA-256 in the registry, if it has one.
        record: the file next to that of the model, with the SHA-256 of its first download.

    Raises:
        WeightsError: if a file with digests cannot be read, or a pin contradicts the registry.
    """
    place, pins = pinned(record.parent)
    pin = next((pins[name] for name in names if name in pins), "")
    if pin and published not in (None, pin):
        raise WeightsError(
            f"{place} states the SHA-256 {pin} for {names[0]}, but dymn knows {published}. Remove the line."
        )
    if published:
        return Expected(published, "published", "published")
    if pin:
        return Expected(pin, "pinned", f"pinned in {place}")
    try:
        text = read_bounded(record, MAX_PINS).decode("ascii", "replace") if record.exists() else ""
    except OSError as error:
        raise WeightsError(f"{record} cannot be read: {error.strerror or error}.") from error
    if not text:
        return Expected("", "none")
    return Expected(text[:64], "recorded", f"recorded in {record} when it was first verified")


def pinned(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return the file with pins, which belongs in the folder of downloads, and the digests in it by name.

    Raises:
        WeightsError: if it cannot be read, a line is none of `sha256sum`, or the file that was named does not exist.
    """
    chosen = os.environ.get(PINS_VARIABLE)
    path = Path(os.path.expanduser(chosen)) if chosen else folder / PINS_FILE
    if not chosen and not path.exists():
        return path, {}
    try:
        lines = read_bounded(path, MAX_PINS).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}. It must contain lines in the "
            "format of sha256sum."
        ) from error
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.rstrip())
        if match is None:
            raise WeightsError(
                f"{path}, line {number}: {line[:100]!r} is not in the format of sha256sum: a SHA-256, two spaces and "
                "a name."
            )
        found[os.path.basename(match[2])] = match[1].lower()
    return path, found
