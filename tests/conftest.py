"""What several test modules need."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def misnamed(tmp_path: Path) -> Path:
    """A recording whose name is not text."""
    path = tmp_path / os.fsdecode(b"caf\xe9.ogg")
    try:
        shutil.copy(Path(__file__).parents[1] / "examples" / "audio" / "dog.ogg", path)
    except OSError:
        pytest.skip("the file system allows only text as names")
    return path


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Undo what `--quiet` does to the log: a command has its process for itself, tests share one."""
    logger = logging.getLogger("dymn")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what tests put into the cache out of the user's."""
    folder, before = tmp_path_factory.mktemp("cache"), os.environ.get("DYMN_CACHE")
    os.environ["DYMN_CACHE"] = str(folder)
    yield folder
    os.environ.pop("DYMN_CACHE")
    if before is not None:
        os.environ["DYMN_CACHE"] = before


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"the folder {folder} with published weights and fixtures is not here")
    return folder
