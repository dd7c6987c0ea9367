"""The demo's engine as the demo sees it: a process that is started, killed, started again, and stopped in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from actionqueue.demo import STORE_VARIABLE

STOP_S_MAX = 30.0
"""Longer than its own ``drain_timeout``."""
LAST_WORDS_CHARACTERS = 2_000


class EngineDied(Exception):
    """The engine's process ended by itself; the message has the last lines of its log."""


class EngineHost:
    """One engine at a time on a store, writing to one log file."""

    def __init__(self, store: Path, log: Path) -> None:
        self._store = store
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Start an engine; its process id."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "actionqueue.demo.engine", os.fspath(self._store)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, STORE_VARIABLE: os.fspath(self._store)},
                start_new_session=True,  # Ctrl-C is the demo's, which then stops the engine
            )
        return self._process.pid

    def check(self) -> None:
        """Raise ``EngineDied`` when it is not running although it should be."""
        process = self._process
        if process is not None and process.poll() is not None:
            said = self._log.read_text(errors="replace")[-LAST_WORDS_CHARACTERS:]
            raise EngineDied(f"the engine ended with status {process.returncode}; {self._log} ends with:\n\n{said}")

    def kill(self) -> int:
        """SIGKILL, which no process can prepare for; the process id it had."""
        assert self._process is not None
        pid = self._process.pid
        self._process.kill()
        self._let_go()
        return pid

    def stop(self) -> None:
        """SIGTERM, which it answers by finishing what runs; SIGKILL when that takes too long."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
        self._let_go()

    def _let_go(self) -> None:
        assert self._process is not None
        process, self._process = self._process, None
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
