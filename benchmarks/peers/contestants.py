"""Who takes part: each peer with the setting that is measured, and what of it survives a power cut.

*Durable* is a submission that is on the disk when the call returns. ``ends`` says whether a run's end is on the disk
too, so that a crash repeats neither it nor anything before it.
"""

from __future__ import annotations

from msgspec import Struct


class Contestant(Struct, frozen=True, kw_only=True):
    """One row. ``peer`` is ``module:Class:argument``; ``server`` is what must be reachable, if anything."""

    name: str
    title: str
    peer: str
    durable: bool
    ends: str
    server: str | None = None
    is_ours: bool = False


CONTESTANTS = (
    Contestant(name="ours", title="ActionQueue", peer="ours:Ours:embedded", durable=True, ends="durable", is_ours=True),
    Contestant(
        name="ours-client",
        title="ActionQueue, producer in another process",
        peer="ours:Ours:client",
        durable=True,
        ends="durable",
        is_ours=True,
    ),
    Contestant(
        name="huey",
        title="huey, SQLite, fsync",
        peer="huey_sqlite:HueySqlite:fsync",
        durable=True,
        ends="not recorded; a running job is lost",
    ),
    Contestant(
        name="huey-nosync",
        title="huey, SQLite, no fsync",
        peer="huey_sqlite:HueySqlite:nosync",
        durable=False,
        ends="not recorded",
    ),
    Contestant(
        name="persist-queue",
        title="persist-queue, SQLite with acks",
        peer="bare_queues:PersistQueue:",
        durable=True,
        ends="durable (bare queue)",
    ),
    Contestant(
        name="litequeue",
        title="litequeue, synchronous=FULL",
        peer="bare_queues:LiteQueue:",
        durable=True,
        ends="durable (bare queue)",
    ),
    Contestant(name="dbos", title="DBOS, SQLite", peer="dbos_sqlite:DbosSqlite:", durable=True, ends="durable"),
    Contestant(
        name="dramatiq",
        title="Dramatiq, Redis",
        peer="on_redis:Dramatiq:",
        durable=False,
        ends="acked in Redis",
        server="redis",
    ),
    Contestant(
        name="rq", title="RQ SimpleWorker, Redis", peer="on_redis:Rq:", durable=False, ends="in Redis", server="redis"
    ),
    Contestant(
        name="celery",
        title="Celery, Redis",
        peer="on_redis:Celery:default",
        durable=False,
        ends="not recorded; a running job is lost",
        server="redis",
    ),
    Contestant(
        name="celery-late",
        title="Celery, Redis, acks_late, results",
        peer="on_redis:Celery:late",
        durable=False,
        ends="in Redis",
        server="redis",
    ),
    Contestant(
        name="pgqueuer",
        title="PgQueuer, PostgreSQL",
        peer="on_postgres:PgQueuer:",
        durable=True,
        ends="durable",
        server="postgres",
    ),
    Contestant(
        name="procrastinate",
        title="procrastinate, PostgreSQL",
        peer="on_postgres:Procrastinate:",
        durable=True,
        ends="durable",
        server="postgres",
    ),
)
