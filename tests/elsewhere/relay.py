# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay between a client of libvirt and a libvirtd, that stops in front of a chosen call.

    with Relay(hypervisor, directory / "relay", CONFIRM) as relay:
        migration = host.migrate("x", other, through=relay)
        relay.wait_held(migration)   # the client has made that call, and libvirtd has not heard it
        relay.cut()              # … and never will: the client is gone for libvirtd
        relay.let_go()           # … or it goes on

virsh leads a migration step by step: begin, prepare (at the target), perform, finish (at the target), confirm.

`loses`: calls that libvirtd hears and carries out, and whose client never hears the reply.
"""

import contextlib
import select
import socket
import struct
import threading
from pathlib import Path

#: Calls of libvirt's protocol (src/remote/remote_protocol.x): with the parameters one by one, and in a list.
FINISH, CONFIRM, DESTROY = frozenset({217, 306}), frozenset({218, 307}), frozenset({12, 234})

#: Number of the protocol's program for a hypervisor, and of a message that is a call.
REMOTE, CALL = 0x20008086, 0


class Relay:
    """See the module's head. `uri` is where the client connects."""

    def __init__(self, hypervisor, path, held=frozenset(), loses=frozenset()):
        self._target, self._held_calls, self._lost_calls = str(hypervisor.socket), held, loses
        self._held, self._go, self._cut = threading.Event(), threading.Event(), False
        self.uri = f"qemu+unix:///system?socket={path}"
        Path(path).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(4)
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_held(self, migration, timeout=60):
        """Waits for the call; False when the migration ended without it."""
        while not self._held.wait(0.01):
            timeout -= 0.01
            assert timeout > 0, "the call did not come"
            if migration.poll() is not None and not self._held.is_set():
                return False
        return True

    def let_go(self):
        """The call, and what follows, is passed on."""
        self._go.set()

    def cut(self):
        """libvirtd sees that its client is gone."""
        self._cut = True
        self._go.set()

    def lose(self):
        """The call never reaches libvirtd, its client hears that libvirtd is gone, and its next connection is passed on."""
        self._held_calls = frozenset()
        self.cut()

    def close(self):
        """Ends it, and what stands in front of it."""
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                threading.Thread(target=self._carry, args=(client, server), daemon=True).start()

    def _carry(self, client, server):
        """One connection. What the client says is looked at message by message."""
        said, lost = b"", False
        with client, server, contextlib.suppress(OSError):
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    if ready is server:
                        if lost:
                            return
                        client.sendall(data)
                        continue
                    said += data
                    while len(said) >= 4 and len(said) >= (length := struct.unpack("!I", said[:4])[0]):
                        message, said = said[:length], said[length:]
                        if not self._passes(message):
                            return
                        server.sendall(message)
                        lost = lost or self._is(message, self._lost_calls)

    def _passes(self, message):
        if self._is(message, self._held_calls):
            self._held.set()
            self._go.wait()
            return not self._cut
        return True

    def _is(self, message, calls):
        program, _, procedure, kind = struct.unpack("!IIII", message[4:20])
        if (program, kind) == (REMOTE, CALL):
            return procedure in calls
        return False
