"""A purchase that someone has to approve: planned, then waiting three days for a named person, then done or undone.

    python examples/approval.py

While it waits it holds no worker, and a restart, a deployment or a crash of the program loses nothing. From a shell:

    actionqueue --store jobs.db signal approved --key 42 --payload '{"ok": true}' --by anna
"""

import time
from typing import Any

from actionqueue import CONTEXT, ActionQueue, Context, SignalTimeout

queue = ActionQueue("jobs.db")
done: list[str] = []


def reserve(order: int, amount: int) -> dict[str, Any]:
    """The plan: what is needed is set aside. It happens once, however often the handler is run."""
    done.append(f"reserved {amount} for order {order}")
    return {"order": order, "amount": amount}


def pay(plan: dict[str, Any], by: str) -> str:
    """What was approved."""
    done.append(f"paid {plan['amount']} for order {plan['order']}")
    return f"order {plan['order']} paid, approved by {by}"


def give_back(plan: dict[str, Any], why: str) -> str:
    """The compensation of the plan."""
    done.append(f"gave {plan['amount']} back")
    return f"order {plan['order']} undone: {why}"


@queue.task
def purchase(order: int, amount: int, *, ctx: Context = CONTEXT) -> str:
    """The handler runs again from its first line after each wait; what passed returns what was recorded."""
    plan = ctx.step("plan", reserve, order, amount)
    try:
        decision = ctx.receive("approved", key=order, timeout="3d")
    except SignalTimeout:
        return str(ctx.step("undo", give_back, plan, "nobody answered for three days"))
    if not decision.payload["ok"]:
        return str(ctx.step("undo", give_back, plan, f"refused by {decision.by}"))
    return str(ctx.step("pay", pay, plan, decision.by))


def wait_until_it_waits(run: Any) -> None:
    """Until both have come to their wait."""
    while queue.get_run(run).state != "awaiting":
        time.sleep(0.01)


if __name__ == "__main__":
    with queue.running():
        first, second = purchase.submit(42, 900), purchase.submit(43, 70)
        for job in (first, second):
            wait_until_it_waits(job.run_id)
        print(f"waiting: {queue.get_run(first.run_id).state}, steps done: {len(done)}")
        queue.signal("approved", key=42, payload={"ok": True}, by="anna", id="mail-1")
        queue.signal("approved", key=42, payload={"ok": True}, by="anna", id="mail-1")  # the mail was read twice
        queue.signal("approved", key=43, payload={"ok": False}, by="bert")
        print(first.result(timeout=10))
        print(second.result(timeout=10))
        print([step.name for step in queue.steps(first.run_id)])
        print(sorted(done))
