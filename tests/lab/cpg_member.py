#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A member of a corosync process group, by hand: cpg_member.py GROUP   (on a machine that runs corosync; `Member` starts it)

Each event is one line of JSON on standard output: {"message": hex, "node": id, "pid": pid}, or
{"members": [[node, pid, reason]…], "left": […], "joined": […]}; first {"me": [node id, pid]}. Each line of hexadecimal digits on standard input is sent
to the group; its end is leaving. Shares no code with the daemon.
"""

import contextlib
import ctypes
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time

DISPATCH_ALL, AGREED = 2, 2
OK, TRY_AGAIN = 1, 6


class Member:
    """The program on a Machine. `events`: what was delivered so far, oldest first."""

    def __init__(self, machine, group):
        self.events, self._news = [], queue.Queue()
        self._process = machine.popen(["/usr/bin/python3", os.path.abspath(__file__), group],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.node, self.pid = json.loads(self._process.stdout.readline())["me"]
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, message):
        """One message to the group, in order."""
        self._process.stdin.write(message.hex() + "\n")
        self._process.stdin.flush()

    def wait(self, condition, timeout=30):
        """The first event from now on, or not yet waited for, of which `condition` holds; those before it are passed over."""
        end = time.monotonic() + timeout
        while True:
            try:
                event = self._news.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"not within {timeout} s; delivered: {self.events[-20:]}") from None
            if condition(event):
                return event

    def close(self):
        """Leaves the group."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait(30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _read(self):
        for line in self._process.stdout:
            event = json.loads(line)
            if "message" in event:
                event["message"] = bytes.fromhex(event["message"])
            self.events.append(event)
            self._news.put(event)


class Name(ctypes.Structure):
    """struct cpg_name"""
    _fields_ = [("length", ctypes.c_uint32), ("value", ctypes.c_char * 128)]


class Address(ctypes.Structure):
    """struct cpg_address"""
    _fields_ = [("node", ctypes.c_uint32), ("pid", ctypes.c_uint32), ("reason", ctypes.c_uint32)]


class Bytes(ctypes.Structure):
    """struct iovec"""
    _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]


_LIST = [ctypes.POINTER(Address), ctypes.c_size_t]
Deliver = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.POINTER(Name), ctypes.c_uint32, ctypes.c_uint32,
                           ctypes.c_void_p, ctypes.c_size_t)
Change = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.POINTER(Name), *_LIST, *_LIST, *_LIST)


class Callbacks(ctypes.Structure):
    """cpg_callbacks_t"""
    _fields_ = [("deliver", Deliver), ("change", Change)]


def main(group):
    cpg = ctypes.CDLL("libcpg.so.4")
    cpg.cpg_mcast_joined.argtypes = [ctypes.c_uint64, ctypes.c_int, ctypes.POINTER(Bytes), ctypes.c_uint]

    def tell(**event):
        print(json.dumps(event), flush=True)

    def deliver(_handle, _group, node, pid, message, length):
        tell(message=ctypes.string_at(message, length).hex(), node=node, pid=pid)

    def change(_handle, _group, *lists):
        members, left, joined = ([[a[i].node, a[i].pid, a[i].reason] for i in range(n)]
                                 for a, n in zip(lists[::2], lists[1::2]))
        tell(members=members, left=left, joined=joined)

    callbacks, handle = Callbacks(Deliver(deliver), Change(change)), ctypes.c_uint64()
    name = Name(len(group), group.encode())
    node, fd = ctypes.c_uint32(), ctypes.c_int()
    ok(cpg.cpg_initialize(ctypes.byref(handle), ctypes.byref(callbacks)))
    ok(cpg.cpg_local_get(handle, ctypes.byref(node)))
    tell(me=[node.value, os.getpid()])
    ok(cpg.cpg_join(handle, ctypes.byref(name)))
    ok(cpg.cpg_fd_get(handle, ctypes.byref(fd)))
    typed = b""
    while True:
        ready, _, _ = select.select([fd.value, 0], [], [])
        if fd.value in ready and cpg.cpg_dispatch(handle, DISPATCH_ALL) != OK:
            return      # corosync is gone
        if 0 not in ready:
            continue
        new = os.read(0, 65536)
        if not new:
            cpg.cpg_leave(handle, ctypes.byref(name))
            cpg.cpg_finalize(handle)
            return
        *lines, typed = (typed + new).split(b"\n")
        for line in lines:
            message = bytes.fromhex(line.decode())
            while (code := cpg.cpg_mcast_joined(handle, AGREED, Bytes(message, len(message)), 1)) == TRY_AGAIN:
                ok(cpg.cpg_dispatch(handle, DISPATCH_ALL))
                time.sleep(0.01)
            ok(code)


def ok(code):
    """Raises for what is not CS_OK."""
    if code != OK:
        raise OSError(f"corosync answers {code}")


if __name__ == "__main__":
    main(sys.argv[1])
