"""Measures the size of an installation of dymn: a new environment with the wheel of this checkout, without extras.

    python benchmarks/install_size.py
    python benchmarks/install_size.py --extra torch --json

pip and setuptools are not counted; compiled Python files, which pip writes, are. A megabyte is a million bytes. Needs a
network connection, or a pip that is configured to find packages elsewhere. Exits with code 1 if an installation without
extras exceeds `MAX_MB`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_MB = {"all": 250.0, "without PyAV": 130.0}
LARGEST = 12


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout into a folder and return its path."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)], check=True
    )
    (wheel,) = folder.glob("dymn-*.whl")
    return wheel


def install(wheel: Path, extras: list[str], environment: Path) -> Path:
    """Install a wheel and its dependencies into a new environment without pip.

    Return the environment's site-packages.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), wanted], check=True)
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def size_of(distribution: Distribution) -> int:
    """Return the bytes of the files that a package has installed."""
    paths = (Path(str(file.locate())) for file in distribution.files or [])
    return sum(path.stat().st_size for path in paths if path.is_file())


def measure(site: Path) -> dict[str, int]:
    """Return the bytes of each package in a site-packages folder, the largest first."""
    sizes = {found.metadata["Name"].lower(): size_of(found) for found in distributions(path=[str(site)])}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def main() -> int:
    """Print the sizes and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="a wheel of dymn; built from this checkout by default")
    parser.add_argument("--extra", action="append", default=[], help="an extra to install; may be repeated")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = given.wheel.resolve() if given.wheel else build_wheel(Path(folder))
        packages = measure(install(wheel, given.extra, Path(folder) / "environment"))
    total = sum(packages.values())
    totals = {"all": total, "without PyAV": total - packages.get("av", 0)}
    if given.json:
        print(json.dumps({"extras": given.extra, "bytes": totals, "packages": packages}, indent=2))
    else:
        for name, size in list(packages.items())[:LARGEST]:
            print(f"{size / 1e6:8.1f} MB  {name}")
        print(
            f"{sum(list(packages.values())[LARGEST:]) / 1e6:8.1f} MB  {max(len(packages) - LARGEST, 0)} smaller "
            "packages"
        )
        for name, size in totals.items():
            print(f"{size / 1e6:8.1f} MB  {name}" + ("" if given.extra else f" (at most {MAX_MB[name]:g})"))
    return int(not given.extra and any(size / 1e6 > MAX_MB[name] for name, size in totals.items()))


if __name__ == "__main__":
    sys.exit(main())
