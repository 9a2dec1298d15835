# SPDX-License-Identifier: GPL-2.0-or-later
"""SIGHUP: keys, groups and listeners change while the daemon serves; what can't be is refused as a whole."""

import os
import re
import signal
import socket
import threading

import pytest

from lab import net, programs, wire

IN_FORCE = "the new configuration is in force"
REFUSED = "the new configuration is refused, and the old one stays"


@pytest.fixture
def reload():
    """reload(daemon, text=… or replace=(old, new), says=…): writes the file, sends SIGHUP, waits for what the log says."""

    def reload(daemon, *replace, text=None, says=IN_FORCE):
        if text is None:
            text = daemon.config.read_text()
            for old, new in replace:
                assert old in text, old
                text = text.replace(old, new)
        programs.write_config(daemon.config, text)
        since = len(daemon.lines)
        daemon.send_signal(signal.SIGHUP)
        daemon.wait_log(says, timeout=60, since=since)
        return since

    return reload


def status(way, key, **kw):
    return way(key, "-o", "status", "-H", "vm1", **kw).rc


def test_keys_rotate_without_a_restart_and_no_request_is_lost(stage, daemon, reload):
    host = daemon(keys=("old",))
    both = f'key_file = "{stage.key("new")}"; key_file = "{stage.key("old")}";'
    failed, asked, over = [], [], threading.Event()

    def ask_all_the_time():
        while not over.is_set():
            for way in (stage.multicast, stage.tcp):
                asked.append(way)
                # One transmission has to do: a daemon that is deaf for a moment is seen.
                rc = way("old", "-o", "status", "-H", "vm1", t=20).rc
                if rc != 0:
                    failed.append((way, rc))

    client = threading.Thread(target=ask_all_the_time)
    client.start()
    try:
        reload(host, (f'key_file = "{stage.key("old")}";', both))
        assert status(stage.multicast, "new", guest=2) == status(stage.tcp, "new", guest=2) == 0
        before = len(asked)
        assert net.wait_until(lambda: len(asked) > before + 2, 30)
    finally:
        over.set()
        client.join()
    assert not failed and asked
    reload(host, (both, f'key_file = "{stage.key("new")}";'))
    assert status(stage.multicast, "new") == status(stage.tcp, "new") == 0
    assert status(stage.tcp, "old", t=3) == 1
    host.wait_log("hash-mismatch")
    assert host.log.count("listening") == 2, "no socket was opened anew"


def test_the_same_file_with_another_key_in_it(stage, daemon, reload, tmp_path):
    path = programs.write_key(tmp_path / "host.key", b"the first of two keys")
    host = daemon()
    reload(host, (str(stage.key("host")), str(path)))
    assert status(stage.tcp, "host", t=3) == 1
    programs.write_key(path, stage.key("host").read_bytes())
    reload(host)
    assert status(stage.tcp, "host") == status(stage.multicast, "host") == 0


def test_groups(stage, daemon, reload):
    host = daemon()
    text = host.config.read_text()
    assert status(stage.tcp, "host") == 0
    reload(host, text=text + f'groups {{ group {{ ip = "{stage.guest(2).ip}"; uuid = "vm1"; }} }}\n')
    for way in (stage.tcp, stage.multicast):
        assert (status(way, "host", guest=1), status(way, "host", guest=2)) == (3, 0)
    reload(host, text=text)
    assert status(stage.tcp, "host") == 0


@pytest.mark.parametrize("what, old, new, says", [
    ("syntax", "listeners {", "listeners {{{", r"fence_virt\.conf:3:"),
    ("key", "host.key", "nobody.key", r"nobody\.key"),
    ("interface", 'interface = "eth0"', 'interface = "eth7"', r"eth7"),
    ("listener", 'listener = "multicast, tcp"', 'listener = "multicast, tpc"', r"tpc"),
])
def test_a_bad_file_is_refused_as_a_whole(stage, daemon, reload, what, old, new, says):
    host = daemon()
    good = host.config.read_text()
    since = reload(host, (old, new), ('address = "0.0.0.0"', 'address = "0.0.0.0"; port = "4000"'), says=REFUSED)
    host.wait_log(says, since=since)
    assert status(stage.tcp, "host") == status(stage.multicast, "host") == 0
    assert not host.bound("tcp", 4000)
    reload(host, text=good)
    assert status(stage.tcp, "host") == status(stage.multicast, "host") == 0


