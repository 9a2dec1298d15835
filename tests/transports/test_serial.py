# SPDX-License-Identifier: GPL-2.0-or-later
"""The serial listener: which sockets it takes, how it keeps them, and what a guest can say on one.

A UNIX server of the test plays QEMU, which listens for the host on behalf of the guest."""

import contextlib
import os
import pty
import select
import socket
import threading
import time
import tty

import pytest

from conftest import REFERENCE_VIRT
from lab import programs, testdriver, wire
from lab.testdriver import Domain, channel_device, serial_device

SERIAL = "serial { @uri@ }"


class Qemu:
    """The guest's end of one port: a UNIX server that takes one connection at a time."""

    def __init__(self, path):
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self.stream = None

    def accept(self, timeout=30):
        """Waits for the daemon."""
        self._listener.settimeout(timeout)
        sock, _ = self._listener.accept()
        self.stream = wire.Stream(sock, 30)
        return self

    def ask(self, action, target=b"", seqno=None, noise=b""):
        """One request; returns the response byte, or (entries, response byte) of a list."""
        self.send(action, target, seqno, noise)
        return self.answer()

    def send(self, action, target=b"", seqno=None, noise=b""):
        seqno = int.from_bytes(os.urandom(4), "little") if seqno is None else seqno
        self.stream.send(noise + wire.SerialRequest(action, target, seqno=seqno).build())

    def answer(self):
        code = self._response()
        if code != wire.LIST_FOLLOWS:
            return code
        entries = []
        while (raw := self.stream.recv(wire.ENTRY_LEN)) != bytes(wire.ENTRY_LEN):
            entries.append(wire.HostEntry.parse(raw))
        return entries, self._response()

    def silent(self, seconds):
        """Nothing comes for so long."""
        self.stream.socket.settimeout(seconds)
        try:
            return self.stream.socket.recv(1) is None
        except TimeoutError:
            return True
        finally:
            self.stream.socket.settimeout(30)

    def _response(self):
        raw = self.stream.recv(wire.SERIAL_RESPONSE_LEN)
        assert raw[:4] == wire.SERIAL_MAGIC, raw
        return raw[4]

    def connected(self, timeout=1.0):
        """Whether the daemon connects within the time."""
        with contextlib.suppress(TimeoutError):
            self.accept(timeout)
            return True
        return False

    def hang_up(self):
        self.stream.close()

    def close(self):
        if self.stream:
            self.stream.close()
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


@pytest.fixture
def qemu(tmp_path):
    """qemu(name): a Qemu at a path of its own."""
    made = []

    def make(name):
        made.append(Qemu(tmp_path / name))
        return made[-1]

    yield make
    for it in made:
        it.close()


@pytest.fixture
def vm1(qemu, daemon):
    """The daemon with vm1 and its serial line; vm2 is off."""
    line = qemu("vm1")
    daemon("serial", SERIAL, [Domain("vm1", devices=serial_device(line.path)), Domain("vm2", testdriver.SHUTOFF)],
           ready=None)
    return line.accept()


# -- what a guest can ask ---------------------------------------------------------------------------------


def test_every_action(vm1):
    assert vm1.ask(wire.STATUS, "vm1") == wire.SUCCESS
    assert vm1.ask(wire.STATUS, "vm2") == wire.RESPONSE_OFF
    assert vm1.ask(wire.ON, "vm2") == wire.SUCCESS
    assert vm1.ask(wire.REBOOT, "vm2") == wire.SUCCESS
    assert vm1.ask(wire.OFF, "vm2") == wire.SUCCESS
    assert vm1.ask(wire.STATUS, "vm2") == wire.RESPONSE_OFF
    assert vm1.ask(wire.STATUS, "nobody") == wire.FAILURE
    assert vm1.ask(wire.MONITOR) == wire.SUCCESS
    assert vm1.ask(wire.NULL) == wire.FAILURE
    entries, code = vm1.ask(wire.LIST)
    assert [(e.name, e.state == wire.SUCCESS + 1) for e in entries] == [(b"vm1", True), (b"vm2", False)]
    assert code == wire.SUCCESS


