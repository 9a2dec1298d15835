# SPDX-License-Identifier: GPL-2.0-or-later
"""Sealed requests between whole programs, beside classic ones, and with somebody on the way between them."""

import contextlib
import threading

import pytest

from lab import wire

OK, FAILED, OFF = 0, 1, 2
SEALED = tuple(wire.SEALED)
#: Where the man in the middle listens.
RELAY = 1290


def line(domain, state):
    """A line of the agents' list."""
    return f"{domain.name:<32} {domain.uuid} {state}"


@pytest.fixture(params=["multicast", "tcp"])
def ways(request, start_daemon, agent, site):
    """ways(hash) starts a daemon with that minimum; gives it, and ask(*options) by one transport."""
    def start(minimum):
        options = {"hash": minimum}
        if request.param == "multicast":
            daemon = start_daemon(listener_options=options)
            return daemon, agent
        daemon = start_daemon(listener="tcp", listener_options={**options, "address": "0.0.0.0"}, ready="tcp")
        return daemon, lambda *args, **kw: agent("-T", site.host.ip, *args, name="fence_virt", **kw)
    return start


@pytest.mark.pairs(agent="ours", daemon="ours")
@pytest.mark.parametrize("hash_name", SEALED)
def test_every_action(ways, site, vm1, hash_name):
    daemon, ask = ways(hash_name)
    vm2 = site.hypervisor.domain("vm2", start=False)
    sealed = lambda *args: ask("-c", hash_name, *args)  # noqa: E731
    assert sealed("-o", "monitor").rc == OK
    result = sealed("-o", "list")
    rows = result.out.splitlines()
    assert result.rc == OK and line(vm1, "on") in rows and line(vm2, "off") in rows, (result, daemon.log)
    qemu = vm1.process()
    assert sealed("-o", "status", "-n", "vm1").rc == OK
    result = sealed("-o", "off", "-n", "vm1")
    assert result.rc == OK and qemu.ended(), (result, daemon.log)
    assert sealed("-o", "status", "-n", "vm1").rc == OFF
    result = sealed("-o", "on", "-n", "vm1")
    assert result.rc == OK and vm1.pid(), (result, daemon.log)
    # The audit says how the request was proved.
    daemon.wait_log(rf"audit: on vm1: success .*hash={hash_name} ")


@pytest.mark.pairs(daemon="ours")
def test_a_classic_agent_below_a_sealed_minimum(ways, site, vm1):
    daemon, ask = ways("hmac-sha256")
    result = ask("-o", "off", "-H", "vm1", "-t", "2")
    assert result.rc not in (OK, OFF), result
    said = daemon.wait_log("dropped: hash sha256 is weaker than hmac-sha256").string
    assert site.guest(1).ip in said
    assert vm1.pid()


@pytest.mark.pairs(daemon="ours")
def test_classic_and_sealed_side_by_side(ways, pair, site, vm1):
    """While guests are switched one by one: the host's minimum is still classic."""
    daemon, ask = ways("sha256")
    assert ask("-o", "status", "-H", "vm1").rc == OK, daemon.log
    if pair.agent == "ours":
        assert ask("-o", "status", "-n", "vm1", "-c", "hmac-sha256").rc == OK, daemon.log
        assert ask("-o", "status", "-n", "vm1").rc == OK, daemon.log


@pytest.mark.pairs(agent="ours", daemon="reference")
def test_a_host_that_knows_nothing_of_it(ways, vm1):
    daemon, ask = ways("sha256")
    result = ask("-c", "hmac-sha256", "-o", "off", "-n", "vm1", "-t", "2")
    assert result.rc == FAILED, (result, daemon.log)
    assert "C programs drops sealed requests" in result.err, result
    assert vm1.pid()
    # It serves on, and classic requests are what it was.
    assert ask("-o", "status", "-n", "vm1").rc == OK, daemon.log


# -- somebody on the way ----------------------------------------------------------------------------------


