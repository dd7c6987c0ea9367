"""The embedded engine's rows and what they must reach: every target but those that need other queues beside us.

Rows of a million runs are scaled by ``--scale``; the others keep their size, since a rate or a delay needs no more.
"""

from __future__ import annotations

from benchmarks.harness import Goal, Row

MILLION = 1_000_000


def _scaled(scale: float, runs: int, at_least: int = 10_000) -> int:
    return max(at_least, int(runs * scale) // 500 * 500)


FLOOR = Row(
    name="floor",
    measure="benchmarks.floor:measure",
    given=lambda scale: {"runs": 100_000, "repeats": 3},
    goals=(
        Goal(name="append_200b_ms", title="disk: append and sync 200 B, p50", unit="ms", smaller_is_better=True),
        Goal(name="append_4k_ms", title="disk: append and sync 4 KiB, p50", unit="ms", smaller_is_better=True),
        Goal(name="append_64k_ms", title="disk: append and sync 64 KiB, p50", unit="ms", smaller_is_better=True),
        Goal(name="commits_per_s", title="SQLite: one row a commit", unit="/s"),
        Goal(name="rows_per_s", title="SQLite: 1,000 rows a commit", unit="rows/s"),
        Goal(name="skeleton_per_s", title="skeleton of the pipeline, end to end", unit="/s"),
    ),
)

ROWS: tuple[Row, ...] = (
    FLOOR,
    Row(
        name="end_to_end",
        measure="benchmarks.rows_throughput:against_floor",
        given=lambda scale: {"runs": _scaled(scale, 100_000, 50_000), "pairs": 3},
        limit_s=300,
        goals=(
            Goal(name="runs_per_s", title="end to end, async handlers", unit="/s", at_least=20_000),
            Goal(name="ratio", title="… against the skeleton beside it", unit="×", at_least=0.35),
            Goal(name="floor_per_s", title="… that skeleton", unit="/s"),
        ),
    ),
    Row(
        name="threads",
        measure="benchmarks.rows_throughput:threads",
        given=lambda scale: {"runs": 30_000, "repeats": 3},
        limit_s=150,
        goals=(Goal(name="runs_per_s", title="end to end, handlers in threads", unit="/s", at_least=8_000),),
    ),
    Row(
        name="processes",
        measure="benchmarks.rows_throughput:processes",
        given=lambda scale: {"runs": 6_000, "repeats": 3},
        limit_s=150,
        goals=(Goal(name="runs_per_s", title="end to end, 2 worker processes", unit="/s", at_least=1_500),),
    ),
    Row(
        name="submit",
        measure="benchmarks.rows_submit:one_at_a_time",
        given=lambda scale: {"submissions": 1_000},
        goals=(
            Goal(name="ratio", title="one submit at a time, p50, against 4 KiB synced", unit="×", at_most=3),
            Goal(name="submit_ms", title="… the submit", unit="ms", smaller_is_better=True),
            Goal(name="append_4k_ms", title="… the disk beside it", unit="ms", smaller_is_better=True),
        ),
    ),
    Row(
        name="concurrent",
        measure="benchmarks.rows_submit:concurrent",
        given=lambda scale: {"submissions": 40_000},
        goals=(
            Goal(name="per_s", title="64 async submitters, on the handlers' loop", unit="/s", at_least=8_000),
            Goal(name="own_loop_per_s", title="… with the engine's own loop", unit="/s", at_least=8_000),
        ),
    ),
    Row(
        name="clients",
        measure="benchmarks.rows_clients:beside_busy_engine",
        given=lambda scale: {"seconds": 4.0},
        goals=(
            Goal(name="clients_1_per_s", title="another process submits, engine busy", unit="/s", at_least=1_000),
            Goal(name="clients_4_per_s", title="4 processes submit, engine busy", unit="/s", at_least=2_000),
            Goal(name="failed", title="… of those submissions failed", unit="", at_most=0),
            Goal(name="own_beside_1", title="the engine's own rate beside 1", unit="×", at_least=0.5),
            Goal(name="own_beside_4", title="the engine's own rate beside 4", unit="×", at_least=0.5),
            Goal(name="own_per_s", title="… its rate alone", unit="/s"),
        ),
    ),
    Row(
        name="pickup",
        measure="benchmarks.rows_pickup:in_process",
        given=lambda scale: {"submissions": 1_000},
        goals=(
            Goal(name="p50_ms", title="idle pickup, p50", unit="ms", at_most=1.5),
            Goal(name="p99_ms", title="idle pickup, p99", unit="ms", at_most=10),
        ),
    ),
    Row(
        name="client_pickup",
        measure="benchmarks.rows_pickup:from_another_process",
        given=lambda scale: {"submissions": 1_000},
        goals=(
            Goal(name="p50_ms", title="idle pickup from another process, p50", unit="ms", at_most=5),
            Goal(name="p99_ms", title="idle pickup from another process, p99", unit="ms", at_most=30),
        ),
    ),
    Row(
        name="cpu_bound",
        measure="benchmarks.rows_submit:beside_computation",
        given=lambda scale: {"submissions": 300},
        goals=(Goal(name="p50_ms", title="submit beside a computing thread, p50", unit="ms", at_most=10),),
    ),
    Row(
        name="idle",
        measure="benchmarks.rows_idle:idle",
        given=lambda scale: {"seconds": 10.0},
        goals=(Goal(name="cpu_percent", title="CPU of an idle engine", unit="% of a core", at_most=1),),
    ),
    Row(
        name="backlog",
        measure="benchmarks.rows_backlog:backlog",
        given=lambda scale: {
            "pending": _scaled(scale, MILLION, 50_000),
            "few": 10_000,
            "runs": 100_000 if scale >= 0.5 else 40_000,
            "within_s": 200,
        },
        limit_s=300,
        goals=(
            Goal(name="ratio", title="throughput, a million pending against 10,000", unit="×", at_least=0.8),
            Goal(name="runs_per_s", title="… with a million pending", unit="/s"),
            Goal(name="submit_per_s", title="… submitted before", unit="/s"),
            Goal(name="bytes_per_run", title="memory a pending run", unit="bytes", at_most=1_000),
            Goal(name="stall_ms", title="longest stall of the writer", unit="ms", at_most=25),
            Goal(name="stall_p999_ms", title="… 99.9th percentile of its steps", unit="ms", smaller_is_better=True),
            Goal(name="stall_cpu_ms", title="… longest step in CPU time", unit="ms", smaller_is_better=True),
            Goal(name="gc_ms", title="… longest garbage collection, CPU time", unit="ms", smaller_is_better=True),
        ),
    ),
    Row(
        name="finished",
        measure="benchmarks.rows_finished:finished",
        given=lambda scale: {"few": _scaled(scale, 100_000), "runs": _scaled(scale, MILLION, 100_000)},
        limit_s=400,
        goals=(
            Goal(name="growth_mb", title="memory, a million finished against 100,000", unit="MB", at_most=20),
            Goal(name="resident_mb", title="… resident in all", unit="MB", smaller_is_better=True),
            Goal(name="page_ms", title="filtered page of 100, slowest filter", unit="ms", at_most=10),
            Goal(name="client_page_ms", title="… from a process that is no engine", unit="ms", at_most=10),
            Goal(name="disk_bytes", title="disk a finished run", unit="bytes", at_most=900),
        ),
    ),
    Row(
        name="kill",
        measure="benchmarks.rows_recovery:retry_after_kill",
        given=lambda scale: {"repeats": 3},
        goals=(Goal(name="seconds", title="kill -9 to the retry's start", unit="s", at_most=1),),
    ),
    Row(
        name="opening",
        measure="benchmarks.rows_recovery:opening",
        given=lambda scale: {"live": _scaled(scale, MILLION, 50_000), "within_s": 150},
        limit_s=300,
        goals=(Goal(name="seconds", title="opening a million live runs after kill -9", unit="s", at_most=8),),
    ),
    Row(
        name="replay",
        measure="benchmarks.rows_recovery:replay",
        given=lambda scale: {"runs": _scaled(scale, 300_000, 50_000)},
        goals=(Goal(name="events_per_s", title="replay of a log", unit="events/s", at_least=200_000),),
    ),
    Row(
        name="schedules",
        measure="benchmarks.rows_schedules:every_minute",
        given=lambda scale: {"schedules": 10_000},
        limit_s=300,
        goals=(
            Goal(name="cpu_percent", title="10,000 schedules, each minute", unit="% of a core", smaller_is_better=True),
            Goal(name="late_p50_ms", title="… how late they start, p50", unit="ms", smaller_is_better=True),
            Goal(name="late_max_ms", title="… the last of them", unit="ms", smaller_is_better=True),
        ),
    ),
    Row(
        name="gap",
        measure="benchmarks.rows_schedules:after_a_gap",
        goals=(
            Goal(
                name="coalesce_ms",
                title="every second, down for ten years: coalesce",
                unit="ms",
                smaller_is_better=True,
            ),
            Goal(name="skip_ms", title="… skip", unit="ms", smaller_is_better=True),
            Goal(name="catch_up_ms", title="… catch_up, the last 24 h", unit="ms", smaller_is_better=True),
        ),
    ),
    Row(
        name="keys",
        measure="benchmarks.rows_limits:keyed",
        given=lambda scale: {"runs": _scaled(scale, 100_000, 50_000), "keys": 10_000, "pairs": 3},
        limit_s=300,
        goals=(
            Goal(name="ratio", title="100,000 runs over 10,000 keys, against unkeyed", unit="×", at_least=0.6),
            Goal(name="runs_per_s", title="… with keys", unit="/s"),
            Goal(name="plain_per_s", title="… without", unit="/s"),
        ),
    ),
    Row(
        name="graphs",
        measure="benchmarks.rows_graphs:graphs",
        given=lambda scale: {
            "width": 10_000,
            "depth": 1_000,
            "unrelated": _scaled(scale, 100_000, 20_000),
            "pairs": 3,
        },
        limit_s=300,
        goals=(
            Goal(name="wide_per_s", title="10,000 tasks and one that waits for all", unit="/s"),
            Goal(name="wide_beside", title="… beside 100,000 unrelated live runs", unit="×", at_least=0.8),
            Goal(name="deep_per_s", title="a chain of 1,000", unit="/s"),
            Goal(name="deep_beside", title="… beside 100,000 unrelated live runs", unit="×", at_least=0.8),
        ),
    ),
    Row(
        name="waits",
        measure="benchmarks.rows_waits:woken",
        given=lambda scale: {"runs": _scaled(scale, 100_000, 5_000)},
        limit_s=1_200,
        goals=(
            Goal(name="one_per_s", title="100,000 waiting runs, woken by one signal", unit="/s", at_least=1_000),
            Goal(name="many_per_s", title="… by a hundred", unit="/s", at_least=1_000),
            Goal(name="beside_ratio", title="… other runs beside them, against without", unit="×", at_least=0.7),
        ),
    ),
    Row(
        name="steps",
        measure="benchmarks.rows_waits:steps",
        given=lambda scale: {"runs": _scaled(scale, 2_000, 200), "each": 10},
        limit_s=300,
        goals=(Goal(name="per_s", title="durable steps, of 200 runs at once", unit="/s", at_least=1_000),),
    ),
)
