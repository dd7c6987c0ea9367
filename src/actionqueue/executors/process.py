"""One worker process, as its parent sees it: started, spoken to without blocking, killed with all it started.

Used by the one thread of ``ProcessExecutor`` only, which also matters for starting: on Linux the kernel kills a child
when the *thread* that started it ends (see ``child``). It leads a session and a process group of its own: Ctrl-C in a
terminal does not reach it (the parent decides), and killing the group reaches what its handlers started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from actionqueue.executors import frames
from actionqueue.executors.locators import main_module

RECEIVE_BYTES = 256 * 1024

_PATH_VARIABLE = "ACTIONQUEUE_CHILD_PATH"
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_BOOT = (
    f"import os, sys; sys.path[:] = os.environ.pop({_PATH_VARIABLE!r}).split(chr(10)); "
    "from actionqueue.executors.child import main; main()"
)
"""Not ``-m``: the module is found by the parent's ``sys.path``, which must be there first."""


OUTSIDE_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What service managers and terminals send to whole groups, and a worker leaves to its parent. The thread that starts
children blocks them, children inherit that, and unblock them when their handlers are in place."""


class WorkerProcess:
    """A child process and the line to it."""

    def __init__(self, *, measure_rss: bool) -> None:
        if not sys.executable:
            raise OSError("sys.executable is empty: this program embeds Python and cannot start worker processes")
        ours, theirs = socket.socketpair()
        try:
            self._popen = subprocess.Popen(
                [sys.executable, *_interpreter_flags(), "-c", _BOOT, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, _PATH_VARIABLE: "\n".join(_search_path())},
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.settimeout(0)
        self.line = ours
        self.pid = self._popen.pid
        self.exit_fd = _pidfd(self.pid)
        """Readable once the process has ended; None where the system has no such thing."""
        self.at_end = False
        """The line's other end is closed."""
        self._unsent = bytearray()
        self._buffer = frames.FrameBuffer()
        name, path = main_module()
        self.send(
            frames.encode(frames.Init(frames.PROTOCOL_VERSION, sys.argv[:], _cwd(), name, path, measure_rss))
        )  # fmt: skip

    # --- the line ---------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> bool:
        """Send, or keep for ``flush``; False when the process is gone."""
        if self._unsent:
            self._unsent += data
            return True
        try:
            sent = self.line.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
        return True

    def flush(self) -> None:
        """Send what the line would not take before."""
        try:
            sent = self.line.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()  # it is dying, which is noticed elsewhere
            return
        del self._unsent[:sent]

    @property
    def has_unsent(self) -> bool:
        """Whether ``flush`` is due once the line takes bytes again."""
        return bool(self._unsent)

    def receive(self) -> list[frames.ToParent]:
        """All frames that have arrived; raises ``FrameError`` for bytes that are none."""
        received: list[frames.ToParent] = []
        while not self.at_end:
            try:
                data = self.line.recv(RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.at_end = not data
            received += self._decode(data)
            if len(data) < RECEIVE_BYTES:
                break
        return received

    def _decode(self, data: bytes) -> list[frames.ToParent]:
        try:
            return [frames.to_parent.decode(body) for body in self._buffer.feed(data)]
        except frames.FrameError:
            raise
        except Exception as error:  # msgspec's, for what is no frame of ours
            raise frames.FrameError(str(error)) from error

    # --- its end ----------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL to it and to what it started. Safe until ``reap``: till then its id is not given to anyone else."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # it may not lead its group yet
            os.kill(self.pid, signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether the process has ended; it is still to be reaped."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13, where asking reaps
            if self.at_end:
                self.kill()
            return self._popen.poll() is not None
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # SIGCHLD is ignored in this program, or someone else reaped it
            return True

    def reap(self) -> str:
        """After its end: kill what it left behind, let go of it, and say how it ended."""
        if self._popen.returncode is None:
            self.kill()
        status = self._popen.wait()
        self.line.close()
        if self.exit_fd is not None:
            os.close(self.exit_fd)
        if status >= 0:
            return f"exited with status {status}"
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        hint = " (what the system does when memory runs out, among others)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"


def _interpreter_flags() -> list[str]:
    """The flags this interpreter was started with (-W, -X, -O, …), as multiprocessing passes them on."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    return flags


def _search_path() -> list[str]:
    here = os.fspath(_cwd() or "")
    path = [each or here for each in sys.path]
    return path if _PACKAGE_ROOT in path else [*path, _PACKAGE_ROOT]


def _cwd() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - text is wanted
    except FileNotFoundError:
        return None


def _pidfd(pid: int) -> int | None:
    opens = getattr(os, "pidfd_open", None)
    try:
        return None if opens is None else opens(pid)
    except OSError:
        return None