class Relay:
    """A man in the middle on TCP, on guest 3. `packet` and `response` change what goes by: the request packet, and all
    that the host sends after its challenge. `heard` has the packets as agents sent them."""

    def __init__(self, site, packet=lambda data: data, response=lambda data: data):
        self.node, self.host, self.packet, self.response = site.guest(3), site.host, packet, response
        self.heard = []
        self._socket = self.node.socket()
        self._socket.setsockopt(wire.socket.SOL_SOCKET, wire.socket.SO_REUSEADDR, 1)
        self._socket.bind(("", RELAY))
        self._socket.listen(4)
        self._socket.settimeout(20)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        with contextlib.suppress(OSError):
            guest = wire.Stream(self._socket.accept()[0], 20)
            with contextlib.suppress(wire.Closed, OSError):
                self._talk(guest)
            guest.close()

    def _talk(self, guest):
        data = guest.recv(wire.REQUEST_LEN)
        self.heard.append(data)
        data = self.packet(data)
        if data is None:
            return
        sock = self.node.socket()
        sock.connect((self.host.ip, wire.PORT))
        host = wire.Stream(sock, 20)
        try:
            host.send(data)
            host.send(guest.recv(64))
            guest.send(host.recv(128))
            host.send(guest.recv(64))
            guest.send(self.response(host.recv_all()))
        finally:
            host.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()
        self._thread.join(25)


@pytest.fixture
def through(start_daemon, agent, site):
    """through(*options, **relay): a sealed agent asks a daemon through a Relay; gives result, relay and daemon."""
    daemon = start_daemon(listener="tcp", listener_options={"address": "0.0.0.0"}, ready="tcp")

    def ask(*args, hash_name="hmac-sha256", **kw):
        with Relay(site, **kw) as relay:
            result = agent("-T", site.guest(3).ip, "-p", RELAY, "-c", hash_name, "-t", "15", *args, name="fence_virt")
        return result, relay, daemon
    return ask


@pytest.mark.pairs(agent="ours", daemon="ours")
def test_a_relay_that_changes_nothing(through, vm1):
    """The control group: who only passes everything on is a router."""
    result, relay, daemon = through("-o", "status", "-n", "vm1")
    assert (result.rc, len(relay.heard)) == (OK, 1), (result, daemon.log)


@pytest.mark.pairs(agent="ours", daemon="ours")
def test_a_failure_made_a_success(through):
    """What sealed is for: "off" that failed and is told as done. The same works against a classic agent."""
    failed = lambda data: b"\0" + data[1:]  # noqa: E731
    result, _, daemon = through("-o", "off", "-n", "no such domain", response=failed)
    assert result.rc == FAILED and "seal is wrong" in result.err, (result, daemon.log)
    result, _, daemon = through("-o", "off", "-n", "no such domain", response=lambda data: b"\0")
    assert result.rc == FAILED and "without its seal" in result.err, (result, daemon.log)
    result, _, daemon = through("-o", "off", "-n", "no such domain", hash_name="sha256", response=failed)
    assert result.rc == OK, "the attack itself does not work, so it shows nothing"


@pytest.mark.pairs(agent="ours", daemon="ours")
def test_a_list_with_a_row_less(through, site, vm1, vm2):
    result, _, daemon = through("-o", "list", response=lambda data: data[:1] + data[1 + wire.ENTRY_LEN:])
    assert (result.rc, result.out) == (FAILED, ""), (result, daemon.log)
    assert "seal" in result.err


@pytest.mark.pairs(agent="ours", daemon="ours")
@pytest.mark.parametrize("hash_name", ["hmac-sha256", "sha256"])
def test_another_request_swapped_in(through, vm1, vm2, hash_name):
    """A captured "off vm2" is put in the place of "status vm1", whose sender proves itself for it: classic falls."""
    captured, relay, _ = through("-o", "off", "-n", "vm2", hash_name=hash_name, packet=lambda data: None)
    assert captured.rc == FAILED and vm2.pid(), captured
    result, _, daemon = through("-o", "status", "-n", "vm1", hash_name=hash_name, packet=lambda data: relay.heard[0])
    if hash_name == "sha256":
        assert not vm2.pid(), "the attack itself does not work, so it shows nothing"
        return
    assert result.rc == FAILED and "wrong answer to the challenge" in result.err, (result, daemon.log)
    assert vm1.pid() and vm2.pid()
