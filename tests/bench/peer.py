# SPDX-License-Identifier: GPL-2.0-or-later
"""A host or a guest of the measurements: a process that stays in its namespace and does what it is told.

Here, so that only the program under test stands between the two looks at the clock: neither nsenter nor the
many threads of the one who plans. `Peer` is the planner's handle, the rest runs in the namespace (this file is the
program). Orders and answers are JSON, one line each; times are seconds of the monotonic clock, which all share.
A peer has /run and /var/lib of its own, as machines have.
"""

import contextlib
import json
import os
import pathlib
import select
import shlex
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from lab import programs, wire  # noqa: E402

#: When an agent counts as hung, seconds: it has 30 s of its own.
AGENT_LIMIT = 40


class Failed(Exception):
    """An order that the peer could not carry out, in its own words."""


class Peer:
    """The planner's end. `order` is one order and its answer; `send` and `receive` are the halves of it."""

    def __init__(self, node, directory, key):
        self.node, self.key = node, key
        run, state = directory / f"{node.name}.run", directory / f"{node.name}.lib"
        run.mkdir()
        state.mkdir()
        mounts = f"mount --bind {shlex.quote(str(run))} /run; mount --bind {shlex.quote(str(state))} /var/lib"
        self.process = node.popen(
            ["unshare", "--mount", "--propagation=private", "sh", "-ec", f'{mounts}; exec "$@"', "sh",
             sys.executable, "-I", __file__, node.ip, key],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._rest = b""

    def order(self, what, **how):
        """Has one thing done and returns its answer; raises Failed."""
        self.send(what, **how)
        return self.receive()

    def send(self, what, **how):
        """Gives an order and does not wait."""
        self.process.stdin.write(json.dumps([what, how]).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self, timeout=90):
        """The answer to the oldest order that has none yet. No order takes as long as `timeout`, seconds."""
        end = time.monotonic() + timeout
        while b"\n" not in self._rest:
            if not select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                raise Failed(f"{self.node.name} did not answer within {timeout} s")
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                raise Failed(f"{self.node.name} has gone")
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.node.name}: {answer['error']}")
        return answer

    def close(self):
        """Ends the peer. What it has started ends with its namespace."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


# -- in the namespace -------------------------------------------------------------------------------------------


class Here:
    """The part of lab.net.Node that peers of lab.wire need, without changing namespaces."""

    def __init__(self, ip):
        self.ip = ip

    def address(self, _family):
        return self.ip

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM, proto=0):
        return socket.socket(family, kind, proto)

    def interface_index(self, name="eth0"):
        return socket.if_nametoindex(name)


class Orders:
    """What a peer can do. Each method is an order; it returns what is sent back."""

    def __init__(self, ip, key):
        self.here, self.key = Here(ip), wire.read_key(key)
        self.silent = []

    def agent(self, argv, at=None):
        """Runs an agent to its end, from the moment `at`: its exit code, the lines that it wrote, the times."""
        out = os.memfd_create("out")
        _wait(at)
        started = time.monotonic()
        pid = _spawn(argv, out)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
        signal.alarm(AGENT_LIMIT)
        _, status = os.waitpid(pid, 0)
        ended = time.monotonic()
        signal.alarm(0)
        os.lseek(out, 0, os.SEEK_SET)
        with open(out, "rb") as file:
            text = file.read()
        return {"rc": os.waitstatus_to_exitcode(status), "lines": text.count(b"\n"), "started": started, "ended": ended,
                "said": text[:200].decode("utf-8", "backslashreplace")}

    def begin(self, argv):
        """Starts a program and answers its pid."""
        with open(os.devnull, "wb") as out:
            return {"pid": _spawn(argv, out.fileno())}

    def daemon(self, argv, kind, port, log, group=None):
        """Starts a daemon and waits until it has its port, and is in its group: pid and times."""
        with open(log, "ab") as out:
            started = time.monotonic()
            pid = _spawn(argv, out.fileno())
        # A socket that is bound and has not joined yet hears nothing, and the first request would be lost.
        while not programs.bound(pid, kind, port) or (group and not _joined(group)):
            if os.waitpid(pid, os.WNOHANG)[0]:
                raise Failed(f"{argv[0]} ended at its start")
            if time.monotonic() > started + 15:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise Failed(f"{argv[0]} did not bind its port within 15 s")
            time.sleep(0.0002)
        return {"pid": pid, "started": started, "ended": time.monotonic()}

    def end(self, pid):
        """Ends what `begin` or `daemon` started."""
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 3
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.002)
        return {}

    def ask(self, action, domain="", group=None, host=None, entries=0, timeout=30, at=None):
        """One exchange by hand: multicast to `group`, or TCP to `host`. `code` None: none came in time."""
        _wait(at)
        started = time.monotonic()
        try:
            code = self._ask(action, domain, group, host, entries, timeout)
        except (TimeoutError, wire.Closed) as error:
            code = None
            if isinstance(error, wire.Closed):
                raise Failed(f"the host left: {error}") from error
        return {"code": code, "started": started, "ended": time.monotonic()}

    def silence(self, kind, count, group=None, host=None):
        """`count` peers that fall silent: "tcp" (connected, no request), "gone" (called back at addresses that
        nobody has), "mute" (accept the call-back and say nothing)."""
        for number in range(count):
            if kind == "tcp":
                peer = self.here.socket()
                peer.setblocking(False)
                peer.connect_ex((host, wire.PORT))
                self.silent.append(peer)
                continue
            address, port = self.here.ip, 4000
            if kind == "gone":
                address, port = f"10.77.250.{number + 1}", wire.PORT
            elif number == 0:
                listener = self.here.socket()
                listener.bind(("", port))
                listener.listen(1024)
                self.silent.append(listener)
            request = wire.Request(wire.STATUS, b"vm1", address=address, port=port)
            wire.multicast_send(self.here, request.build(self.key), group=group)
        # What was sent is with the host when its queue is: nobody says so, and a moment is enough.
        time.sleep(0.05)
        return {}

    def hush(self):
        """The silent peers hang up."""
        while self.silent:
            self.silent.pop().close()
        return {}

    def _ask(self, action, domain, group, host, entries, timeout):
        with contextlib.ExitStack() as stack:
            if host:
                peer = stack.enter_context(contextlib.closing(self.here.socket()))
                peer.settimeout(timeout)
                peer.connect((host, wire.PORT))
                peer.sendall(wire.Request(action, domain.encode()).build(self.key))
            else:
                client = wire.FakeClient(self.here, self.key)
                listener = stack.enter_context(client.listening())
                listener.settimeout(timeout)
                client.send(client.packet(action, domain.encode()), group=group)
                peer = stack.enter_context(contextlib.closing(listener.accept()[0]))
            stream = wire.Stream(peer, timeout)
            if not wire.challenge_as_client(stream, self.key):
                raise Failed("the host's answer to the challenge was wrong")
            code = stream.recv(1)[0]
            if code == wire.LIST_FOLLOWS:
                # As one piece: reading entry by entry would measure Python.
                rest = stream.recv((entries + 1) * wire.ENTRY_LEN + 1)
                if rest[-1 - wire.ENTRY_LEN:-1] != bytes(wire.ENTRY_LEN):
                    raise Failed(f"the list does not end after {entries} entries")
                code = rest[-1]
            return code


def _spawn(argv, out):
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, out, 1),
               (os.POSIX_SPAWN_DUP2, out, 2)]
    return os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)


def _joined(group):
    """Whether somebody in this namespace is in the IPv4 group: the daemon, for it is alone here."""
    # The kernel prints the four bytes of the address as a number in its own order.
    wanted = f"{int.from_bytes(socket.inet_aton(group), sys.byteorder):08X}"
    with open("/proc/self/net/igmp") as table:
        return any(line.split()[0] == wanted for line in table if line.startswith("\t"))


def _wait(at):
    if at is not None:
        time.sleep(max(0, at - time.monotonic()))


def serve(ip, key):
    """Carries out orders until there are no more."""
    orders = Orders(ip, key)
    for line in sys.stdin.buffer:
        what, how = json.loads(line)
        try:
            answer = getattr(orders, what)(**how)
        except (Failed, OSError) as error:
            answer = {"error": f"{what}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(*sys.argv[1:])
