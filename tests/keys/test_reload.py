# SPDX-License-Identifier: GPL-2.0-or-later
"""SIGHUP: keys, groups and listeners change while the daemon serves; what can't be is refused as a whole."""

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
