"""What several test modules need."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Undo what `--quiet` does to the log: a command has its process for itself, tests share one."""
    logger = logging.getLogger("dymn")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"the folder {folder} with published weights and fixtures is not here")
    return folder
