"""What the process-level tests share: programs that end with their test, and where its store is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.support import Programs

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever starts other processes takes its time."""
    for item in items:
        if HERE in item.path.parents and "programs" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    started = Programs(tmp_path)
    yield started
    started.dispose()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where the test's store is to be."""
    return tmp_path / "jobs.db"
