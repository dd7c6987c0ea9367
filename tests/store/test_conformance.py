"""What every store does, whichever it is: one suite for all implementations of the port.

The store in memory is a set of plain loops; what holds for it and for a database alike is what the port means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actionqueue.core.errors import (
    EpochLost,
    InvalidSubmission,
    StoreDamaged,
    StoreError,
    StoreHeld,
    StoreUnavailable,
)
from actionqueue.core.rows import latest_attempt_row, open_run, open_task
from actionqueue.core.spec import TaskOptions
from actionqueue.core.state import CANCELED, COMPLETED, FAILED, READY, RUNNING
from actionqueue.store import codec
from actionqueue.store.memory import MemoryStore
from actionqueue.store.port import Reader, RunFilter, Store
from actionqueue.store.sqlite import SQLiteStore
from tests.store.driver import SECOND, START, Driver, load, picture

Make = Callable[[Path], Store]
KINDS: dict[str, Make] = {"memory": lambda folder: MemoryStore(), "sqlite": lambda folder: SQLiteStore(folder / "q.db")}


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = KINDS[request.param](tmp_path)
    yield made
    made.close()


@pytest.fixture
def driver(store: Store) -> Driver:
    return Driver(store.open(pid=1, host="here"))


@pytest.fixture
def reader(driver: Driver, store: Store) -> Iterator[Reader]:
    made = store.reader()
    yield made
    made.close()


# --- opening -----------------------------------------------------------------------------------------------------


def test_a_new_store_is_empty_and_in_its_first_epoch(store: Store) -> None:
    """wal_reader_streaming#5: nothing to read, and at the end."""
    opened = store.open(pid=1, host="here")

    assert (opened.epoch, opened.last_seq, opened.last_hash) == (1, 0, codec.CHAIN_START)
    assert (opened.projected_seq, opened.restored, len(opened.store_id)) == (0, False, 16)
    facts, *tables = store.live_rows()
    assert (facts, [list(rows) for rows in tables]) == ({}, [[], [], []])


def test_opening_again_is_a_new_epoch_of_the_same_store_at_the_same_place(store: Store) -> None:
    """wal_partial_record#1: the sequence goes on where it was."""
    first = store.open(pid=1, host="here")
    driver = Driver(first)
    driver.run(3)
    store.commit(driver.batch(project=False))
    store.close()

    second = store.open(pid=2, host="there")

    assert (second.store_id, second.epoch) == (first.store_id, 2)
    assert (second.last_seq, second.last_hash, second.projected_seq) == (driver.last_seq, driver.last_hash, 0)


def test_an_open_store_is_not_opened_again(store: Store, driver: Driver) -> None:
    with pytest.raises(StoreHeld):
        (SQLiteStore(store.path) if isinstance(store, SQLiteStore) else store).open(pid=2, host="here")

    driver.run()
    store.commit(driver.batch())


def test_a_closed_store_refuses_to_write_and_closing_it_again_does_nothing(store: Store, driver: Driver) -> None:
    driver.run()
    store.close()
    store.close()

    with pytest.raises(StoreUnavailable):
        store.commit(driver.batch())


# --- committing --------------------------------------------------------------------------------------------------


def test_what_was_committed_is_read_back(store: Store, driver: Driver, reader: Reader) -> None:
    run_id = driver.run(body=b"payload")[0]
    batch = driver.batch(replies=[(b"command", b"reply", driver.now)])

    store.commit(batch)

    assert list(reader.commits(0)) == [batch.commit]
    assert list(reader.commits(driver.last_seq)) == []
    assert reader.projected_seq() == driver.last_seq
    assert batch.projection is not None
    assert reader.facts() == batch.projection.facts
    runs = reader.runs(RunFilter())
    assert runs == list(map(open_run, batch.projection.runs))
    assert reader.tasks(RunFilter()) == list(map(open_task, batch.projection.tasks))
    assert reader.attempts_of([run_id]) == {run_id: [latest_attempt_row(runs[0])]}
    assert reader.blobs([driver.tasks[0], run_id]) == {driver.tasks[0]: b"payload", run_id: b'"done"'}
    assert (reader.reply(b"command"), reader.reply(b"another")) == (b"reply", None)


