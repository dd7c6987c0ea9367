"""The shim between a program and the disk: built where it is needed, armed through the environment. See ``disk_shim.c``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("disk_shim.c")
_COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

needs_shim = pytest.mark.skipif(
    not sys.platform.startswith("linux") or _COMPILER is None, reason="needs Linux and a C compiler, for the shim"
)


def build_shim(folder: Path) -> Path:
    """The shim, as a shared object."""
    assert _COMPILER is not None
    built = folder / "disk_shim.so"
    command = [_COMPILER, "-O2", "-shared", "-fPIC", "-pthread", "-o", str(built), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return built


def shim_environment(
    shim: Path, store: Path, *, record: Path | None = None, fail: str | None = None, arm: Path | None = None
) -> dict[str, str]:
    """What a program needs in its environment to run on the shim."""
    given = {"SHIM_STORE": store, "SHIM_RECORD": record, "SHIM_FAIL": fail, "SHIM_ARM": arm}
    return {"LD_PRELOAD": str(shim)} | {name: str(value) for name, value in given.items() if value is not None}
