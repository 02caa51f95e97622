"""Puts what the page needs to run a network in the browser into the package: onnxruntime-web, and a model as ONNX file.

    make page
    make page MODEL=mn04_as

The runtime comes from its npm package, in the version and with the digest of package-lock.json. Nothing of this is kept
in the repository; wheels that are built afterwards hold it. Without it the page uses the server's model.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dymn.export import export_model
from dymn.serve.assets import FOLDER, NEEDED, VENDOR
from dymn.weights import load_model

HERE = Path(__file__).parent


def main(model_name: str = "dymn04_open") -> None:
    model = load_model(model_name)
    target = FOLDER / VENDOR
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(
            "The page's runtime comes from an npm package, and there is no npm here. On Debian and Ubuntu: apt install "
            "npm"
        )
    subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"], cwd=HERE, check=True
    )
    package = HERE / "node_modules" / "onnxruntime-web"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in NEEDED:
        if name.startswith("ort"):
            store(target / name, (package / "dist" / name).read_bytes())
    described = json.loads((package / "package.json").read_text(encoding="utf-8"))
    terms = (HERE.parent / "LICENSE").read_text(encoding="utf-8").splitlines()
    terms = ["Copyright (c) Microsoft Corporation" if line.startswith("Copyright") else line for line in terms]
    assert described["license"] == "MIT"
    notice = [f"The files ort* are those of onnxruntime-web {described['version']}, under these terms:", "", *terms, ""]
    (target / "NOTICE.txt").write_text("\n".join(notice), encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        written = export_model(model, Path(folder) / "model.onnx", dynamic_time=True, precision="fp16")
        store(target / "model.onnx", written.path.read_bytes())
    card = model.card
    facts = {
        "name": card.name,
        "labels": card.labels,
        "sample_rate": card.front_end.sample_rate,
        "licence": card.licence,
    }
    facts |= {"input": "waveform", "output": "probabilities", "digest": str(card.provenance.get("sha256", ""))}
    store(target / "model.json", json.dumps(facts, ensure_ascii=False).encode())
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"The page's files are in {target}: {size / 1e6:.1f} MB.")


def store(path: Path, content: bytes) -> None:
    """Write a file compressed, under its name and .gz, as the service keeps it."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content, mtime=0))


if __name__ == "__main__":
    main(*sys.argv[1:2])