def test_a_commit_of_another_epoch_is_refused_and_leaves_nothing(store: Store, driver: Driver, reader: Reader) -> None:
    driver.run()
    batch = driver.batch()
    batch.epoch += 1

    with pytest.raises(EpochLost):
        store.commit(batch)

    assert list(reader.commits(0)) == []
    assert (reader.runs(RunFilter()), reader.blobs(driver.tasks)) == ([], {})


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_commit_that_does_not_follow_the_log_is_refused_and_leaves_nothing(
    store: Store, driver: Driver, reader: Reader, wrong: int
) -> None:
    """concurrent_mutation_boundary/01, /03, mutation_authority#6: a stale sequence or a gap; then the right one."""
    driver.run()
    batch = driver.batch()
    batch.expected_seq += wrong

    with pytest.raises(StoreDamaged):
        store.commit(batch)

    assert (list(reader.commits(0)), reader.runs(RunFilter())) == ([], [])
    batch.expected_seq -= wrong
    store.commit(batch)


def test_a_commit_that_agrees_with_itself_and_not_with_the_log_is_refused(
    store: Store, driver: Driver, reader: Reader
) -> None:
    """Of an engine that goes on from elsewhere: what it expects and what it writes fit together, and not to the store."""
    driver.run()
    store.commit(driver.batch())
    logged = list(reader.commits(0))
    driver.last_seq += 5
    driver.run()

    with pytest.raises(StoreDamaged):
        store.commit(driver.batch())

    assert list(reader.commits(0)) == logged


def test_a_projection_alone_can_be_committed(store: Store, driver: Driver, reader: Reader) -> None:
    driver.run()
    store.commit(driver.batch(project=False))
    assert (reader.projected_seq(), reader.runs(RunFilter())) == (0, [])

    store.commit(driver.batch(project=True))

    assert (reader.projected_seq(), len(reader.runs(RunFilter()))) == (driver.last_seq, 1)


def test_projecting_the_same_twice_is_projecting_it_once(store: Store, driver: Driver, reader: Reader) -> None:
    driver.run(2, options=TaskOptions(tags=("red",)))
    driver.submit()
    store.commit(batch := driver.batch())
    before = (reader.runs(RunFilter()), reader.tasks(RunFilter()), reader.runs(RunFilter(tag="red")))

    batch.commit, batch.blobs, batch.expected_seq = None, [], driver.last_seq
    store.commit(batch)

    assert (reader.runs(RunFilter()), reader.tasks(RunFilter()), reader.runs(RunFilter(tag="red"))) == before


def test_entries_are_kept_replaced_and_taken_away(store: Store, driver: Driver, reader: Reader) -> None:
    driver.run()
    driver.machine.state.dirty_entries |= {("rate", "a"): b"1", ("rate", "b"): b"2", ("schedule", "a"): b"3"}
    store.commit(driver.batch())
    driver.run()
    driver.machine.state.dirty_entries |= {("rate", "a"): None, ("rate", "b"): b"4", ("rate", "never"): None}
    store.commit(driver.batch())

    assert reader.entries("rate") == [("rate", "b", b"4")]
    assert list(store.live_rows()[3]) == [("rate", "b", b"4"), ("schedule", "a", b"3")]


def test_records_are_kept_replaced_and_forgotten_by_chain(store: Store, driver: Driver, reader: Reader) -> None:
    first, second = driver.run(2)
    batch = driver.batch()
    batch.steps = [(first, "b", "step", 5, b"1"), (first, "a", "sleep", 5, b"2"), (second, "a", "step", 7, b"3")]
    store.commit(batch)
    assert reader.steps_of([first, second, bytes(16)]) == {
        first: [(first, "a", "sleep", 5, b"2"), (first, "b", "step", 5, b"1")],
        second: [(second, "a", "step", 7, b"3")],
        bytes(16): [],
    }

    driver.run()
    batch = driver.batch()
    batch.dropped_steps, batch.steps = [second], [(first, "b", "step", 9, b"4"), (second, "c", "step", 9, b"5")]
    store.commit(batch)
    assert reader.steps_of([first, second]) == {
        first: [(first, "a", "sleep", 5, b"2"), (first, "b", "step", 9, b"4")],
        second: [(second, "c", "step", 9, b"5")],
    }
    assert reader.steps_of([]) == {}


