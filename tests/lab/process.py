# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that stand still for a while.

SIGSTOP alone is not enough: on a busy machine it takes a while until the threads have stopped, and until then the
process reads what comes in, and is handed any signal of a lower number, such as SIGTERM, first.
"""

import contextlib
import os
import pathlib
import signal
import time


def freeze(pid, timeout=60):
    """Returns when the process stands still: what comes from now on, signals too, waits for `thaw`."""
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + timeout
    while not is_frozen(pid):
        assert time.monotonic() < end, f"process {pid} did not stop within {timeout} s"
        time.sleep(0.002)


def thaw(pid):
    """Undoes `freeze`."""
    os.kill(pid, signal.SIGCONT)


def is_frozen(pid):
    """Whether every thread of the process is stopped."""
    return set(_thread_states(pid)) == {"T"}


def is_pending(pid, number):
    """Whether a signal to the process waits to be delivered."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    (pending,) = (line.split()[1] for line in lines if line.startswith("ShdPnd:"))
    return bool(int(pending, 16) & 1 << (number - 1))


def _thread_states(pid):
    """One letter for each thread, as ps prints it: R, S, D, T, Z, …"""
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):     # the thread has just ended
            yield (task / "stat").read_text().rpartition(")")[2].split()[0]