def test_noise_before_a_request(vm1):
    for noise in (b"login: ", wire.SERIAL_MAGIC[:3], wire.SERIAL_MAGIC[:2] * 5, bytes(range(256)) * 20):
        assert vm1.ask(wire.STATUS, "vm2", noise=noise) == wire.RESPONSE_OFF


def test_a_request_byte_by_byte(vm1):
    for byte in wire.SerialRequest(wire.STATUS, "vm2", seqno=1).build():
        vm1.stream.send(bytes([byte]))
    assert vm1.answer() == wire.RESPONSE_OFF


def test_half_a_request_is_not_completed_by_the_next(vm1):
    """An agent was killed while it wrote `off vm1`; the next one asks for something else."""
    vm1.stream.send(wire.SerialRequest(wire.OFF, "vm1", seqno=1).build()[:50])
    assert vm1.ask(wire.STATUS, "vm1") == wire.SUCCESS
    assert vm1.silent(0.3)


def test_half_a_request_does_not_eat_the_next(vm1):
    vm1.stream.send(wire.SerialRequest(wire.STATUS, "vm2", seqno=1).build()[:50])
    time.sleep(5.5)     # what the daemon waits for the rest
    assert vm1.ask(wire.STATUS, "vm2") == wire.RESPONSE_OFF


def test_a_retransmission_is_answered_once(vm1):
    vm1.send(wire.STATUS, "vm2", seqno=7)
    vm1.send(wire.STATUS, "VM2", seqno=7)
    assert vm1.answer() == wire.RESPONSE_OFF
    assert vm1.silent(0.5)
    assert vm1.ask(wire.STATUS, "vm2", seqno=8) == wire.RESPONSE_OFF


def test_what_is_no_request_is_dropped(vm1):
    vm1.stream.send(wire.SerialRequest(99, "vm2").build())
    vm1.stream.send(wire.SerialRequest(wire.STATUS, b"x" * 64).build())
    vm1.stream.send(wire.SerialRequest(wire.STATUS, b"").build())
    assert vm1.silent(0.3)
    assert vm1.ask(wire.STATUS, "vm2") == wire.RESPONSE_OFF


def test_groups_know_the_source_by_its_socket(qemu, daemon):
    lines = {name: qemu(name) for name in ("vm1", "vm2", "vm3")}
    domains = [Domain(name, devices=serial_device(line.path)) for name, line in lines.items()]
    daemon("serial", SERIAL, domains, ready=None, groups=f"""groups {{
        group {{ uuid = "{testdriver.uuid_of('vm1')}"; uuid = "vm2"; }} }}""")
    one, two, three = (line.accept() for line in lines.values())
    assert one.ask(wire.STATUS, "vm2") == wire.SUCCESS
    assert two.ask(wire.STATUS, "vm1") == wire.SUCCESS, "a group may name a source by its name"
    assert two.ask(wire.OFF, "vm3") == wire.DENIED
    assert three.ask(wire.STATUS, "vm1") == wire.DENIED
    assert [e.name for e in one.ask(wire.LIST)[0]] == [b"vm1", b"vm2"]
    assert three.ask(wire.LIST) == ([], wire.SUCCESS)


@contextlib.contextmanager
def terminal(qemu):
    """A terminal whose other end is the domain's line: what the guest's serial driver is to an agent."""
    master, slave = pty.openpty()
    tty.setraw(master)
    done = threading.Event()

    def carry():
        ends = {master: qemu.stream.socket.fileno(), qemu.stream.socket.fileno(): master}
        while not done.is_set():
            for end in select.select(list(ends), [], [], 0.05)[0]:
                os.write(ends[end], os.read(end, 4096))

    thread = threading.Thread(target=carry)
    thread.start()
    try:
        yield os.ttyname(slave)
    finally:
        done.set()
        thread.join()
        os.close(master)
        os.close(slave)


