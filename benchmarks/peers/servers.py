"""Which servers can be reached, and whether what they acknowledge is on the disk."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

VARIABLES = {
    "redis": ("BENCHMARK_REDIS", "redis://127.0.0.1:6379/15"),
    "postgres": ("BENCHMARK_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres"),
}
_PORTS = {"redis": 6379, "postgres": 5432}
TIMEOUT_S = 2.0


def url_of(server: str) -> str:
    """Where the server is looked for."""
    variable, default = VARIABLES[server]
    return os.environ.get(variable, default)


def is_reachable(server: str) -> bool:
    """Whether something listens there."""
    try:
        _connect(server).close()
    except OSError:
        return False
    return True


def _connect(server: str) -> socket.socket:
    parts = urlsplit(url_of(server))
    return socket.create_connection((parts.hostname or "127.0.0.1", parts.port or _PORTS[server]), TIMEOUT_S)


def redis_syncs() -> bool:
    """Whether that Redis syncs its log at each command: ``appendonly yes`` and ``appendfsync always``."""
    try:
        with _connect("redis") as line:
            line.sendall(b"CONFIG GET append*\r\n")
            answer = line.recv(4096).split(b"\r\n")
    except OSError:
        return False
    values = dict(zip(answer[2::4], answer[4::4], strict=False))
    return values.get(b"appendonly") == b"yes" and values.get(b"appendfsync") == b"always"
