"""Submit other content under a key that exists: ``conflict.py STORE OPTIONS KEY``. Prints the refusal."""

import sys

from jobs import arguments, make_queue, say

from actionqueue import IdempotencyConflict

path, options = arguments()
queue = make_queue(path, role="client", **options)
try:
    job = queue.handlers["echo"].options(idempotency_key=sys.argv[3]).submit(999)
    say("undecided", job.created)
    sys.stdin.readline()
    say("state", job.state())
    job.result(timeout=30)
except IdempotencyConflict as error:
    say("conflict", str(error.facts.get("existing_id") or error.facts))
queue.close()