def test_records_leave_with_their_task(store: Store, driver: Driver, reader: Reader) -> None:
    first, second = driver.run(2)
    batch = driver.batch()
    batch.steps = [(first, "a", "step", 5, b"1"), (second, "a", "step", 5, b"2")]
    store.commit(batch)
    driver.prune(reader, 1)
    store.commit(driver.batch())

    assert sorted(len(rows) for rows in reader.steps_of([first, second]).values()) == [0, 1]


def test_a_payload_that_is_there_is_never_overwritten(store: Store, driver: Driver, reader: Reader) -> None:
    driver.submit(body=b"first")
    task_id = driver.tasks[0]
    store.commit(driver.batch())

    driver.blobs.append((task_id, b"second"))
    store.commit(driver.batch())

    assert reader.blobs([task_id]) == {task_id: b"first"}


def test_the_log_is_read_from_any_sequence_on(store: Store, driver: Driver, reader: Reader) -> None:
    """wal_partial_record#2, wal_reader_streaming#1."""
    commits = []
    for _ in range(3):
        driver.run()
        store.commit(batch := driver.batch())
        commits.append(batch.commit)
    assert commits[0] is not None
    assert commits[1] is not None

    assert list(reader.commits(commits[0].last_seq)) == commits[1:]
    assert list(reader.commits(commits[1].last_seq - 1)) == commits[1:]


# --- recovery ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_live_rows_and_the_tail_give_the_state_that_was(store: Store, driver: Driver, seed: int) -> None:
    driver.random.seed(seed)
    for turn in range(40):
        driver.step()
        if turn == 20:
            driver.pause()
        if turn % 3 == 0:
            store.commit(driver.batch(project=turn % 2 == 0))
    store.commit(driver.batch(project=False))
    store.close()

    machine = load(store, store.open(pid=2, host="here"))

    assert picture(machine.state) == picture(driver.state)
    assert driver.state.runs


def test_a_state_can_be_taken_on_from_where_it_was_loaded(store: Store, driver: Driver) -> None:
    run_id = driver.submit()[0]
    driver.start()
    store.commit(driver.batch())
    store.close()
    opened = store.open(pid=2, host="here")

    again = Driver(opened, machine=load(store, opened))
    store.commit(again.batch())

    reader = store.reader()
    (row,) = reader.runs_by_id([run_id]).values()
    (attempt,) = reader.attempts_of([run_id])[run_id]
    assert (row[5], attempt[8]) == ("lost", "lost")
    reader.close()


# --- look-ups ----------------------------------------------------------------------------------------------------


def test_what_does_not_exist_is_left_out(reader: Reader) -> None:
    nothing = b"n" * 16

    assert (reader.runs_by_id([nothing]), reader.tasks_by_id([nothing]), reader.blobs([nothing])) == ({}, {}, {})
    assert (reader.tasks_by_key(["none"]), reader.runs_of(nothing)) == ({}, [])
    assert reader.attempts_of([nothing]) == {nothing: []}
    assert (reader.runs_by_id([]), reader.blobs([]), reader.attempts_of([])) == ({}, {}, {})
    assert reader.anchor() is None


def test_many_are_looked_up_at_once(store: Store, driver: Driver, reader: Reader) -> None:
    ids = driver.run(700)
    store.commit(driver.batch())

    assert set(reader.runs_by_id(ids)) == set(ids)
    assert set(reader.tasks_by_id(driver.tasks)) == set(driver.tasks)
    assert len(reader.blobs([*ids, *driver.tasks])) == 1400
    assert {id: len(rows) for id, rows in reader.attempts_of(ids).items()} == dict.fromkeys(ids, 1)


