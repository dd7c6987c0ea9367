"""A schedule, and work that is limited: one run at a time for each customer, and only so many a second.

    python examples/schedule_and_limits.py

Run it twice: the schedule is there already, and goes on where it was.
"""

import time
from collections import Counter

from actionqueue import CONTEXT, ActionQueue, Context, Cron, Rate

queue = ActionQueue("jobs.db", threads=8)
at_once: Counter[int] = Counter()
most_at_once: Counter[int] = Counter()


@queue.task(concurrency_key="customer:{customer_id}", rate=Rate("mailer", count=20, per="1s", burst=5))
def send_invoice(customer_id: int, month: str) -> str:
    """Two of one customer never run at once; of all together five start at once, then one each 50 ms."""
    at_once[customer_id] += 1
    most_at_once[customer_id] = max(most_at_once[customer_id], at_once[customer_id])
    time.sleep(0.02)
    at_once[customer_id] -= 1
    return f"{customer_id} {month}"


@queue.task(schedule=Cron("* * * * * *", max_occurrences=2, overlap="queue"))
def each_second(*, ctx: Context = CONTEXT) -> str:
    """The time it was due, whenever it starts; twice in all."""
    return f"{ctx.scheduled_at:%H:%M:%S}"


if __name__ == "__main__":
    with queue.running():
        months = ("2026-09", "2026-10", "2026-11")
        jobs = send_invoice.submit_many([(customer, month) for customer in (7, 8, 9) for month in months])
        print([job.result(timeout=10) for job in jobs[:3]])
        for job in jobs:
            job.result(timeout=10)
        starts = sorted(run.started_at for job in jobs for run in job.runs() if run.started_at)
        print("at once, for each customer:", sorted(most_at_once.values()))
        print("nine starts took at least 0.2 s:", (starts[-1] - starts[0]).total_seconds() >= 0.2)

        while not queue.schedules()[0].over or queue.runs(handler="each_second", state=["scheduled", "running"]):
            time.sleep(0.1)
        (schedule,) = queue.schedules()
        print(schedule.name, "|", schedule.rule, "|", schedule.occurrences, "occurrences, skipped:", schedule.skipped)
        print("runs:", [run.state for run in queue.runs(handler="each_second")])
        print(queue.audit())
