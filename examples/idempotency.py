"""Submitting once, and doing once: idempotency keys for the caller, the token for the outside world.

    python examples/idempotency.py

A caller that does not know whether its submission arrived submits it again with the same key. A handler that does not
know whether its side effect happened repeats it with the same token, which every attempt of the run has.
"""

from actionqueue import CONTEXT, ActionQueue, Context, IdempotencyConflict, Retry, fixed

queue = ActionQueue("jobs.db")


class PaymentService:
    """Stands for a service that does the same request once: it knows a request by the token that came with it."""

    def __init__(self) -> None:
        self.charged: dict[str, int] = {}

    def charge(self, customer: int, cents: int, *, token: str) -> None:
        """Charge, unless this token was here before."""
        self.charged.setdefault(token, cents)


service = PaymentService()


@queue.task(retry=Retry(max_attempts=3, backoff=fixed("50ms")))
def charge(customer: int, cents: int, *, ctx: Context = CONTEXT) -> str:
    """Fails right after its side effect: the queue cannot know that it happened, so it tries again."""
    service.charge(customer, cents, token=ctx.idempotency_token)
    if ctx.attempt_number == 1:
        raise TimeoutError("the answer was lost")
    return ctx.idempotency_token


if __name__ == "__main__":
    with queue.running():
        november = charge.options(idempotency_key="charge-7-2026-11", idempotency_lifetime="60d")
        first, second = november.submit(7, 1200), november.submit(7, 1200)
        print("submitted twice, one task:", first.id == second.id, "| created:", second.created)

        first.result(timeout=10)
        print("attempts:", first.runs()[0].attempt_count, "| charges:", len(service.charged))

        try:
            november.submit(7, 9900)
        except IdempotencyConflict as error:
            print("the same key with other content is refused:", error.code)
