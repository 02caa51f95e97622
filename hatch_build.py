"""Compiles the C files of `src/dymn/native` when dymn is built; without a C compiler dymn is pure Python and computes with PyTorch alone.

Without further settings the compiler is $CC or cc, and the library is for this machine. With DYMN_WHEEL_FOR set to one of the
platforms below, the compiler is that of the package ziglang, which compiles for all of them anywhere (`make wheels`).
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src/dymn/native")
FLAGS = [
    *("-O3", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-s"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only", "-ffp-contract=fast"),
]
X86_BUILDS = {"_native_v4": ["-march=x86-64-v4"], "_native_v3": ["-march=x86-64-v3"], "_native": []}
WHEELS = {  # platform tag of a wheel: the compiler's name of the target
    "manylinux2014_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux2014_aarch64": "aarch64-linux-gnu.2.17",
    "macosx_11_0_x86_64": "x86_64-macos.11.0",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
    "win_amd64": "x86_64-windows-gnu",
}


class NativeBuildHook(BuildHookInterface[Any]):
    """Adds the compiled libraries to a wheel, and the platform to its name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; called by hatchling before it collects the files."""
        wanted = os.environ.get("DYMN_WHEEL_FOR", "")
        if wanted and wanted not in WHEELS:
            raise ValueError(f"DYMN_WHEEL_FOR is {wanted!r}; allowed: {', '.join(WHEELS)}.")
        for old in (Path(self.root) / FOLDER).glob("_native*"):
            old.unlink()
        made = self._cross(wanted) if wanted else self._here()
        if made:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{wanted or sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def _here(self) -> bool:
        is_x86 = platform.machine().lower() in ("x86_64", "amd64")
        suffix = ".dylib" if sys.platform == "darwin" else ".so"
        builds = X86_BUILDS if is_x86 else {"_native": []}
        compiler = os.environ.get("CC", "cc").split()
        try:
            for name, flags in builds.items():
                self._compile([*compiler, *flags], name + suffix)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"dymn is built without compiled code, which makes it slower on CPUs: {error}")
            return False
        return True

    def _cross(self, wheel: str) -> bool:
        target = WHEELS[wheel]
        suffix = ".dll" if "windows" in target else ".dylib" if "macos" in target else ".so"
        builds = {"_native_v4": ["-mcpu=x86_64_v4"], "_native_v3": ["-mcpu=x86_64_v3"], "_native": []}
        for name, flags in (builds if target.startswith("x86_64") else {"_native": []}).items():
            self._compile([sys.executable, "-m", "ziglang", "cc", "-target", target, *flags], name + suffix)
        return True

    def _compile(self, compiler: list[str], name: str) -> None:
        folder = Path(self.root) / FOLDER
        command = [*compiler, *FLAGS, "-o", str(folder / name), *(str(path) for path in sorted(folder.glob("*.c")))]
        subprocess.run(command, check=True, capture_output=True, timeout=1800)