def test_every_action_of_the_reference_agent(stage, vm1):
    with terminal(vm1) as device:
        def ask(*args):
            return programs.run_agent(stage.guest(1), "-D", device, "-t", "10", *args, program=REFERENCE_VIRT)

        assert ask("-o", "status", "-H", "vm1").rc == 0
        assert ask("-o", "status", "-H", "vm2").rc == 2
        assert ask("-o", "on", "-H", "vm2").rc == 0
        assert ask("-o", "reboot", "-H", "vm2").rc == 0
        assert ask("-o", "off", "-H", "vm2").rc == 0
        assert ask("-o", "off", "-H", "nobody").rc == 1
        assert ask("-o", "monitor").rc == 0
        listing = ask("-o", "list")
        assert listing.rc == 0
        assert [line.split()[::2] for line in listing.out.splitlines()] == [["vm1", "on"], ["vm2", "off"]]


# -- which sockets ----------------------------------------------------------------------------------------


def mixed(qemu, tmp_path):
    """One domain with every kind of port; {name: Qemu}, and the domain."""
    (tmp_path / "in").mkdir()
    ports = {name: qemu(name) for name in ("in/serial", "serial", "in/any", "any", "in/agent", "agent", "ours",
                                           "forward", "other-port")}
    path = lambda name: ports[name].path    # noqa: E731
    devices = (serial_device(path("in/serial")) + serial_device(path("serial"), 1)
               + channel_device(path("in/any"), "org.example.a") + channel_device(path("any"), "org.example.b")
               + channel_device(path("in/agent"), "org.qemu.guest_agent.1")
               + channel_device(path("agent"), "org.qemu.guest_agent.0")
               + channel_device(path("ours"), "org.clusterlabs.fence_virt.0")
               + channel_device(path("forward"))
               + channel_device(path("other-port"), address="10.0.2.180", port=1230))
    return ports, Domain("vm1", devices=devices)


@pytest.mark.parametrize("options,taken", [
    ("", {"in/serial", "serial"}),
    ('path = "@in@";', {"in/serial"}),
    ('path = "@in@/";', {"in/serial"}),
    ('mode = "vmchannel";', {"ours", "forward"}),
    ('mode = "vmchannel"; path = "@in@";', {"in/any"}),
])
def test_which_sockets_are_taken(qemu, tmp_path, daemon, options, taken):
    ports, domain = mixed(qemu, tmp_path)
    daemon("serial", f"serial {{ @uri@ {options.replace('@in@', str(tmp_path / 'in'))} }}", [domain], ready=None)
    for name in taken:
        assert ports[name].accept().ask(wire.STATUS, "vm1") == wire.SUCCESS, name
    assert {name for name in ports if name not in taken and ports[name].connected(0.1)} == set()


# -- keeping them -----------------------------------------------------------------------------------------


def test_connects_again_by_itself(vm1):
    for _ in range(3):
        vm1.hang_up()
        assert vm1.accept().ask(wire.STATUS, "vm2") == wire.RESPONSE_OFF


def test_a_socket_that_comes_late(qemu, tmp_path, daemon):
    it = daemon("serial", SERIAL, [Domain("vm1", devices=serial_device(tmp_path / "vm1"))], ready=None)
    it.wait_log("can't connect to its socket: No such file.*domain=vm1")
    assert qemu("vm1").accept().ask(wire.STATUS, "vm1") == wire.SUCCESS


def test_follows_domains_that_stop_and_start(qemu, daemon):
    lines = {name: qemu(name) for name in ("vm1", "vm2")}
    daemon("serial", SERIAL, [Domain("vm1", devices=serial_device(lines["vm1"].path)),
                              Domain("vm2", testdriver.SHUTOFF, devices=serial_device(lines["vm2"].path))],
           ready=None)
    one, two = lines["vm1"].accept(), lines["vm2"]
    assert not two.connected(0.3), "it is off"
    for _ in range(2):
        assert one.ask(wire.ON, "vm2") == wire.SUCCESS
        assert two.accept().ask(wire.STATUS, "vm1") == wire.SUCCESS
        assert one.ask(wire.OFF, "vm2") == wire.SUCCESS
        assert two.stream.socket.recv(1) == b"", "the daemon lets go"
        assert not two.connected(0.3)


def test_a_domain_that_reboots_itself(vm1):
    """By that its socket is closed; it is to come up all the same."""
    vm1.send(wire.REBOOT, "vm1")
    vm1.hang_up()
    assert vm1.accept().ask(wire.STATUS, "vm1") == wire.SUCCESS


