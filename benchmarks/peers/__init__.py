"""The same work on other task queues: ``make bench-peers``.

Each peer is one module with a class: how it submits one run and many, and what its worker process does. They run in an
environment of their own (``.venv-peers``, pinned in ``requirements.txt``), ours in the project's. The work is a no-op
with about 100 bytes of arguments; it marks, in memory that both processes map, when it began and that it was done.
"""
