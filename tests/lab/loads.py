# SPDX-License-Identifier: GPL-2.0-or-later
"""What a client does that costs the daemon work or places: loads, to be put beside the requests of others.

    with loads.Connections(client, host.ip, count=330, say=loads.nothing):
        ... others ask ...

`client` is a wire.FakeClient: the node, and the key. A key of nobody makes well-formed packets that fit no key of the daemon.
Each load runs in a process of its own, so that it takes no time from the one that measures. The block begins when the load is
whole, and ends with all of it closed; a load that failed meanwhile fails the block.
"""

import contextlib
import hashlib
import multiprocessing
import os
import socket
import threading
import time
import traceback

from . import net, wire
from .rig import slow_to_die

#: Seconds for a load to be whole.
PATIENCE = 60


class Load:
    """One load. `work` is what it does: it calls `begun` when it is whole, and returns soon after `ended` is set."""

    def __init__(self, client, to=None):
        self.client, self.to = client, to
        context = multiprocessing.get_context("fork")
        self._begun, self.ended, self.done = context.Event(), context.Event(), context.Value("Q", 0)
        self._process = context.Process(target=self._run, daemon=True)

    def begun(self):
        """It is whole."""
        self._begun.set()

    def _run(self):
        # Another machine has processors of its own: those who are measured come first.
        os.nice(5)
        try:
            self.work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        # Closes what is held at once, and nothing that the parent has.
        os._exit(0)

    def __enter__(self):
        self._process.start()
        end = time.monotonic() + PATIENCE
        while not self._begun.wait(0.1):
            assert self._process.is_alive() and time.monotonic() < end, f"{type(self).__name__} did not begin"
        return self

    def __exit__(self, *_):
        alive = self._process.is_alive()
        self.ended.set()
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        assert alive and self._process.exitcode == 0, f"{type(self).__name__} ended with {self._process.exitcode}"


def nothing(*_):
    """A connection that is silent from its begin."""
    return b""


def request(client, target):
    """A request for an off, and no challenge."""
    return client.packet(wire.OFF, target, address=None)


def challenge(client, target):
    """A request for an off and a challenge: the host proves itself, the client never does."""
    return request(client, target) + os.urandom(64)


def add_addresses(node, count):
    """Gives a node so many further addresses, and returns them."""
    known = node.__dict__.setdefault("further", [])
    for number in range(len(known), count):
        known.append(f"{node.ip.rpartition('.')[0]}.{200 + number}")
        node.add_address(known[-1])
    return known[:count]


class Connections(Load):
    """So many TCP connections, from so many addresses, each of which says what `say` gives. After so many `seconds` all
    are closed, and made anew."""

    def __init__(self, client, to, *, count, say, target=b"", addresses=1, seconds=4):
        super().__init__(client, to)
        self.count, self.say, self.target, self.seconds = count, say, target, seconds
        self.addresses = add_addresses(client.node, addresses)

    def work(self):
        while not self.ended.is_set():
            held = []
            for number in range(self.count):
                held.append(_connection(self.client.node, self.to, self.addresses[number % len(self.addresses)]))
                # One that the daemon has closed, or the kernel has not taken, says nothing.
                with contextlib.suppress(OSError):
                    held[-1].sendall(self.say(self.client, self.target))
            self.begun()
            self.ended.wait(self.seconds)
            for it in held:
                it.close()


class Packets(Load):
    """Multicast packets at a `rate`, no two of which are equal. `fields` are those of the client's packets."""

    #: Seconds of it that make it whole.
    first = 0

    def __init__(self, client, target, *, rate, action=wire.STATUS, **fields):
        super().__init__(client)
        self.rate, self.packet = rate, client.packet(action, target, **fields)

    def work(self):
        packets, since = unequal(self.packet, self.client.key), time.monotonic()
        with wire.multicast_sender(self.client.node) as s:
            while not self.ended.is_set():
                due = int((time.monotonic() - since) * self.rate)
                while self.done.value < due:
                    # In portions: not all of what was missed while this process had no processor, and the end is looked at.
                    for _ in range(min(due - self.done.value, 500)):
                        s.send(next(packets))
                        self.done.value += 1
                    if self.ended.is_set():
                        return
                if time.monotonic() >= since + self.first:
                    self.begun()
                time.sleep(0.002)


def unequal(packet, key, requests=True):
    """Packets without end, each with the fields of this one (SHA-256), another random part and the hash that is right for the key. Each
    is a request of its own, or one more packet of the same request."""
    keyed = hashlib.sha256(key)
    for number in range(1 << 48):
        random = number.to_bytes(6, "little")
        made = packet[:98] + random + (random[:4] if requests else packet[104:108]) + packet[108:112]
        h = keyed.copy()
        h.update(made + bytes(64))
        yield made + h.digest() + bytes(32)


