"""Submit the same keys as another process: ``same_keys.py STORE OPTIONS COUNT PREFIX``.

Prints "submitted" when all are, waits for a line, then prints the handles' ids with their results.
"""

import sys

from jobs import arguments, make_queue, say

path, options = arguments()
count, prefix = int(sys.argv[3]), sys.argv[4]
queue = make_queue(path, role="client", **options)
echo = queue.handlers["echo"]
say("ready")
sys.stdin.readline()
handles = [echo.options(idempotency_key=f"{prefix}-{n}").submit(n) for n in range(count)]
say("submitted", sum(handle.created is None for handle in handles))
sys.stdin.readline()
results = [handle.result(timeout=60) for handle in handles]
say("ids", [str(handle.id) for handle in handles])
say("results", results)
say("created", sum(bool(handle.created) for handle in handles))
queue.close()
