"""``forecast``: the list, the estimates and the plot, for people and for programs."""

from __future__ import annotations

import io
import sys
from datetime import UTC, datetime, timedelta

import pytest

from actionqueue import ActionQueue, Cron
from actionqueue.cli import main
from actionqueue.cli.plot import HEIGHT, plot
from tests.cli.conftest import Call

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)


def test_it_lists_what_is_known_and_what_is_estimated_and_draws_the_load(engine: ActionQueue, cli: Call) -> None:
    engine.schedule("tick", engine.handlers["send"].bind("ann"), Cron("0 9 * * *", timezone="Europe/Berlin"))
    engine.pause(queue="mail")
    engine.handlers["send"].submit_many([("bob",) for _ in range(3)])

    result = cli("forecast", "--hours", "24")

    assert result.code == 0
    assert max(map(len, result.lines)) <= 80, result.out
    assert "HELD by the pause of queue mail" in " ".join(result.out.split())
    assert "Europe/Berlin" in result.out
    assert {"running", "waiting", "Backlog (estimated)", "Held back until someone acts"} <= set(result.lines)


def test_what_if_says_what_changes(engine: ActionQueue, cli: Call) -> None:
    engine.pause(queue="mail")
    engine.handlers["send"].submit_many([("bob",) for _ in range(3)])

    result = cli("forecast", "--until", "1h", "--what-if", "resume queue mail", "--what-if", "queue mail=1")

    assert "  what if: resume queue mail" in result.lines
    assert "What that changes" in result.lines
    assert "held by the pause of queue mail" in result.out


def test_json_is_one_document(engine: ActionQueue, cli: Call) -> None:
    engine.schedule("tick", engine.handlers["send"].bind("ann"), Cron("0 9 * * *"))

    document = cli("--json", "forecast").json

    assert [(each["kind"], each["exact"], each["name"]) for each in document["entries"]] == [("schedule", True, "tick")]
    assert len(document["load"]) == 240


def test_without_an_engine_it_says_what_it_takes_for_granted(resting: ActionQueue, cli: Call) -> None:
    result = cli("forecast", "--hours", "2")

    assert "assumed: no engine runs on this store" in result.out
    assert "due send" in " ".join(result.out.split())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--what-if", "queue mial=3"], 3, "there is no queue 'mial'"),
        (["--what-if", "more"], 3, "give concurrency=N"),
        (["--until", "whenever"], 2, "is no instant"),
        (["--until", "2020-01-01T00:00:00Z"], 3, "an instant to come"),
        (["--hours", "0"], 2, "--hours"),
        (["--hours", "nan"], 2, "--hours"),
        (["--hours", "1e9"], 2, "--hours"),
        (["--hours", "1", "--until", "2h"], 2, "not allowed with"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], code: int, said: str, engine: ActionQueue, cli: Call) -> None:
    result = cli("forecast", *words)

    assert (result.code, result.out) == (code, "")
    assert said in result.err


def test_an_encoding_without_blocks_gets_plain_characters(
    resting: ActionQueue, store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))

    assert main(["--store", str(store), "forecast", "--hours", "2"]) == 0

    text = raw.getvalue().decode("ascii")
    assert "+----" in text
    assert ".." in text
    assert "?" not in text


# --- the plot -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [30, 44, 80, 200])
@pytest.mark.parametrize("hours", [0.1, 24, 24 * 30])
def test_a_plot_fits_and_has_one_axis(width: int, hours: float) -> None:
    lines = plot([("n", [1, 5, 2]), ("m", [0])], NOON, NOON + timedelta(hours=hours), width=width, blocks=True)

    assert len(lines) == 2 * (HEIGHT + 1) + 2
    assert max(map(len, lines)) <= max(width, 28)


def test_a_bar_is_as_high_as_its_share_and_never_nothing_for_something() -> None:
    rows = plot([("n", [0, 1, 50, 100])], NOON, NOON + timedelta(hours=1), width=27, blocks=True)[1 : HEIGHT + 1]
    columns = ["".join(row.split("│")[1].ljust(20)[at] for row in rows) for at in (0, 5, 10, 15)]

    assert columns == ["     ", "    ▁", "  ▄██", "█████"]


def test_of_several_numbers_in_a_column_the_largest_is_drawn() -> None:
    rows = plot([("n", [0.0] * 99 + [7.0] + [0.0] * 100)], NOON, NOON + timedelta(hours=1), width=26, blocks=False)

    assert "7|" in rows[1]
    assert rows[1].count("#") == 1
