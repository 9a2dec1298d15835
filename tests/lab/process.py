# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that are to end, and processes that stand still for a while.

SIGSTOP alone is not enough: on a busy machine it takes a while until the threads have stopped, and until then the
process reads what comes in, and is handed any signal of a lower number, such as SIGTERM, first.
"""

import contextlib
import os
import pathlib
import select
import signal
import time


class Process:
    """A process that is to end. Held by a pidfd: a new process with the same number is never taken for it."""

    def __init__(self, pid):
        self.pid = int(pid)
        self._fd = os.pidfd_open(self.pid)

    def __del__(self):
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def ended(self, timeout=0):
        """Whether it has ended, within `timeout` seconds; a zombie has ended."""
        return bool(select.select([self._fd], [], [], timeout)[0])

    def kill(self):
        """SIGKILL, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)


def children(pid):
    """Pids of the children of a process whose only thread is its first; none when it has ended."""
    try:
        return [int(it) for it in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def only_child(pid):
    """The one child of a process whose only job is that child."""
    found = children(pid)
    assert len(found) == 1, f"process {pid} has children {found}"
    return found[0]


def descendants(pid):
    """A Process for each process below this one, parents first; those that end meanwhile are left out."""
    found = []
    for child in children(pid):
        with contextlib.suppress(ProcessLookupError):
            found.append(Process(child))
        found += descendants(child)
    return found


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
