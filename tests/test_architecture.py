"""The picture in docs/architecture.md, kept true: who may import whom, what importing costs, how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "dymn"
MAX_LINES = 450

# From the ground up. A module imports from its own floor and those before it, never from one after it.
FLOORS = (
    ("errors", "_toml", "files", "signals", "pickles", "cpus", "devices", "ahead"),
    ("config", "backends", "native"),
    ("layers",),
    ("blocks", "weights.labels"),
    ("hub",),
    ("model", "frontend", "features"),
    ("opening", "containers", "decoding", "audio", "windows", "sliding", "recordings", "pcm", "capture", "parquet", "journal"),
    ("paper", "losses", "schedules", "metrics", "augment", "inherit", "fast"),
    ("weights",),
    (
        "profiling",
        "data",
        "selection",
        "torch_backend",
        "embedding",
        "embedder",
        "tagger",
        "formats",
        "embedding_formats",
        "explain",
        "events",
        "live",
        "pictures",
        "compiled_backend",
        "onnx_backend",
        "export",
    ),
    ("hear", "probe", "sklearn", "classifier", "serve", "bulk", "ray"),
    ("training", "recipes"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
# Inside a function, and with a reason: a network class can fetch its own weights by name.
UPWARD = {("hub", "weights.checkpoint")}


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SRC.rglob("*.py"))}


def floor(module: str) -> int:
    """Return the number of a module's floor: that of its longest prefix in FLOORS."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        for number, rooms in enumerate(FLOORS):
            if ".".join(parts[:end]) in rooms:
                return number
    raise AssertionError(f"dymn.{module} has no floor: name it in FLOORS, and in docs/architecture.md")


def imports(module: str) -> set[str]:
    """Return the modules of dymn that a module imports anywhere, except for type checkers only."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"dymn.{module}, line {child.lineno}: import by full name"
                if child.module == "dymn" or (child.module or "").startswith("dymn."):
                    home = child.module.removeprefix("dymn").removeprefix(".")
                    for alias in child.names:
                        inner = f"{home}.{alias.name}".removeprefix(".")
                        found.add(inner if inner in MODULES else home)
            elif isinstance(child, ast.Import):
                found.update(alias.name.removeprefix("dymn.") for alias in child.names if alias.name.startswith("dymn."))
            walk(child)

    walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    return found - {"", module}


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_only_from_below(module):
    upward = {(module, other) for other in imports(module) if floor(other) > floor(module)}
    assert upward <= UPWARD, f"{upward - UPWARD}: lower floors never import upper ones"


def test_exceptions_are_needed():
    assert all(other in imports(module) for module, other in UPWARD)


@pytest.mark.parametrize("module", MODULES)
def test_length(module):
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: is it still one idea?"


@pytest.mark.parametrize("module", MODULES)
def test_no_prints(module):
    if module.partition(".")[0] in ("commands", "cli"):
        return
    calls = (node for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_names_say_something():
    assert not [name for name in MODULES if name.split(".")[-1] in ("utils", "helpers", "common", "misc")]


HEAVY = (
    "fastapi",
    "starlette",
    "uvicorn",
    "pyarrow",
    "ray",
    "torch",
    "numpy",
    "soundfile",
    "soxr",
    "safetensors",
    "huggingface_hub",
    "sklearn",
    "matplotlib",
    "av",
    "h5py",
    "rich",
)


@pytest.mark.parametrize("statement", ["import dymn", "import dymn.cli", "import dymn; dir(dymn)"])
def test_importing_is_light(statement):
    code = f"import sys, threading; {statement}; print(*[m for m in {HEAVY} if m in sys.modules], threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = set(done.stdout.split()[:-1]) - ({"rich"} if "cli" in statement else set())  # typer brings rich
    assert not heavy
    assert done.stdout.split()[-1] == "1"
    assert done.stderr == ""


def test_importing_everything_prints_nothing_and_opens_nothing():
    names = [f"dymn.{name}" for name in MODULES if name and name != "__main__"]
    code = (
        "import sys, importlib, threading\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, a: opened.append(a[0]) if event == 'open' and a[2] & 3 else None)\n"  # 3: not only for reading
        f"for name in {names}: importlib.import_module(name)\n"
        "print(opened)"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_the_documentation_shows_the_same_floors():
    page = (SRC.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert [tuple(name.strip(" `") for name in row[2].split(",")) for row in rows] == list(FLOORS[:-1])
