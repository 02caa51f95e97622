"""What several test modules need."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"the folder {folder} with published weights and fixtures is not here")
    return folder
