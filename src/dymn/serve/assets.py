"""The files of the page, by name.

Only what is in the folder when the service starts is served, so no name leads out of it.
"""

from __future__ import annotations

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
    """A file, what it is, and a text that changes with it."""

    path: Path
    type: str
    tag: str


def find_assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """Return the page's files by their names below `folder`, such as "vendor/model.onnx"."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in _TYPES and path.is_file():
            with path.open("rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            found[path.relative_to(folder).as_posix()] = Asset(path, _TYPES[path.suffix], f'"{digest[:32]}"')
    return found


def runs_in_browser(assets: dict[str, Asset]) -> bool:
    """Whether `make page` has been there."""
    return all(f"{VENDOR}/{name}" in assets for name in NEEDED)


def response(asset: Asset, request: Request) -> Response:
    """Return a file, or the word that the browser has it already."""
    headers = {"ETag": asset.tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == asset.tag:
        return Response(status_code=304, headers=headers)
    return FileResponse(asset.path, media_type=asset.type, headers=headers)
