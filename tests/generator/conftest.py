"""A folder of images to train on."""

from pathlib import Path

import pytest
from helpers.small_trainings import write_discs


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 discs, 16 px."""
    path = tmp_path_factory.mktemp("images")
    write_discs(path)
    return path