def test_a_key_names_its_newest_task(store: Store, driver: Driver, reader: Reader) -> None:
    driver.run(key="k", key_lifetime_us=1, content=b"c" * 16)
    store.commit(driver.batch())
    driver.tick(SECOND)
    driver.run(key="k", content=b"c" * 16, task_id=b"\1" * 16)
    store.commit(driver.batch())

    assert reader.tasks_by_key(["k"])["k"][0] == b"\1" * 16
    assert {row[1] for row in reader.runs(RunFilter(key="k"))} == set(driver.tasks)
    assert {row[0] for row in reader.tasks(RunFilter(key="k"))} == set(driver.tasks)


def test_attempts_come_by_number(store: Store, driver: Driver, reader: Reader) -> None:
    run_id = driver.submit(max_attempts=3)[0]
    for _ in range(3):
        driver.tick(600 * SECOND)
        driver.machine.fire_due(driver.now, driver.source.next, driver.events)
        driver.start()
        driver.fail(run_id)
    store.commit(driver.batch())

    assert [row[1] for row in reader.attempts_of([run_id])[run_id]] == [1, 2, 3]


@pytest.mark.parametrize("digits", [6, 7, 9, 31, 32])
def test_the_end_of_an_id_finds_it(store: Store, driver: Driver, reader: Reader, digits: int) -> None:
    ended, live = driver.run(20), driver.submit(count=20)
    store.commit(driver.batch())

    for run_id in (ended[3], live[4]):
        assert reader.ids_ending(run_id.hex()[-digits:], "runs") == [run_id]
    for task_id in (driver.tasks[2], driver.tasks[-2]):
        assert reader.ids_ending(task_id.hex()[-digits:], "tasks") == [task_id]


def test_the_end_of_an_id_may_be_written_with_dashes_and_capitals(store: Store, driver: Driver, reader: Reader) -> None:
    run_id = driver.run()[0]
    store.commit(driver.batch())
    text = run_id.hex().upper()

    assert reader.ids_ending(f"{text[-16:-12]}-{text[-12:]}", "runs") == [run_id]


@pytest.mark.parametrize("suffix", ["abcde", "", "0" * 33, "ghijkl", "12345_7"])
def test_what_cannot_be_the_end_of_an_id_is_refused(reader: Reader, suffix: str) -> None:
    with pytest.raises(InvalidSubmission):
        reader.ids_ending(suffix, "runs")


# --- listings ----------------------------------------------------------------------------------------------------


def test_pages_by_cursor_show_each_run_once_newest_first(store: Store, driver: Driver, reader: Reader) -> None:
    ids = [*driver.run(5), *driver.submit("resize", 5, queue="slow"), *driver.run(5)]
    store.commit(driver.batch())

    seen: list[bytes] = []
    while page := reader.runs(RunFilter(cursor=seen[-1] if seen else None, limit=4)):
        seen += [row[0] for row in page]

    assert seen == sorted(ids, reverse=True)


def test_text_is_looked_for_in_kind_message_and_handler_but_not_in_the_traceback(
    store: Store, driver: Driver, reader: Reader
) -> None:
    kind, message, other = driver.submit("mail", 3)
    named = driver.submit("report.daily")[0]
    driver.start()
    driver.fail(kind, "FindMeError", terminal=True)
    driver.fail(message, message="please find me", terminal=True)
    driver.fail(other, terminal=True)
    store.commit(driver.batch())

    def found(text: str) -> set[bytes]:
        return {row[0] for row in reader.runs(RunFilter(text=text, since=START))}

    assert (found("FindMe"), found("find me"), found("daily")) == ({kind}, {message}, {named})
    assert (found("secret words"), found("findme")) == (set(), set())


def test_text_needs_since(reader: Reader) -> None:
    with pytest.raises(InvalidSubmission):
        reader.runs(RunFilter(text="x"))