class Redirected(Packets):
    """Packets that name an address of another node, and a port there that takes connections and says nothing."""

    # More than an address has slots.
    first = 1

    def __init__(self, client, target, victim, *, rate, port):
        super().__init__(client, target, rate=rate, action=wire.OFF, address=victim.ip, port=port)
        self.victim, self.port = victim, port

    def work(self):
        with wire.FakeClient(self.victim).listening(port=self.port) as listener:
            listener.listen(1024)
            super().work()


class Lists(Load):
    """So many lists outstanding, each asked for with the proof, by so many addresses. They are read and asked for again, or (not
    `read`) left unread: then all hang up after so many `seconds`, and ask again."""

    def __init__(self, client, to, *, count, addresses=1, read=True, seconds=10):
        super().__init__(client, to)
        self.count, self.read, self.seconds = count, read, seconds
        self.addresses = add_addresses(client.node, addresses)

    def work(self):
        while not self.ended.is_set():
            asked = [self._ask(number) for number in range(self.count)]
            for it in asked:
                self._prove(*it)
            self.begun()
            if not self.read:
                self.ended.wait(self.seconds)
            for stream, *_ in asked:
                if self.read and not self.ended.is_set():
                    self._discard(stream.socket)
                stream.close()

    def _ask(self, number):
        packet = self.client.packet(wire.LIST, b"", address=None)
        it = _connection(self.client.node, self.to, self.addresses[number % len(self.addresses)],
                         receive_buffer=None if self.read else 4096)
        stream, c1 = wire.Stream(it, PATIENCE), os.urandom(64)
        with contextlib.suppress(OSError):
            stream.send(packet + c1)
        return stream, wire.Proofs(self.client.key, self.client.auth, packet), c1

    def _prove(self, stream, proofs, c1):
        # The daemon pushes out those that are too many.
        with contextlib.suppress(OSError, wire.Closed):
            assert stream.recv(64) == proofs.host(c1)
            stream.send(proofs.client(c1, stream.recv(64)))

    def _discard(self, it):
        with contextlib.suppress(OSError):
            while it.recv(1 << 20, socket.MSG_TRUNC):
                pass
            self.done.value += 1


def _connection(node, to, address, receive_buffer=None):
    """A connection to the daemon from one of the node's addresses; it may be one that was refused."""
    it = node.socket()
    if receive_buffer:
        it.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    it.settimeout(1)
    with contextlib.suppress(OSError):
        it.bind((address, 0))
        it.connect((to, wire.PORT))
    return it


class Threads:
    """A load of threads, from the begin of the block to its end: each runs `run` with its arguments, until `ended` is set. Whoever begins
    the block goes on when `is_there()`."""

    def __init__(self, arguments):
        self.ended = threading.Event()
        self._threads = [threading.Thread(target=self.run, args=it) for it in arguments]

    def run(self, *arguments):
        raise NotImplementedError

    def is_there(self):
        """Whether the load is there."""
        return True

    def __enter__(self):
        for it in self._threads:
            it.start()
        try:
            net.wait_until(self.is_there, PATIENCE)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.ended.set()
        for it in self._threads:
            it.join()

    def end_of(self, agent):
        """Returns when an Agent, or the load, has ended."""
        while agent.process.poll() is None and not self.ended.wait(0.05):
            pass


class Repeated(Threads):
    """Requests about these targets, each made again when it is over. `order(name)` begins one and returns its Agent; the load is there when
    `is_there()` says so."""

    def __init__(self, names, order, is_there):
        super().__init__([(it, order) for it in names])
        self.is_there = is_there

    def run(self, name, order):
        while not self.ended.is_set():
            agent = order(name)
            self.end_of(agent)
            agent.process.kill()
            agent.finish()


class UndyingMachines(Threads):
    """Machines whose QEMU stands still while they are ordered to be off; libvirt loses patience after ten seconds, and then they are
    started, and it begins anew. `order(name)` begins such an off and returns its Agent; `domains` are the machines, by name."""

    def __init__(self, domains, order):
        super().__init__([(*it, order) for it in domains.items()])
        begun = threading.Event()
        self.is_there, self._begin = begun.is_set, begun.set

    def run(self, name, domain, order):
        while not self.ended.is_set():
            with slow_to_die(domain) as wait_ordered:
                agent = order(name)
                # It may have to wait for another one of its cluster.
                wait_ordered()
                self._begin()
                self.end_of(agent)
            agent.finish()
            domain.start()
