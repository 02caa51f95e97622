"""Compiles the C files of `src/dymn/native` when dymn is built.

Without a C compiler, dymn computes with ONNX Runtime or PyTorch.

By default the compiler is $CC or cc, and the libraries are for this machine. With DYMN_WHEEL_FOR set to one of the
platforms below, the compiler is that of the package ziglang, which compiles for all of them on any machine (`make
wheels`).
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src/dymn/native")
FLAGS = [
    *("-O3", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-s"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only", "-ffp-contract=fast"),
]
X86_BUILDS = {"_native_v4": ["-march=x86-64-v4"], "_native_v3": ["-march=x86-64-v3"], "_native": []}
CROSS_X86_BUILDS = {"_native_v4": ["-mcpu=x86_64_v4"], "_native_v3": ["-mcpu=x86_64_v3"], "_native": []}
WHEELS = {  # platform tag of a wheel: the compiler's name of the target
    "manylinux2014_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux2014_aarch64": "aarch64-linux-gnu.2.17",
    "macosx_11_0_x86_64": "x86_64-macos.11.0",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
    "win_amd64": "x86_64-windows-gnu",
}


class NativeBuildHook(BuildHookInterface[Any]):
    """Adds the compiled libraries to a wheel, and the platform to its name.

    An editable installation has them beside their sources.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; called by hatchling before it collects the files."""
        wanted = os.environ.get("DYMN_WHEEL_FOR", "")
        if wanted and wanted not in WHEELS:
            raise ValueError(f"DYMN_WHEEL_FOR is {wanted!r}; allowed: {', '.join(WHEELS)}.")
        here = Path(self.root) / FOLDER
        platform_tag = wanted or sysconfig.get_platform().replace("-", "_").replace(".", "_")
        target = here if version == "editable" else Path(self.root) / "build" / platform_tag
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob("_native*"):
            old.unlink()
        compilers = cross_compilers(WHEELS[wanted]) if wanted else compilers_here()
        sources = [str(path) for path in sorted(here.glob("*.c"))]
        commands = [[*compiler, *FLAGS, "-o", str(target / name), *sources] for name, compiler in compilers.items()]
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(compile_library, commands))
        except (OSError, subprocess.SubprocessError) as error:
            if wanted:
                raise
            self.app.display_warning(
                f"dymn is built without compiled code, and so needs ONNX Runtime or PyTorch: {error}"
            )
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag}"
        if version != "editable":
            build_data["force_include"] |= {str(target / name): f"dymn/native/{name}" for name in compilers}


def compile_library(command: list[str]) -> None:
    """Run a compiler, or raise."""
    subprocess.run(command, check=True, capture_output=True, timeout=1800)


def compilers_here() -> dict[str, list[str]]:
    """Return the commands that make each library for this machine."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    builds = X86_BUILDS if platform.machine().lower() in ("x86_64", "amd64") else {"_native": []}
    return {name + suffix: [*os.environ.get("CC", "cc").split(), *flags] for name, flags in builds.items()}


def cross_compilers(target: str) -> dict[str, list[str]]:
    """Return the commands that make each library for another platform."""
    suffix = ".dll" if "windows" in target else ".dylib" if "macos" in target else ".so"
    builds = CROSS_X86_BUILDS if target.startswith("x86_64") else {"_native": []}
    if "windows" in target:  # the compiler does not finish with AVX-512 for this system
        builds = {name: flags for name, flags in builds.items() if name != "_native_v4"}
    return {
        name + suffix: [sys.executable, "-m", "ziglang", "cc", "-target", target, *flags]
        for name, flags in builds.items()
    }