def test_a_listener_that_is_taken_away_closes_its_socket(stage, daemon, reload):
    """Also while a connection to it is open; so a reload may have the port again at once."""
    host = daemon()
    with stage.guest(1).socket() as idle:
        idle.connect((stage.host.ip, wire.PORT))
        text = host.config.read_text()
        reload(host, ('listener = "multicast, tcp"', 'listener = "multicast"'))
        with stage.guest(2).socket() as late, pytest.raises(ConnectionRefusedError):
            late.connect((stage.host.ip, wire.PORT))
        reload(host, text=text)
        assert status(stage.tcp, "host", guest=2) == 0


def test_a_port_that_is_taken(stage, daemon, reload):
    host = daemon()
    holder = stage.host.popen(["python3", "-c", "import socket; s = socket.create_server(('', 4000)); print(1, flush=True); s.accept()"],
                              stdout=programs.subprocess.PIPE)
    try:
        holder.stdout.readline()
        reload(host, ('address = "0.0.0.0"', 'address = "0.0.0.0"; port = "4000"'), says=REFUSED + ".*4000")
        assert status(stage.tcp, "host") == 0
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_listeners_come_move_and_go(stage, daemon, reload):
    host = daemon(listener="multicast", ready="udp")
    assert not host.bound("tcp")
    reload(host, ('listener = "multicast"', 'listener = "multicast, tcp"'))
    assert status(stage.tcp, "host") == 0
    reload(host, ('address = "0.0.0.0"', 'address = "0.0.0.0"; port = "4000"'))
    assert host.bound("tcp", 4000) and not host.bound("tcp")
    assert status(stage.multicast, "host") == 0
    reload(host, ('listener = "multicast, tcp"', 'listener = "tcp"'))
    assert not host.bound("udp")
    # The interface of a multicast listener that comes back.
    reload(host, ('listener = "tcp"', 'listener = "multicast"'))
    assert host.bound("udp") and not host.bound("tcp", 4000)
    assert status(stage.multicast, "host") == 0


def test_what_needs_a_restart_is_said_and_the_rest_is_taken(stage, daemon, reload):
    host = daemon()
    since = reload(host, ('negative_delay = "0.1"', 'negative_delay = "0.2"'), ('backend = "libvirt";', 'backend = "libvirt"; debug = "1";'),
                   ('uri = "', 'uri1 = "test:///default"; uri = "'))
    host.wait_log("the backends changed: that needs a restart", since=since)
    host.wait_log("fence_virtd block only the listeners", since=since)
    assert status(stage.multicast, "host") == 0


def test_a_listener_that_started_late_goes_on(stage, daemon, reload):
    """With -w: its own task opened the socket, and a reload neither opens it once more nor stumbles over it."""
    holder = stage.host.popen(["python3", "-c", "import socket; s = socket.create_server(('', 1229)); print(1, flush=True); s.accept()"],
                              stdout=programs.subprocess.PIPE)
    try:
        holder.stdout.readline()
        host = daemon("-w", ready="udp")
        host.wait_log("can't start: can't listen at .*1229", timeout=60)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    host.wait_log("listening on TCP", timeout=60)
    file = f'key_file = "{stage.key("host")}";'
    reload(host, (file, f'{file} key_file = "{stage.key("new")}";'))
    assert status(stage.tcp, "new") == status(stage.tcp, "host") == 0
    assert host.log.count("listening on TCP") == 1


def test_a_listener_that_waits_holds_up_no_key(stage, daemon, reload):
    """With -w: one listener can't start yet; keys change for the others, and for it when it can."""
    holder = stage.host.popen(["python3", "-c", "import socket; s = socket.create_server(('', 1229)); print(1, flush=True); s.accept()"],
                              stdout=programs.subprocess.PIPE)
    try:
        holder.stdout.readline()
        host = daemon("-w", keys=("old",), ready="udp")
        host.wait_log("can't start: can't listen at .*1229", timeout=60)
        reload(host, (str(stage.key("old")), str(stage.key("new"))))
        assert status(stage.multicast, "new") == 0
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    host.wait_log("listening on TCP", timeout=60)
    assert net.wait_until(lambda: status(stage.tcp, "new") == 0, 60)
    assert status(stage.tcp, "old", t=3) == 1


