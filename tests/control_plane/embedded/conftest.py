"""Fixtures of the tests that start processes."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name, and that another user may pass (pytest's may not)."""
    folder = Path(tempfile.mkdtemp(prefix="ebb-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