def test_a_run_whose_command_waited_long_is_found_by_when_it_was_created(
    store: Store, driver: Driver, reader: Reader
) -> None:
    old = driver.source.next(driver.now)
    driver.submit()
    store.commit(driver.batch())
    driver.tick(86_400 * SECOND)
    run_id = driver.submit(task_id=old, task_id_given=True)[0]
    driver.source.next(driver.now + 3600 * SECOND)
    ahead = driver.submit()[0]  # made by a source whose clock ran ahead
    store.commit(driver.batch())

    found = reader.runs(RunFilter(since=driver.now, until=driver.now + 1))

    assert [row[0] for row in found] == [ahead, run_id]
    assert old in {row[0] for row in reader.tasks(RunFilter(since=driver.now, until=driver.now + 1))}


CODES = st.sampled_from([READY, RUNNING, 4, COMPLETED, FAILED, CANCELED, 0])
NAMES = st.sampled_from(["mail", "resize", "nobody"])


@st.composite
def filters(draw: st.DrawFn, driver: Driver) -> RunFilter:
    """Any combination of conditions, mostly such that something fits."""
    some_run = st.sampled_from(driver.runs)
    some_instant = st.integers(START - 10, driver.now + 10)
    text = draw(st.none() | st.sampled_from(["needle", "mail", "kaputt", "wrong", "é"]))
    since = draw(some_instant) if text is not None else draw(st.none() | some_instant)
    return RunFilter(
        states=draw(st.none() | st.lists(CODES, max_size=4).map(tuple)),
        task=draw(st.none() | st.none() | st.sampled_from(driver.tasks)),
        handler=draw(st.none() | NAMES),
        queue=draw(st.none() | st.sampled_from(["default", "slow", "none"])),
        tag=draw(st.none() | st.sampled_from(["red", "blue", "none"])),
        key=draw(st.none() | st.none() | st.sampled_from(sorted(driver.state.keys) or ["none"])),
        since=since,
        until=draw(st.none() | some_instant),
        error=draw(st.none() | st.sampled_from(["ValueError", "KeyError", "none"])),
        text=text,
        ids=draw(st.none() | st.none() | st.lists(some_run | st.sampled_from(driver.tasks), max_size=5).map(tuple)),
        cursor=draw(st.none() | some_run),
        limit=draw(st.sampled_from([0, 1, 3, 100])),
    )


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Driver, Reader, Reader]]:
    """A store of each kind, given the same batches."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        stores = [make(Path(folder)) for make in KINDS.values()]
        opened = [store.open(pid=1, host="here") for store in stores]
        driver = Driver(opened[0], seed=5)
        for turn in range(120):
            driver.step()
            if turn % 10 == 0:
                batch = driver.batch()
                for store in stores:
                    store.commit(batch)
        batch = driver.batch()
        for store in stores:
            store.commit(batch)
            stack.callback(store.close)
        readers = [store.reader() for store in stores]
        for reader in readers:
            stack.callback(reader.close)
        yield driver, readers[0], readers[1]


@given(data=st.data())
@settings(max_examples=400)
def test_the_stores_agree_on_every_filter(pair: tuple[Driver, Reader, Reader], data: st.DataObject) -> None:
    driver, plain, other = pair
    wanted = data.draw(filters(driver))

    assert other.runs(wanted) == plain.runs(wanted)
    assert other.tasks(wanted) == plain.tasks(wanted)


@given(data=st.data())
def test_the_stores_agree_on_every_look_up(pair: tuple[Driver, Reader, Reader], data: st.DataObject) -> None:
    driver, plain, other = pair
    tasks = data.draw(st.lists(st.sampled_from(driver.tasks), max_size=9))
    runs = data.draw(st.lists(st.sampled_from(driver.runs), max_size=9))
    at = data.draw(st.integers(START, driver.now + 1))

    assert other.tasks_by_id(tasks) == plain.tasks_by_id(tasks)
    assert other.runs_by_id(runs) == plain.runs_by_id(runs)
    assert other.attempts_of(runs) == plain.attempts_of(runs)
    assert other.blobs(tasks + runs) == plain.blobs(tasks + runs)
    assert [other.runs_of(task) for task in tasks] == [plain.runs_of(task) for task in tasks]
    assert other.finished_before(at, 7, 2) == plain.finished_before(at, 7, 2)


def test_the_stores_hand_out_the_same_rows_when_scanned(pair: tuple[Driver, Reader, Reader]) -> None:
    driver, plain, other = pair

    with plain.scan() as one, other.scan() as two:
        for table in (
            "commits",
            "facts",
            "tasks",
            "runs",
            "attempts",
            "run_tags",
            "blobs",
            "steps",
            "replies",
            "anchors",
        ):
            assert list(two.rows(table)) == list(one.rows(table)), table
        for table in ("tasks", "runs"):
            assert sorted(two.live(table)) == sorted(one.live(table)), table
        assert list(two.runs_by_task(["task_id", "id"])) == list(one.runs_by_task(["task_id", "id"]))
        tags = {id: sorted(tags) for id, tags in one.tags_of(driver.runs).items()}
        assert {id: sorted(tags) for id, tags in two.tags_of(driver.runs).items()} == tags
        assert [scan.has("runs", driver.runs[0]) for scan in (one, two)] == [True, True]
        assert (one.structure_problems(), two.structure_problems()) == ([], [])


def test_the_oldest_run_in_a_state_is_found(store: Store, driver: Driver, reader: Reader) -> None:
    first, _ = driver.submit(count=2)
    store.commit(driver.batch())

    oldest = reader.oldest(READY)

    assert oldest is not None
    assert (oldest[0], reader.oldest(FAILED)) == (first, None)


def test_refusals_are_listed_newest_first(store: Store, driver: Driver, reader: Reader) -> None:
    refused = codec.encode_reply(InvalidSubmission("no"))
    replies = [(bytes([n]) * 16, refused if n % 2 else codec.encode_reply(7), driver.now) for n in range(6)]
    driver.run()
    store.commit(driver.batch(replies=replies))

    assert reader.refusals(2) == [(bytes([n]) * 16, refused) for n in (5, 3)]
    assert reader.refusals(2, before=bytes([3]) * 16) == [(bytes([1]) * 16, refused)]


# --- retention ---------------------------------------------------------------------------------------------------


def test_a_pruned_task_leaves_nothing_and_its_neighbours_everything(
    store: Store, driver: Driver, reader: Reader
) -> None:
    driver.run(3, options=TaskOptions(tags=("red",)))
    live = driver.submit()
    store.commit(driver.batch())

    pruned = driver.prune(reader, 2)
    store.commit(driver.batch())

    left = [row[0] for row in reader.runs(RunFilter())]
    assert (len(left), live[0] in left) == (2, True)
    assert [row[0] for row in reader.runs(RunFilter(tag="red"))] == [id for id in left if id not in live]
    assert (reader.tasks_by_id(pruned), [reader.runs_of(task) for task in pruned]) == ({}, [[], []])
    assert set(reader.blobs([*driver.tasks, *driver.runs])) == {*left, *driver.tasks} - {*pruned, *live}
    assert {id for id, rows in reader.attempts_of(driver.runs).items() if rows} == {*left} - {*live}
    assert load_again(store, driver) == picture(driver.state)


def load_again(store: Store, driver: Driver) -> object:
    store.close()
    return picture(load(store, store.open(pid=2, host="here")).state)


def test_tasks_finished_longest_come_first(store: Store, driver: Driver, reader: Reader) -> None:
    slow = driver.submit()[0]
    driver.start()
    driver.run(3)
    driver.tick()
    driver.finish(slow)
    driver.submit()
    store.commit(driver.batch())

    found = [row[0] for row in reader.finished_before(driver.now + 1, 10)]

    assert found == [*driver.tasks[1:4], driver.tasks[0]]
    assert [row[0] for row in reader.finished_before(driver.now, 10)] == driver.tasks[1:4]
    assert [row[0] for row in reader.finished_before(driver.now + 1, 2, 1)] == driver.tasks[2:4]


def fill_log(store: Store, driver: Driver, count: int) -> list[int]:
    """That many commits; the sequence at which each ends."""
    ends = []
    for _ in range(count):
        driver.run()
        driver.tick(SECOND)
        store.commit(driver.batch())
        ends.append(driver.last_seq)
    return ends


def test_a_pruned_log_begins_at_its_anchor_and_still_checks_out(store: Store, driver: Driver, reader: Reader) -> None:
    ends = fill_log(store, driver, 6)
    kept = list(reader.commits(ends[2]))

    assert store.prune_log(ends[-1], driver.now, 3) == 3

    anchor = reader.anchor()
    assert anchor is not None
    assert (anchor.seq, kept[0].hash) == (ends[2], codec.chain(anchor.hash, kept[0].events))
    assert list(reader.commits(0)) == kept
    assert store.prune_log(ends[-1], driver.now, 1) == 1
    assert list(reader.commits(0)) == kept[1:]
    assert load_again(store, driver) == picture(driver.state)


def test_the_log_keeps_what_is_young_what_is_wanted_and_its_last_commit(
    store: Store, driver: Driver, reader: Reader
) -> None:
    ends = fill_log(store, driver, 4)
    first = next(iter(reader.commits(0)))

    assert store.prune_log(ends[-1], first.at, 10) == 0
    assert store.prune_log(ends[0], driver.now, 10) == 0
    assert store.prune_log(ends[1], driver.now, 10) == 1
    assert store.prune_log(10**9, 10**17, 10) == 2
    assert [commit.last_seq for commit in reader.commits(0)] == ends[3:]
    assert store.prune_log(10**9, 10**17, 10) == 0


def test_the_log_keeps_what_the_projection_has_not_reached(store: Store, driver: Driver, reader: Reader) -> None:
    fill_log(store, driver, 1)
    for _ in range(3):
        driver.run()
        store.commit(driver.batch(project=False))

    assert store.prune_log(10**9, 10**17, 10) == 1
    assert len(list(reader.commits(0))) == 3


def test_replies_expire(store: Store, driver: Driver, reader: Reader) -> None:
    driver.run()
    store.commit(driver.batch(replies=[(b"a", b"1", 100), (b"b", b"2", 200)]))

    store.prune_replies(100)

    assert (reader.reply(b"a"), reader.reply(b"b")) == (None, b"2")


def test_upkeep_says_how_large_the_store_is(store: Store, driver: Driver) -> None:
    driver.run(100)
    store.commit(driver.batch())

    assert set(store.maintain()) == {"wal_bytes", "db_bytes", "free_bytes", "checkpointed"}


# --- copies ------------------------------------------------------------------------------------------------------


def test_a_backup_is_a_store_that_opens_as_restored_until_something_is_committed(
    store: Store, driver: Driver, tmp_path: Path
) -> None:
    driver.run(5, options=TaskOptions(tags=("red",)))
    driver.submit(key="k", content=b"c" * 16)
    store.commit(driver.batch(replies=[(b"command", b"reply", driver.now)]))
    driver.run(2)
    store.commit(driver.batch(project=False))
    source = store.reader()

    store.backup(str(tmp_path / "copy.db"))

    copy = SQLiteStore(tmp_path / "copy.db")
    assert copy.open(pid=1, host="here").restored
    copy.close()
    opened = copy.open(pid=1, host="here")
    assert (opened.restored, opened.last_seq, opened.last_hash) == (True, driver.last_seq, driver.last_hash)
    assert opened.epoch > driver.epoch + 1
    machine = load(copy, opened)
    assert picture(machine.state) == picture(driver.state)
    reader = copy.reader()
    assert list(reader.commits(0)) == list(source.commits(0))
    assert reader.runs(RunFilter(tag="red")) == source.runs(RunFilter(tag="red"))
    assert (reader.blobs(driver.tasks), reader.reply(b"command")) == (source.blobs(driver.tasks), b"reply")
    reader.close()
    source.close()
    copy.commit(Driver(opened, machine=machine).batch())
    copy.close()
    assert not copy.open(pid=1, host="here").restored
    copy.close()


def test_a_backup_is_written_to_a_new_file_only(store: Store, driver: Driver, tmp_path: Path) -> None:
    driver.run()
    store.commit(driver.batch())
    (tmp_path / "there.db").write_bytes(b"precious")

    with pytest.raises(StoreError):
        store.backup(str(tmp_path / "there.db"))

    assert (tmp_path / "there.db").read_bytes() == b"precious"
