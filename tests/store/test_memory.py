"""The store in memory as the simulator uses it: faults at named points, and crashes."""

from __future__ import annotations

import pytest

from actionqueue.core.errors import CommitUnknown, StoreUnavailable
from actionqueue.store.memory import MemoryStore
from tests.store.driver import Driver, load, picture


class Faults:
    """Raises ``error`` at ``point``, once."""

    def __init__(self, point: str, error: Exception) -> None:
        self.point = point
        self.error: Exception | None = error
        self.seen: list[str] = []

    def __call__(self, point: str) -> None:
        self.seen.append(point)
        if point == self.point and self.error is not None:
            error, self.error = self.error, None
            raise error


def test_a_fault_before_the_write_leaves_nothing_and_the_batch_can_be_tried_again() -> None:
    store = MemoryStore(fault=Faults("before_write", StoreUnavailable("full")))
    driver = Driver(store.open(pid=1, host="here"))
    driver.run()
    batch = driver.batch()

    with pytest.raises(StoreUnavailable):
        store.commit(batch)
    assert list(store.reader().commits(0)) == []
    store.commit(batch)

    assert list(store.reader().commits(0)) == [batch.commit]
    assert isinstance(store.fault, Faults)
    assert store.fault.seen == ["before_write", "before_write", "after_write"]


@pytest.mark.parametrize(("point", "kept"), [("before_write", 0), ("after_write", 1)])
def test_after_an_unknown_outcome_nothing_is_written_until_it_is_opened_again(point: str, kept: int) -> None:
    store = MemoryStore(fault=Faults(point, CommitUnknown("?")))
    driver = Driver(store.open(pid=1, host="here"))
    driver.run()
    batch = driver.batch()

    for _ in range(2):
        with pytest.raises(CommitUnknown):
            store.commit(batch)

    store.crash()
    assert store.open(pid=2, host="here").last_seq == kept * driver.last_seq
    assert len(list(store.reader().commits(0))) == kept


def test_what_was_committed_outlives_a_crash() -> None:
    store = MemoryStore()
    driver = Driver(store.open(pid=1, host="here"))
    driver.submit(count=3)
    store.commit(driver.batch())
    driver.start()
    store.commit(driver.batch(project=False))
    store.crash()

    opened = store.open(pid=2, host="here")

    assert opened.epoch == 2
    assert picture(load(store, opened).state) == picture(driver.state)
