"""What people install: the wheel and the sdist hold what they must, and the wheel works in another environment."""

import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from dymn import __version__
from dymn.serve.assets import NEEDED
from dymn.system.toml import tomllib
from test_benchmarks import load as load_benchmark

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SUFFIXES = {".py", ".typed", ".safetensors", ".csv", ".toml", ".html", ".css", ".js"}
FILES = {
    path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "dymn").rglob("*") if path.suffix in SUFFIXES
}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    options = ("--no-isolation", "--sdist", "--wheel")  # the files of `make page` are not in the sdist
    command = [sys.executable, "-m", "build", *options, "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_wheel_holds_the_package_and_nothing_else(dist):
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= FILES
    assert "dymn/py.typed" in names
    assert "dymn/weights/audioset_labels.csv" in names
    assert f"dymn-{__version__}.dist-info/licenses/LICENSE" in names
    assert {name.split("/")[0] for name in names} == {"dymn", f"dymn-{__version__}.dist-info"}
    page = {f"dymn/serve/page/vendor/{name}.gz" for name in NEEDED}
    has_page = (ROOT / "src" / "dymn" / "serve" / "page" / "vendor").is_dir()
    assert (page <= names) == has_page  # what `make page` installed
    assert wheel.stat().st_size < (14e6 if has_page else 8e6)


def test_wheels_are_built_after_the_files_of_the_page():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^wheels:.*\bpage$", makefile, re.M) and re.search(r"^package:.*\bpage\)?$", makefile, re.M)


def test_sdist_builds_tests_and_demonstrates_itself(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "Makefile",
        "Dockerfile",
        "constraints.txt",
        "platforms/check.py",
    )
    wanted += ("src/dymn/py.typed", "tests/test_package.py")
    assert set(wanted) <= names
    # what was compiled here is for wheels
    assert not [name for name in names if Path(name).suffix in {".so", ".dylib", ".dll"}]
    assert {f"examples/audio/{path.name}" for path in (ROOT / "examples" / "audio").iterdir()} <= names


def test_wheel_works_in_another_environment(dist, tmp_path):
    """Without the dependencies, which it borrows from this environment; `make package` installs them too."""
    (wheel,) = dist.glob("*.whl")
    target = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r}); import dymn.cli; "
        f"assert {str(target)!r} in dymn.__file__; dymn.cli.main()"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"dymn {__version__}"
    assert (target / "bin" / "dymn").exists() or (target / "Scripts" / "dymn.exe").exists()


def requirements(lines):
    return [
        re.match(r"[A-Za-z0-9._-]+", line).group().lower().replace("_", "-")
        for line in lines
        if not line.startswith("dymn[")
    ]


def test_the_extra_all_brings_every_extra():
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    named = set(re.fullmatch(r"dymn\[(.*)\]", everything).group(1).split(","))
    # two gigabytes, older versions of others, and a compiler
    assert named == set(extras) - {"all", "dev", "docs", "executorch", "litert", "sed"}


def test_pytorch_is_an_extra_on_which_others_build():
    extras = PROJECT["optional-dependencies"]
    core = requirements(PROJECT["dependencies"])
    assert not {"torch", "huggingface-hub", "lightning-fabric", "scikit-learn", "matplotlib"} & set(core)
    assert {"numpy", "soundfile", "soxr", "av", "safetensors", "typer", "rich"} <= set(core)
    assert [name for name, lines in extras.items() if "torch" in requirements(lines)] == ["torch"]
    assert "torch" in re.fullmatch(r"dymn\[(.*)\]", extras["train"][0]).group(1).split(",")


def test_extras_that_errors_name_exist():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r"MissingExtraError\([^()]*, \"(\w+)\"\)", sources))
    assert named and named <= set(PROJECT["optional-dependencies"])


def test_wheels_and_the_release_know_the_same_platforms():
    build = (ROOT / "hatch_build.py").read_text(encoding="utf-8")
    platforms = re.findall(r'^    "(\w+)": "[\w.-]+",$', build, re.M)
    made = re.search(r"for platform in (.*); do", (ROOT / "Makefile").read_text(encoding="utf-8")).group(1).split()
    assert made == platforms and len(platforms) == 5


def test_an_installation_is_measured_by_packages(tmp_path):
    measure = load_benchmark("install_size").measure
    for name, files in (("numpy", {"numpy/a.py": 10, "numpy/b.so": 300}), ("av", {"av/c.so": 5000})):
        record = []
        for file, size in files.items():
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes(b"x" * size)
            record.append(f"{file},,")
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1\n")
        (info / "RECORD").write_text("\n".join(record))
    assert measure(tmp_path) == {"av": 5000, "numpy": 310}


def test_constraints_pin_what_the_project_names():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [
        re.fullmatch(r"([a-z0-9-]+)==([^;]+)(; python_version (?:<|>=) \"3\.11\")?", line)
        for line in lines
        if not line.startswith("#")
    ]
    assert all(pins), "each line is a comment or `name==version`, with a marker for Python 3.10 at most"
    pinned = {pin.group(1) for pin in pins}
    wanted = requirements(PROJECT["dependencies"]) + [
        name for extra in PROJECT["optional-dependencies"].values() for name in requirements(extra)
    ]
    assert set(wanted) - pinned <= {"tomli"}  # only for Python 3.10
    assert "torch==2.13.0" in lines


def test_versions_agree():
    assert version("dymn") == __version__
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(
        r"^## \[(Unreleased|" + re.escape(__version__) + r")\]",
        (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        re.M,
    )
