"""The picture in docs/architecture.md, kept true.

No circle of imports, who never imports whom, what importing costs.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "dymn"
MAX_LINES = 450
MOST_ENTRIES = 32  # at the top of src/dymn

# Modules (with all below them) that never import PyTorch at module level, whatever they do inside a function.
NO_TORCH = ("config", "architectures", "weights", "audio", "native", "runtime.fold", "runtime.backend", "inference")
# The modules of `native` that hand compiled code to PyTorch, as its operations and their gradients; importing the
# others imports neither.
FOR_TORCH = {"native.gradients", "native.norm", "native.ops"}
# (importer, imported): no module at or below the first imports one at or below the second, lazily or otherwise.
NEVER = (
    ("system", "audio"),
    ("system", "inference"),
    ("audio", "inference"),
    ("models.layers", "native"),
    ("models.layers", "runtime"),
    ("runtime", "inference"),
    ("models", "training"),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SRC.rglob("*.py"))}


def imports(source: str, module: str, modules: set[str]) -> set[str]:
    """Return the modules of dymn that a module imports anywhere.

    At the top, inside functions, and for type checkers only.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"dymn.{module}, line {node.lineno}: import by full name"
            if node.module == "dymn" or (node.module or "").startswith("dymn."):
                home = node.module.removeprefix("dymn").removeprefix(".")
                for alias in node.names:
                    inner = f"{home}.{alias.name}".removeprefix(".")
                    found.add(inner if inner in modules else home)
        elif isinstance(node, ast.Import):
            found.update(alias.name.removeprefix("dymn.") for alias in node.names if alias.name.startswith("dymn."))
    return found - {"", module}


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the sets of modules that import each other in a circle (strongly connected components, by Tarjan's
    algorithm).
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: set[frozenset[str]] = set()

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            members, stack[at:] = frozenset(stack[at:]), []
            if len(members) > 1:
                found.add(members)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


GRAPH = {name: imports(path.read_text(encoding="utf-8"), name, set(MODULES)) for name, path in MODULES.items() if name}


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def rooms_of(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return what each room, a module or package at the top of dymn, imports of the others."""
    rooms: dict[str, set[str]] = {}
    for name, imported in graph.items():
        room = name.partition(".")[0]
        rooms.setdefault(room, set()).update({other.partition(".")[0] for other in imported} - {room})
    return rooms


def test_rooms_import_no_more_than_the_documentation_says():
    page = (SRC.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", page, re.M)
    written = {room: set(re.findall(r"`(\w+)`", others)) for room, others in rows}
    found = {room: others for room, others in rooms_of(GRAPH).items() if room != "__main__"}
    assert written.keys() == found.keys()
    missing = {room: others - written[room] for room, others in found.items() if others - written[room]}
    assert not missing, "docs/architecture.md lacks these"


def test_no_circle_of_imports():
    assert not circles(GRAPH)


def test_a_circle_is_found_wherever_it_is_written():
    modules = {"a", "b", "c"}
    graph = {
        "a": imports("from dymn import b", "a", modules),
        "b": imports("def f():\n    import dymn.c", "b", modules),
        "c": imports("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dymn.a import X", "c", modules),
    }
    assert circles(graph) == {frozenset(modules)}
    assert not circles(graph | {"c": set()})


@pytest.mark.parametrize(("importer", "imported"), NEVER)
def test_never(importer, imported):
    broken = {
        (name, other) for name in GRAPH if within(name, importer) for other in GRAPH[name] if within(other, imported)
    }
    assert not broken


def test_the_library_never_imports_commands():
    outside = (name for name in GRAPH if not within(name, "commands") and name not in ("cli", "__main__"))
    assert not [name for name in outside if any(within(other, "commands") for other in GRAPH[name])]


def test_the_command_line_needs_only_what_every_installation_has():
    project = re.search(r"^dependencies = \[(.*?)^\]", (SRC.parents[1] / "pyproject.toml").read_text(), re.M | re.S)
    declared = {*re.findall(r'"([a-z]+)', project[1]), "dymn", *sys.stdlib_module_names}
    for path in (*(SRC / "commands").rglob("*.py"), SRC / "cli.py", SRC / "__main__.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= declared, path


def test_top_of_the_package():
    entries = [path.name for path in SRC.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_modules_that_import_no_pytorch():
    names = [
        f"dymn.{name}" for name in MODULES if any(within(name, room) for room in NO_TORCH) and name not in FOR_TORCH
    ]
    code = (
        f"import sys, importlib\nfor name in {names}:\n"
        "    importlib.import_module(name)\n    assert 'torch' not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("module", MODULES)
def test_length(module):
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: is it still one idea?"


@pytest.mark.parametrize("module", MODULES)
def test_no_prints(module):
    if module.partition(".")[0] in ("commands", "cli"):
        return
    calls = (
        node for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    )
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
    code = (
        f"import sys, threading; {statement}; "
        f"print(*[m for m in {HEAVY} if m in sys.modules], threading.active_count())"
    )
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
        # 3: not only for reading
        "sys.addaudithook(lambda event, a: opened.append(a[0]) if event == 'open' and a[2] & 3 else None)\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "print(opened)"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def public_types(source: str) -> set[str]:
    """Return the classes and type aliases that a module defines at its top, without private ones and type variables."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if re.fullmatch(r"[A-Z]\w*[a-z]\w*", name)}


def test_public_types_are_recognised():
    source = "class A1b: ...\nclass _C: ...\nRows = list[int]\nT = 1\nMAX = 2\nx = 3\nSpan: TypeAlias = int\n"
    assert public_types(source) == {"A1b", "Rows", "Span"}


def test_a_type_has_a_name_of_its_own():
    """One word for one thing: a reader who has met a name in one module knows it in all others."""
    homes: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for name in public_types(path.read_text(encoding="utf-8")):
            homes.setdefault(name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}
