"""What the README and the documentation say is run: their commands, their Python, their links.

A fenced block marked `console` or `python` is run, in the order of its page, in a folder with small stand-ins for the
reader's own files. One that cannot be (it downloads, or takes long) has `<!-- not run: WHY -->` on the line before it.
"""

import pkgutil
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SET_UP = {"pip", "pipx", "uv", "git", "apt"}  # they change the machine

FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.M | re.S)
EXCUSE = re.compile(r"<!-- not run: \S.* -->\n$")
NAME = re.compile(r"(?:`|^::: )(dymn(?:\.[A-Za-z_]\w*)+)(?=[`(\[\n])", re.M)
TEST = re.compile(r"`(test_\w+)(?:\.py)?`")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|src=\"([^\"]+)\"|!\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = (match for match in FENCE.finditer(text) if not EXCUSE.search(text[: match.start()]))
    return [Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in found]


def commands(block: Block) -> list[list[str]]:
    """Return the lines of a console block that begin with `$ `, with those that continue them, as words."""
    joined = block.text.replace("\\\n", " ")
    lines = [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
    assert lines, f"line {block.line}: a console block has no line that begins with `$ `"
    return [shlex.split(line, comments=True) for line in lines]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A reader's folder: recordings of their own, clips in a folder a class, a model file."""
    import soundfile

    from dymn import create_model

    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(ROOT / "examples", folder / "examples")
    random = np.random.default_rng(0)
    folders = [f"{clips}/{label}" for clips in ("clips", "other_clips") for label in ("knock", "whistle")]
    for name in [f"{place}/{i}.wav" for place in folders for i in range(6)]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * random.standard_normal(8000), 32_000)
    soundfile.write(folder / "street.wav", 0.1 * random.standard_normal((44_100, 2)), 44_100, subtype="PCM_24")
    write_parquet(
        folder / "audioset" / "data" / "bal_train-00000.parquet", sorted((ROOT / "examples" / "audio").glob("*.ogg"))
    )
    (folder / "eca.py").write_text(blocks(ROOT / "docs" / "add-an-attention.md")[0].text)
    create_model("mn01", num_classes=2).save_pretrained(folder / "my_model")
    return folder


def write_parquet(path: Path, recordings: list[Path]) -> None:
    """Write recordings in the columns of AudioSet on the Hugging Face Hub."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True)
    labels = [["Animal", "Dog"], ["Music"]]
    rows = [
        {
            "video_id": place.stem,
            "audio": {"bytes": place.read_bytes(), "path": place.name},
            "labels": [],
            "human_labels": labels[i % 2],
        }
        for i, place in enumerate(recordings)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture
def at_desk(desk, monkeypatch):
    monkeypatch.chdir(desk)
    monkeypatch.setenv("DYMN_CACHE", str(desk / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    return desk


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_run(page, at_desk):
    from typer.testing import CliRunner

    from dymn.cli import app

    names: dict[str, object] = {}
    for block in blocks(page):
        if block.language == "python":
            exec(compile(block.text, f"{page.name}, line {block.line}", "exec"), names)
        if block.language != "console":
            continue
        for words in commands(block):
            if words[0] == "make":
                assert set(words[1:]) <= make_targets(), f"{page.name}, line {block.line}"
            elif words[0] not in SET_UP:
                assert words[0] == "dymn", (
                    f"{page.name}, line {block.line}: {words[0]} is not run here; say why it need not be"
                )
                result = CliRunner().invoke(app, words[1:])
                assert result.exit_code == 0, f"{page.name}, line {block.line}: {shlex.join(words)}\n{result.output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [next(filter(None, match.groups())) for match in LINK.finditer(text)]
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    missing = [target for target in local if target and not (page.parent / target).exists()]
    assert not missing
    places = [target.partition("#") for target in targets if re.match(r"[^:]*#", target)]
    dead = [
        f"{name}#{anchor}" for name, _, anchor in places if anchor not in anchors(page.parent / name if name else page)
    ]
    assert not dead


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings in its address, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    plain = (re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower() for heading in headings)
    return {re.sub(r"\s+", "-", heading) for heading in plain}


def test_every_excuse_excuses_something():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- not run:") == sum(
            bool(EXCUSE.search(text[: match.start()])) for match in FENCE.finditer(text)
        ), page.name


def test_blocks_have_a_language():
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.M)
        assert all(fences[::2]), f"{page.name}: say what a block is in, `text` if nothing else"
        assert not any(fences[1::2]), page.name


@pytest.mark.parametrize("folder", ["pages", "src", "benchmarks", "tests"])
def test_names_of_the_library_exist(folder):
    pages = [*PAGES, ROOT / "SECURITY.md"]
    files = pages if folder == "pages" else sorted((ROOT / folder).rglob("*.py"))
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    changelog = ROOT / "CHANGELOG.md"
    texts |= {changelog: unreleased(changelog.read_text(encoding="utf-8"))} if folder == "pages" else {}
    dead = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, text in texts.items()
        for name in set(NAME.findall(text))
        if not resolves(name)
    ]
    assert not dead


def unreleased(changelog: str) -> str:
    """Return the part of the changelog that is not part of a release yet.

    Names in older parts are those of their time.
    """
    return re.split(r"^## \[\d", changelog, maxsplit=1, flags=re.M)[0]


def resolves(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ModuleNotFoundError):
        return False
    return True


def test_tests_named_in_the_documentation_exist():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    known = set(re.findall(r"def (test_\w+)", sources)) | {path.stem for path in (ROOT / "tests").glob("*.py")}
    for page in PAGES:
        assert not set(TEST.findall(page.read_text(encoding="utf-8"))) - known, page.name