def test_a_signal_that_comes_before_the_start_is_over(stage, daemon, tmp_path):
    """The file may have changed since it was read: the signal counts as soon as it can."""
    hypervisor = tmp_path / "silent"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(hypervisor))
        silent.listen()
        host = daemon("-w", ready=None, uri=f"qemu+unix:///system?socket={hypervisor}")
        caught = lambda: int(re.search(r"SigCgt:\s*(\w+)", open(f"/proc/{host.pid}/status").read())[1], 16)   # noqa: E731
        assert net.wait_until(lambda: caught() & 1 << signal.SIGHUP - 1, 60)
        host.send_signal(signal.SIGHUP)
        host.wait_log("read anew as soon as the daemon serves", timeout=60)
    host.wait_log(IN_FORCE, timeout=60)


class Waiting:
    """A client whose `off vm1` by TCP has all behind it that comes before the host's challenge."""

    def __init__(self, stage, key, guest):
        self.key = wire.read_key(stage.key(key))
        client = wire.FakeClient(stage.guest(guest), self.key)
        sock = client.node.socket()
        sock.settimeout(15)
        sock.connect((stage.host.ip, wire.PORT))
        self.stream = wire.Stream(sock, 15)
        self.stream.send(client.packet(wire.OFF, "vm1", address=None))
        c1 = os.urandom(64)
        self.stream.send(c1)
        assert self.stream.recv(64) == wire.digest(wire.SHA256, self.key, c1)

    def answer(self):
        """The response byte, after the proof."""
        self.stream.send(wire.digest(wire.SHA256, self.key, self.stream.recv(64)))
        return self.stream.recv(1)[0]


@pytest.mark.parametrize("what, says", [
    ("key", "its key [0-9a-f]{4} was taken away"),
    ("group", "the source is in no group"),
    ("hash", "its packet has hash sha256, and the listener takes none below hmac-sha256"),
    ("listener", "the listener by which it came was closed or changed"),
])
def test_what_waits_is_asked_by_the_new_rules(stage, daemon, reload, what, says):
    """It has shown its key, and waits behind another request. That one does not prove itself, and ends after 2 s."""
    host = daemon(keys=("host", "old"))
    old = f'key_file = "{stage.key("old")}"; '
    first = Waiting(stage, "host", guest=2)
    first.stream.recv(64)  # Its turn: from now on it is silent.
    second = Waiting(stage, "old", guest=1)
    text = host.config.read_text()
    reload(host, text={
        "key": text.replace(old, ""),
        "group": text + f'groups {{ group {{ ip = "{stage.guest(2).ip}"; uuid = "vm1"; }} }}\n',
        "hash": text.replace(old, old + 'hash = "hmac-sha256"; '),
        "listener": text.replace('listener = "multicast, tcp"', 'listener = "multicast"'),
    }[what])
    assert second.answer() == 3
    [record] = host.audited(action="off", decision="denied")
    assert re.search(f"a reload forbade this request while it waited: {says}", record["reason"]), record
    host.wait_log(f"a reload forbade this request while it waited: {says}")
    if what == "listener":
        reload(host, text=text)
    assert stage.multicast("host", "-c", "hmac-sha256", "-o", "status", "-H", "vm1", guest=2).rc == 0, "vm1 was fenced"


def test_what_waits_and_is_still_allowed_runs(stage, daemon, reload):
    """The groups are others now, and its own has another place."""
    host = daemon(groups=f'groups {{ group {{ ip = "{stage.guest(1).ip}"; uuid = "vm1"; }} }}')
    first = Waiting(stage, "host", guest=1)
    first.stream.recv(64)
    second = Waiting(stage, "host", guest=1)
    reload(host, ("groups {", 'groups { group { ip = "10.9.9.9"; uuid = "vm9"; }'))
    assert second.answer() == 0
    assert len(host.audited(action="off", decision="run", result="success")) == 1


def test_an_address_that_the_own_socket_has_needs_a_restart(stage, daemon, reload):
    """The old socket is in the way of the new one, and the whole file is refused: its new key too."""
    host = daemon(keys=("old",))
    since = reload(host, ('address = "0.0.0.0"', f'address = "{stage.host.ip}"'),
                   (f'key_file = "{stage.key("old")}";', f'key_file = "{stage.key("new")}";'), says=REFUSED)
    host.wait_log("this daemon's own listener tcp holds the port: restart fence_virtd for this change", since=since)
    assert status(stage.tcp, "old") == 0
