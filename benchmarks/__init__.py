"""What the engine costs, measured: ``make bench`` (``python -m benchmarks``) and ``make bench-peers``.

Each row runs in a fresh process, with its store in a new directory on the repository's disk. ``embedded.py`` is the
table of rows and of what they must reach; ``floor.py`` measures what this machine can do at all; the ``rows_*`` modules
measure; ``peers/`` puts other task queues through the same work. Rows use the public API; where a figure is of
something inside (a stall of the writer, the replay of a log), the internal is named where it is used.
"""
