"""The files of the page, by name.

Only files that are in the folder when the service starts are served, so no name refers to a file outside it. A file
whose name ends in .gz is served without this ending, compressed for clients that accept compression, as all browsers
do.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import FileResponse, Response

FOLDER = Path(__file__).parent / "page"
VENDOR = "vendor"
"""The folder that `make page` fills: the runtime for networks in a browser, and a network."""
NEEDED = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm", "model.onnx", "model.json")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}


class Asset(NamedTuple):
    """A file, its media type, its entity tag, and whether it is compressed with gzip."""

    path: Path
    type: str
    tag: str
    compressed: bool


def find_assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """Return the page's files by their names below `folder`, such as "vendor/model.onnx"."""
    found = {}
    for path in sorted(folder.rglob("*")):
        served = path.with_suffix("") if path.suffix == ".gz" else path
        if served.suffix in _TYPES and path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            name, kind = served.relative_to(folder).as_posix(), _TYPES[served.suffix]
            found[name] = Asset(path, kind, f'W/"{digest[:32]}"', served != path)
    return found


def runs_in_browser(assets: dict[str, Asset]) -> bool:
    """Whether the page has the files of `make page`, with which it runs a network."""
    return all(f"{VENDOR}/{name}" in assets for name in NEEDED)


def response(asset: Asset, request: Request) -> Response:
    """Return a file, or status 304 if the browser has it already."""
    headers = {"ETag": asset.tag, "Cache-Control": "no-cache"}
    if asset.compressed:
        headers["Vary"] = "Accept-Encoding"
    if request.headers.get("if-none-match") == asset.tag:
        return Response(status_code=304, headers=headers)
    if not asset.compressed:
        return FileResponse(asset.path, media_type=asset.type, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return FileResponse(asset.path, media_type=asset.type, headers=headers | {"Content-Encoding": "gzip"})
    return Response(gzip.decompress(asset.path.read_bytes()), media_type=asset.type, headers=headers)
