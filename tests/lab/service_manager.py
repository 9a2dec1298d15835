# SPDX-License-Identifier: GPL-2.0-or-later
"""A service manager that keeps descriptors for its service, as systemd does (sd_notify(3), sd_listen_fds(3)).

    manager = ServiceManager(directory, program)
    daemon = Daemon(node, config, program=manager.program, env=manager.env)     # gets what an earlier one left there
    manager.kept                                                                # {name: descriptor}
"""

import contextlib
import os
import socket
import threading

#: Begins the service with what is kept for it, in the place of the descriptors behind standard error.
_START = """#!/usr/bin/python3
import fcntl, os, socket, sys
with socket.socket(socket.AF_UNIX) as manager:
    manager.connect({path!r})
    names, passed, _, _ = socket.recv_fds(manager, 65536, 64)
names = names.decode().split()
passed = [fcntl.fcntl(it, fcntl.F_DUPFD_CLOEXEC, 100) for it in passed]
for place, descriptor in enumerate(passed, 3):
    os.dup2(descriptor, place)
if passed:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(passed)), LISTEN_FDNAMES=":".join(names))
os.execv({program!r}, [{program!r}, *sys.argv[1:]])
"""


class ServiceManager:
    """The manager of one service."""

    def __init__(self, directory, program):
        self.kept, self.messages = {}, []
        notify, start, wrapper = (directory / name for name in ("notify", "start", "fence_virtd.managed"))
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(notify))
        self._start = socket.create_server(str(start), family=socket.AF_UNIX)
        wrapper.write_text(_START.format(path=str(start), program=str(program)))
        wrapper.chmod(0o755)
        self.program, self.env = wrapper, {"NOTIFY_SOCKET": str(notify)}
        for work in (self._receive, self._pass):
            threading.Thread(target=work, daemon=True).start()

    def _receive(self):
        with contextlib.suppress(OSError):
            while True:
                message, descriptors, _, _ = socket.recv_fds(self._notify, 65536, 64)
                state = dict(line.split("=", 1) for line in message.decode().splitlines())
                name = state.get("FDNAME")
                if state.get("FDSTOREREMOVE") == "1":
                    os.close(self.kept.pop(name))
                elif state.get("FDSTORE") == "1":
                    assert name not in self.kept and len(descriptors) == 1, (message, self.kept)
                    self.kept[name] = descriptors[0]
                self.messages.append(state)

    def _pass(self):
        with contextlib.suppress(OSError):
            while True:
                service, _ = self._start.accept()
                with service:
                    # Never empty: that would be the end of the stream.
                    socket.send_fds(service, [" ".join(self.kept).encode() + b"\n"], list(self.kept.values()))

    def close(self):
        """Ends the manager, and drops what it keeps."""
        for it in (self._notify, self._start):
            with contextlib.suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)
            it.close()
        for it in self.kept.values():
            os.close(it)
        self.kept.clear()
