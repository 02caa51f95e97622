"""Puts what the page needs to run a network in the browser into the package: onnxruntime-web, and a model as ONNX file.

    make page
    make page MODEL=mn04_as

The runtime comes from its npm package, in the version and with the digest of package-lock.json. Nothing of this is kept
in the repository; wheels that are built afterwards hold it. Without it the page uses the server's model.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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
            shutil.copy(package / "dist" / name, target / name)
    described = json.loads((package / "package.json").read_text(encoding="utf-8"))
    terms = (HERE.parent / "LICENSE").read_text(encoding="utf-8").splitlines()
    terms = ["Copyright (c) Microsoft Corporation" if line.startswith("Copyright") else line for line in terms]
    assert described["license"] == "MIT"
    notice = [f"The files ort* are those of onnxruntime-web {described['version']}, under these terms:", "", *terms, ""]
    (target / "NOTICE.txt").write_text("\n".join(notice), encoding="utf-8")

    written = export_model(model, target / "model.onnx", dynamic_time=True, precision="fp16")
    card = model.card
    facts = {
        "name": card.name,
        "labels": card.labels,
        "sample_rate": card.front_end.sample_rate,
        "licence": card.licence,
    }
    facts |= {"input": "waveform", "output": "probabilities", "digest": str(card.provenance.get("sha256", ""))}
    (target / "model.json").write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    size = sum(path.stat().st_size for path in target.iterdir())
    print(
        f"The page's files are in {target}: {size / 1e6:.1f} MB, of which the model takes {written.size / 1e6:.1f} MB."
    )


if __name__ == "__main__":
    main(*sys.argv[1:2])
