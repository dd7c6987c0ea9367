"""ActionQueue in a FastAPI application: requests submit, one of the server's processes runs the work.

    uvicorn examples.fastapi_app:app --workers 4
    curl -X POST localhost:8000/reports/7
    curl localhost:8000/runs/<the run from that answer>

The first process that starts is the engine; the others hand over what they get and stand by: one of them takes over
within two seconds if it dies. Nothing that was answered with 202 is lost, whatever is killed.

A client that repeats a request it had no answer to sends the same Idempotency-Key, and gets the same run.
"""

import asyncio
import os
from typing import Annotated
from uuid import UUID

from fastapi import FastAPI, Header, HTTPException

from actionqueue import ActionQueue, NotFound, Overloaded

queue = ActionQueue(os.environ.get("JOBS_DB", "jobs.db"), drain_timeout=os.environ.get("DRAIN_TIMEOUT", "20s"))
app = FastAPI(lifespan=queue.lifespan)


@queue.task
async def make_report(customer_id: int) -> str:
    """Async work runs on the application's own event loop."""
    await asyncio.sleep(0.01)
    return f"report for customer {customer_id}"


@queue.task
def shrink_picture(path: str) -> int:
    """Plain functions run in threads."""
    return len(path)


@app.post("/reports/{customer_id}", status_code=202)
async def request_report(
    customer_id: int, idempotency_key: Annotated[str | None, Header(max_length=200)] = None
) -> dict[str, str]:
    """Durable when it is answered."""
    try:
        job = await make_report.options(idempotency_key=idempotency_key).asubmit(customer_id)
    except Overloaded as error:
        raise HTTPException(503, error.message) from error
    return {"run": str(job.run_id)}


@app.get("/runs/{run_id}")
async def run_state(run_id: UUID) -> dict[str, str | None]:
    """How far it is, asked of any of the processes; just submitted, it may take a tenth of a second to be known."""
    try:
        run = await queue.aget_run(run_id)
    except NotFound as error:
        raise HTTPException(404, error.message) from error
    return {"state": run.state, "reason": run.reason}
