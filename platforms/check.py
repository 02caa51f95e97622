"""Runs dymn's wheel on other platforms, each in a root folder of Debian: `make platforms`.

    python platforms/check.py arm64     ARM, emulated by qemu: parity with PyTorch's numbers, and `dymn tag`
    python platforms/check.py trixie    Debian 13 with its Python 3.13 and PyTorch 2.6: parity, `dymn tag`, and the core
    of the tests

Needs Linux, root (for chroot), mmdebstrap, and qemu-user-static for ARM; where one is missing, the check is skipped
with the reason. The wheel is built here by ziglang. Nothing is installed outside build/platforms; a root folder that
exists is used again.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "platforms"
MIRROR = "http://deb.debian.org/debian"
SUITE, PYTHON, GLIBC = "trixie", "3.13", 41
CORE_TESTS = (
    "accelerator attention audio bulk cli cli_conventions compiled_backend compiled_layers context cpus decoding "
    "depthwise dyrelu efficientat embedding events formats frontend fused hub live losses model native numerics paper "
    "profiling sliding streams tagger weights_checkpoint weights_download weights_hub weights_registry windows"
)


@dataclass(frozen=True)
class Platform:
    """A Debian architecture and what is run there."""

    architecture: str  # Debian's name
    machine: str  # Linux's name
    variant: str  # of mmdebstrap; "extract" runs nothing of the foreign architecture
    packages: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    tests: bool = False


PLATFORMS = {
    "arm64": Platform("arm64", "aarch64", "extract", ("base-files", "dash", "libstdc++6", "python3")),
    "trixie": Platform(
        "amd64",
        "x86_64",
        "minbase",
        ("python3", "python3-torch"),
        ("pytest", "pytest-xdist", "hypothesis", "huggingface-hub", "scikit-learn", "matplotlib", "pyarrow"),
        tests=True,
    ),
}


def reason_to_skip(wanted: Platform) -> str | None:
    """Return what this machine lacks, or None."""
    if sys.platform != "linux":
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root, for chroot"
    if wanted.machine == "x86_64" != platform.machine():
        return "it needs an x86-64 processor"
    tools = ["mmdebstrap"] + ([] if wanted.machine == platform.machine() else [f"qemu-{wanted.machine}-static"])
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return (
        f"{' and '.join(missing)} not found; on Debian and Ubuntu: apt install mmdebstrap qemu-user-static"
        if missing
        else None
    )


def make_root(wanted: Platform, root: Path) -> None:
    """Make a root folder of Debian, with the emulator in it if the processor is another one."""
    if not root.is_dir():
        partial = root.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        options = ["--quiet", "--mode=root", f"--variant={wanted.variant}", f"--architectures={wanted.architecture}"]
        subprocess.run(
            ["mmdebstrap", *options, f"--include={','.join(wanted.packages)}", SUITE, str(partial), MIRROR], check=True
        )
        partial.rename(root)
    if wanted.machine != platform.machine():
        shutil.copy(str(shutil.which(f"qemu-{wanted.machine}-static")), root / "usr" / "bin")


def build_wheel(wanted: Platform) -> Path:
    """Build the wheel of this checkout for a platform."""
    folder = BUILD / "wheels" / wanted.machine
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(ROOT)]
    target = os.environ | {"DYMN_WHEEL_FOR": f"manylinux2014_{wanted.machine}"}
    subprocess.run(command, check=True, env=target, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wanted: Platform, root: Path, wheel: Path) -> None:
    """Install the wheel, its dependencies and the requirements of the tests into /opt/site of a root folder.

    The pip of this machine installs them.
    """
    site = root / "opt" / "site"
    shutil.rmtree(site, ignore_errors=True)
    fits = ["--constraint", str(ROOT / "constraints.txt")]
    fits += [f"--platform=manylinux_2_{minor}_{wanted.machine}" for minor in range(17, GLIBC + 1)]
    fits += [f"--platform=manylinux2014_{wanted.machine}", f"--python-version={PYTHON}", "--only-binary=:all:"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-warn-conflicts", "--target", str(site)]
    subprocess.run([*pip, *fits, str(wheel), *wanted.requirements], check=True)


def run(wanted: Platform, root: Path, *command: str) -> None:
    """Run Python in a root folder, with /proc and /dev where mounting is allowed; raise unless it succeeds."""
    emulator = [] if wanted.machine == platform.machine() else [f"/usr/bin/qemu-{wanted.machine}-static"]
    mounts = 'mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"; exec chroot "$0" "$@"'
    inside = ["unshare", "--mount", "sh", "-c", mounts, str(root), *emulator, "/usr/bin/python3", *command]
    environment = {
        "PATH": "/usr/sbin:/usr/bin",
        "HOME": "/root",
        "PYTHONPATH": "/opt/site",
        "OMP_NUM_THREADS": "1",
        "LC_ALL": "C.UTF-8",
    }
    print("$ python3", *command, flush=True)
    start = time.perf_counter()
    subprocess.run(inside, check=True, env=environment)
    print(f"({time.perf_counter() - start:.1f} s)\n", flush=True)


def write_fixtures(folder: Path) -> None:
    """Write networks and PyTorch's numbers, on this machine."""
    shutil.rmtree(folder, ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(ROOT / "platforms" / "parity.py"), "write", str(folder)], check=True, env=environment
    )


def copy_work(work: Path) -> None:
    """Copy what the checks read."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(BUILD / "numbers", work / "numbers")
    for part in ("examples", "platforms", "tests", "benchmarks", "docs"):
        shutil.copytree(ROOT / part, work / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "Makefile"):
        shutil.copy(ROOT / name, work)


def main() -> int:
    """Check a platform and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("platform", choices=PLATFORMS)
    given = parser.parse_args()
    wanted, root = PLATFORMS[given.platform], BUILD / given.platform
    if reason := reason_to_skip(wanted):
        print(f"{given.platform} is skipped: {reason}.")
        return 0
    BUILD.mkdir(parents=True, exist_ok=True)
    write_fixtures(BUILD / "numbers")
    make_root(wanted, root)
    install(wanted, root, build_wheel(wanted))
    copy_work(root / "dymn")
    try:
        run(wanted, root, "/dymn/platforms/parity.py", "check", "/dymn/numbers")
        run(wanted, root, "-m", "dymn", "tag", "/dymn/examples/audio/dog.ogg", "--model", "dymn04_open", "--top-k", "3")
        if wanted.tests:
            tests = [f"/dymn/tests/test_{name}.py" for name in CORE_TESTS.split()]
            run(wanted, root, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", *tests)
    except subprocess.CalledProcessError as error:
        print(f"{given.platform}: the command ended with {error.returncode}.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
