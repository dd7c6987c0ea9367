"""``queue.forecast``: beside a live engine, without one, from any process; and the real engine keeps to it."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from actionqueue import ActionQueue, Cron, Forecast, InvalidSubmission, Limit, Repeat, Retry, fixed
from actionqueue.core.forecast_text import lines_of
from actionqueue.store_client import StoreClient
from actionqueue.testing import Simulation

FRIDAY_NIGHT = datetime(2026, 10, 23, 20, 0, 0, 250_000, tzinfo=UTC)


def test_the_real_engine_does_what_is_called_exact_and_nothing_else_in_that_order(tmp_path: Path) -> None:
    """Over a change of the clock. Each handler notes when it was called."""
    queue = ActionQueue(tmp_path / "jobs.db")
    called: list[tuple[str, datetime]] = []
    failures = [ValueError("not yet")]

    @queue.task(name="nightly", schedule=Cron("30 2 * * *", timezone="Europe/Berlin"))
    def nightly() -> None:
        called.append(("nightly", sim.now))

    @queue.task(name="jittered", schedule=Cron("0 */12 * * *", timezone="America/New_York", jitter="20m"))
    def jittered() -> None:
        called.append(("jittered", sim.now))

    @queue.task(name="often")
    def often() -> None:
        called.append(("often", sim.now))

    @queue.task(name="later")
    def later() -> None:
        called.append(("later", sim.now))

    @queue.task(name="flaky", retry=Retry(max_attempts=3, backoff=fixed("90m")))
    def flaky() -> None:
        called.append(("flaky", sim.now))
        if failures:
            raise failures.pop()

    with Simulation(queue, starts_at=FRIDAY_NIGHT) as sim:
        often.options(schedule=Repeat(5, every="7h", first_at=FRIDAY_NIGHT + timedelta(hours=1))).submit()
        later.options(delay="26h").submit()
        flaky.submit()
        sim.run_until_idle()
        foreseen = queue.forecast(sim.now + timedelta(hours=60)).exact
        called.clear()
        sim.advance("60h")

    assert {each.kind for each in foreseen} == {"schedule", "scheduled", "retry"}
    steady = [(each.name, each.at.astimezone(UTC)) for each in foreseen if each.name != "jittered"]
    assert [each for each in called if each[0] != "jittered"] == steady
    ranges = [(each.at, each.latest or each.at) for each in foreseen if each.name == "jittered"]
    times = [at for name, at in called if name == "jittered"]
    assert len(times) == len(ranges) == 5
    assert all(first <= at <= last for (first, last), at in zip(ranges, times, strict=True))
    nights = [each.note for each in foreseen if each.name == "nightly"]
    assert nights[1] == "02:30 comes twice that day, as the clock goes back; it happens the first time"


def test_estimates_come_true_when_handlers_take_what_they_took(tmp_path: Path) -> None:
    queue = ActionQueue(tmp_path / "jobs.db", concurrency=2)
    ended: list[datetime] = []

    @queue.task(name="work")
    async def work() -> None:
        await asyncio.sleep(30)
        ended.append(sim.now)

    with Simulation(queue, starts_at=FRIDAY_NIGHT) as sim:
        work.submit()
        sim.advance("1m")
        work.submit_many([() for _ in range(7)])
        sim.run_until_idle()
        foreseen = queue.forecast("10m")
        sim.advance("10m")
    assert [(each.takes, each.recorded) for each in foreseen.durations] == [(timedelta(seconds=30), 1)]
    assert foreseen.backlogs[0].waiting == 5
    assert foreseen.backlogs[0].drained_at == ended[-1] - timedelta(seconds=30), "when the last one started"


class Jobs:
    """A queue with a schedule, a bounded queue and a key."""

    def __init__(self, path: Path) -> None:
        self.queue = ActionQueue(path, queues={"mail": 1}, threads=2)

        @self.queue.task(name="send", queue="mail", limits=[Limit("customer:{customer}", capacity=1)])
        def send(customer: int) -> None: ...

        @self.queue.task(name="report", schedule=Cron("0 9 * * *", timezone="Europe/Berlin"))
        def report() -> None: ...

        self.send = send


def test_it_works_in_the_engines_process_beside_it_and_without_it_and_changes_nothing(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "jobs.db")
    client = StoreClient(tmp_path / "jobs.db")
    with jobs.queue.running():
        jobs.queue.pause()
        jobs.send.submit_many([(n % 2,) for n in range(6)])
        before = jobs.queue.stats()
        inside, beside = jobs.queue.forecast("24h"), client.forecast("24h")
        resumed = client.forecast("24h", what_if=["resume"])
        assert jobs.queue.stats() == before
    for found in (inside, beside):
        assert [(each.by, each.waiting) for each in found.held] == [("the pause of the engine", 6)]
        assert [each.held_by for each in found.exact] == ["the pause of the engine"]
        assert found.assumed == ()
    assert {(each.kind, each.name): each.waiting for each in resumed.backlogs}["queue", "mail"] == 5
    without = client.forecast("24h")
    assert without.held == inside.held
    assert "no engine runs on this store" in without.assumed[0]
    client.close()


def test_without_an_engine_what_was_running_is_lost_and_its_retry_an_estimate(tmp_path: Path) -> None:
    queue = ActionQueue(tmp_path / "jobs.db")
    entered, leave = threading.Event(), threading.Event()

    @queue.task(name="stuck", retry=Retry(max_attempts=3, backoff=fixed("10m")))
    def stuck() -> None:
        entered.set()
        leave.wait(20)

    with queue.running():
        stuck.submit()
        assert entered.wait(20)
        left_behind = StoreClient(queue.backup(tmp_path / "copy.db"))
        leave.set()
    found = left_behind.forecast("1h")
    left_behind.close()
    assert [(each.kind, each.exact) for each in found.entries if each.name == "stuck"] == [("retry", False)]
    assert found.entries[0].at == found.at + timedelta(minutes=10)
    assert len(found.assumed) == 2
    assert "is lost" in found.assumed[1]


def test_a_change_is_compared_with_none(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "jobs.db")
    with jobs.queue.running():
        jobs.queue.pause(queue="mail")
        jobs.send.submit_many([(n,) for n in range(6)])
        phases: list[str] = []
        found = jobs.queue.forecast(
            "1h", ["resume queue mail", "queue mail=2"], progress=lambda phase, done, total: phases.append(phase)
        )
    assert phases == ["future"] * 100 + ["future without that"] * 100
    assert found.what_if == ("resume queue mail", "queue mail=2")
    told = {each.what: (each.without, each.with_it) for each in found.differences}
    assert told["held by the pause of queue mail"] == ("6 waiting", "none")
    assert told["queue mail"][0] == "none"
    assert told["queue mail"][1].startswith("drains by ")
    assert "What that changes" in str(found)


def test_a_coroutine_asks_too(tmp_path: Path) -> None:
    async def main() -> Forecast:
        jobs = Jobs(tmp_path / "jobs.db")
        async with jobs.queue:
            return await jobs.queue.aforecast(datetime.now(UTC) + timedelta(hours=24), what_if="queue mail=3")

    found = asyncio.run(main())
    assert [(each.kind, each.name, f"{each.at:%H:%M}") for each in found.exact] == [("schedule", "report", "09:00")]


def test_it_encodes_to_json_and_reads_as_text(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "jobs.db")
    with jobs.queue.running():
        found = jobs.queue.forecast("24h")
    document = json.loads(msgspec.json.encode(found))
    assert list(document) == list(Forecast.__struct_fields__)
    assert document["entries"][0]["kind"] == "schedule"
    assert str(found) == "\n".join(lines_of(found))
    assert "occurs  report" in str(found)
    assert "Europe/Berlin" in str(found)


@pytest.mark.parametrize("until", ["-1h", "0s", "400d", datetime(2026, 1, 1), datetime(2020, 1, 1, tzinfo=UTC)])  # noqa: DTZ001
def test_a_time_that_is_no_time_to_look_ahead_to_is_refused(tmp_path: Path, until: str | datetime) -> None:
    jobs = Jobs(tmp_path / "jobs.db")
    with jobs.queue.running(), pytest.raises(InvalidSubmission) as refusal:
        jobs.queue.forecast(until)
    assert "until" in refusal.value.problems


def test_of_a_store_that_is_not_there_yet_nothing_is_foretold(tmp_path: Path) -> None:
    client = StoreClient(tmp_path / "none.db")
    found = client.forecast("1h")
    assert found.entries == ()
    assert found.assumed == ("no engine has run on this store, so nothing is known of slots and handlers",)
    client.close()