def test_permission(qemu, daemon, tmp_path):
    """The message names domain, path and what to do."""
    line = qemu("vm1")
    os.chmod(line.path, 0)
    it = daemon("serial", SERIAL, [Domain("vm1", devices=serial_device(line.path))], ready=None)
    if os.geteuid() == 0:
        assert line.accept().ask(wire.STATUS, "vm1") == wire.SUCCESS
    else:
        it.wait_log(f"vm1.*{line.path}.*Permission denied.*root")


# -- what one guest can't do to others --------------------------------------------------------------------


def test_one_that_does_not_read_a_long_list(qemu, daemon):
    lines = [qemu(f"vm{n}") for n in range(16)]
    domains = [Domain(f"vm{n}", devices=serial_device(line.path)) for n, line in enumerate(lines)]
    it = daemon("serial", SERIAL, domains + [Domain(f"other{n}") for n in range(3000)], ready=None)
    *greedy, honest = [line.accept() for line in lines]
    for line in greedy:
        line.send(wire.LIST)
    start = time.monotonic()
    assert honest.ask(wire.STATUS, "vm1") == wire.SUCCESS
    assert time.monotonic() - start < 8
    # Half a list stays on no line: the daemon hangs up and connects again.
    it.wait_log("did not read it in time")
    for line in greedy:
        assert line.accept().ask(wire.STATUS, "vm1") == wire.SUCCESS


def test_junk_on_one_line(qemu, daemon):
    lines = [qemu(f"vm{n}") for n in range(2)]
    daemon("serial", SERIAL, [Domain(f"vm{n}", devices=serial_device(it.path)) for n, it in enumerate(lines)],
           ready=None)
    noisy, honest = [line.accept() for line in lines]
    noisy.stream.send(os.urandom(4_000_000))
    for _ in range(20):
        assert honest.ask(wire.STATUS, "vm0") == wire.SUCCESS
    time.sleep(5.1)     # a frame may have begun
    assert noisy.ask(wire.STATUS, "vm1") == wire.SUCCESS


# -- the start --------------------------------------------------------------------------------------------


def test_a_hypervisor_that_is_not_there(stage, daemon, tmp_path):
    away = f"qemu+unix:///system?socket={tmp_path}/nothing"
    with pytest.raises(RuntimeError, match=r"listener serial: no connection to libvirt at .*-w waits for it"):
        daemon("serial", f'serial {{ uri = "{away}"; }}', ready=lambda it: False)


def test_one_that_waits_does_not_hold_up_the_others(stage, daemon, tmp_path):
    away = f"qemu+unix:///system?socket={tmp_path}/nothing"
    it = daemon("serial, vsock, tcp", f'serial {{ uri = "{away}"; }} vsock {{ key_file = "{tmp_path}/late"; }} '
                'tcp { @key@ address = "0.0.0.0"; }', args=["-w"])
    client = wire.FakeClient(stage.guest(1), wire.read_key(stage.key))
    assert client.tcp(stage.host.ip, wire.STATUS, "vm1").code == wire.SUCCESS
    it.wait_log("can't start: no connection to libvirt.*serial|serial.*can't start: no connection")
    it.wait_log("vsock.*can't start|can't start.*vsock")
    programs.write_key(tmp_path / "late")
    it.wait_log("listening on vsock")


def test_several_at_once(stage, qemu, daemon):
    line = qemu("vm1")
    daemon("multicast, tcp, vsock, serial",
           'multicast { @key@ interface = "eth0"; } vsock { @key@ } tcp { @key@ address = "0.0.0.0"; } ' + SERIAL,
           [Domain("vm1", devices=serial_device(line.path))])
    client = wire.FakeClient(stage.guest(1), wire.read_key(stage.key))
    assert client.tcp(stage.host.ip, wire.STATUS, "vm1").code == wire.SUCCESS
    assert client.multicast(wire.STATUS, "vm1").code == wire.SUCCESS
    assert line.accept().ask(wire.STATUS, "vm1") == wire.SUCCESS
