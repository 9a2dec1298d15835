# SPDX-License-Identifier: GPL-2.0-or-later
"""A packet that was recorded is worth nothing, not even after the daemon died and was started again."""

import fcntl
import itertools
import os
import pathlib
import signal
import subprocess
import threading

import pytest

from lab import loads, programs, testdriver, wire
from lab.net import wait_until


@pytest.fixture
def client(stage):
    return wire.FakeClient(stage.guest(1), wire.read_key(stage.key("host")))


def killed(daemon):
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL


def written(daemon, packets):
    """So many packets are in the file; they get there within a millisecond, on a machine that has one to spare."""
    file = daemon.state / "packets"
    wait_until(lambda: file.stat().st_size >= 32 + packets * 16)
    return file


def is_on(client, stage, name="vm1"):
    return client.tcp(stage.host.ip, wire.STATUS, name).code == wire.SUCCESS


def test_a_recorded_off_after_a_kill(stage, daemon, client):
    """The guest's packet is recorded, the guest is fenced and comes up again; then the daemon is killed."""
    host = daemon()
    packet = client.packet(wire.OFF, "vm1")
    assert client.multicast(wire.OFF, packet=packet).code == wire.SUCCESS
    written(host, 1)
    killed(host)
    # The domain is on again: the test driver begins anew with each daemon.
    host = daemon()
    assert is_on(client, stage)
    assert client.multicast(wire.OFF, packet=packet, timeout=2).kind == "silence"
    host.wait_log("replay.*multicast|multicast.*replay")
    # Nor does it help to bring it by another way.
    assert client.tcp(stage.host.ip, wire.OFF, packet=packet).kind == "closed"
    host.wait_log("replay.*tcp|tcp.*replay")
    assert is_on(client, stage)
    # Once more, after an orderly end.
    assert host.stop() == 0
    host = daemon()
    assert client.tcp(stage.host.ip, wire.OFF, packet=packet).kind == "closed"
    assert is_on(client, stage)
    for path, mode in ((host.state, 0o700), (host.state / "packets", 0o600)):
        assert path.stat().st_mode & 0o777 == mode


def test_without_a_directory_it_would_be_carried_out(stage, daemon, client):
    """What `state_dir = "none"` means; and that the case above can fail."""
    options = 'state_dir = "none";'
    host = daemon(options=options)
    packet = client.packet(wire.OFF, "vm1", address=None)
    assert client.tcp(stage.host.ip, wire.OFF, packet=packet).code == wire.SUCCESS
    killed(host)
    host = daemon(options=options)
    host.wait_log("in memory alone")
    assert client.tcp(stage.host.ip, wire.OFF, packet=packet).code == wire.SUCCESS
    assert not host.state.exists()


def test_what_a_crash_left_of_the_file(stage, daemon, client):
    """Half a record, and zeros as file systems leave them: said, and no packet before them is forgotten."""
    host = daemon()
    packets = [client.packet(wire.STATUS, "vm1", address=None) for _ in range(5)]
    for packet in packets:
        assert client.tcp(stage.host.ip, wire.STATUS, packet=packet).code == wire.SUCCESS
    file = written(host, 5)
    killed(host)
    with file.open("ab") as f:
        f.write(bytes(16 * 3) + b"half")
    host = daemon()
    host.wait_log("WARN.*packets was damaged.*3 records and 4 bytes")
    for packet in packets:
        assert client.tcp(stage.host.ip, wire.STATUS, packet=packet).kind == "closed"
    later = client.packet(wire.STATUS, "vm1", address=None)
    assert client.tcp(stage.host.ip, wire.STATUS, packet=later).code == wire.SUCCESS
    killed(host)
    file.write_bytes(b"nothing of ours")
    host = daemon()
    host.wait_log("WARN.*has no whole header")
    assert is_on(client, stage)


def test_a_directory_that_cannot_be_used_is_no_reason_not_to_fence(stage, daemon, client, tmp_path):
    (tmp_path / "file").write_text("")
    host = daemon(options=f'state_dir = "{tmp_path}/file/state";')
    host.wait_log("WARN.*in memory alone.*state_dir in the fence_virtd block names another directory")
    packet = client.packet(wire.STATUS, "vm1", address=None)
    assert client.tcp(stage.host.ip, wire.STATUS, packet=packet).code == wire.SUCCESS
    assert client.tcp(stage.host.ip, wire.STATUS, packet=packet).kind == "closed"


def test_two_daemons_with_one_directory(stage, daemon, client, tmp_path):
    """Both serve; the second says what it lacks and how to put it right, and so does its check for as long as it runs so."""
    first = daemon()
    uri = testdriver.write(tmp_path / "other.xml", ["vm2"])
    config = programs.write_config(tmp_path / "other.conf", f"""
        fence_virtd {{ listener = "tcp"; }}
        listeners {{ tcp {{ key_file = "{stage.key('host')}"; address = "0.0.0.0"; port = "1300"; }} }}
        backends {{ libvirt {{ uri = "{uri}"; }} }}""")
    with programs.Daemon(stage.host, config, program=str(programs.OURS_DIR / "fence_virtd"), ready="tcp", port=1300,
                         env={"STATE_DIRECTORY": str(first.state)}) as second:
        second.wait_log("WARN.*another fence_virtd uses it. If that one has ended since, restart this one")
        other = wire.FakeClient(stage.guest(1), wire.read_key(stage.key("host")), port=1300)
        assert other.tcp(stage.host.ip, wire.STATUS, "vm2").code == wire.SUCCESS
        assert is_on(client, stage)
        says = f"failed   daemon pid {second.pid}: the running fence_virtd uses no state_dir, since"
        assert f"{says} pid {first.pid} uses it" in check(stage, config, first.state)
        first.stop()
        assert f"{says} another fence_virtd used it then" in check(stage, config, first.state)


def check(stage, config, state):
    """What `--check` prints."""
    return stage.host.run([programs.OURS_DIR / "fence_virtd", "--check", "-f", config],
                          env={**os.environ, "STATE_DIRECTORY": str(state)}).stdout


def test_a_daemon_that_is_ending_is_waited_for(stage, daemon, client):
    """The new one does not go on without the directory because the old one still has it for a moment."""
    first = daemon()
    state = first.state
    with open(state / "lock", "r+b") as lock:
        first.stop()
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(1, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        second = daemon()
    assert "in memory alone" not in second.log and is_on(client, stage)



def unread(node, port=wire.PORT):
    """Bytes that wait in the UDP sockets of that port."""
    with node.entered():
        rows = pathlib.Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/net/udp").read_text().splitlines()[1:]
    columns = (row.split() for row in rows)
    return sum(int(it[4].split(":")[1], 16) for it in columns if int(it[1].split(":")[1], 16) == port)


def flood(client, host, count, burst=2000):
    """Sends so many valid packets, no two of which are equal, and no faster than the host reads them."""
    packets = loads.unequal(client.packet(wire.STATUS, "red1"), client.key, requests=False)
    with wire.multicast_sender(client.node) as s:
        for number, packet in enumerate(itertools.islice(packets, count)):
            s.send(packet)
            if number % burst == burst - 1:
                wait_until(lambda: unread(host) == 0)


def test_a_flood_with_another_key(stage, daemon):
    """Red sends more than a million valid packets of its own: more than the memory has for all keys. Blue's recorded off is not
    carried out again, though blue proves itself to whoever calls back; nor when blue's key was away for a while, nor after a kill."""
    def groups(*names):
        return "groups {" + "".join(f'group {{ name = "{it}"; uuid = "{it}1"; key_file = "{stage.key(it)}"; }}' for it in names) + "}"

    def is_refused():
        assert blue.multicast(wire.OFF, packet=recorded, timeout=2).kind == "silence"
        host.wait_log("replay")
        return is_on(blue, stage, "blue1")

    def reload(old, new):
        since = len(host.lines)
        programs.write_config(host.config, host.config.read_text().replace(old, new))
        host.send_signal(signal.SIGHUP)
        host.wait_log("the new configuration is in force", since=since)

    settings = {"groups": groups("red", "blue"), "domains": ("red1", "blue1")}
    host = daemon(**settings)
    red = wire.FakeClient(stage.guest(2), wire.read_key(stage.key("red")))
    blue = wire.FakeClient(stage.guest(1), wire.read_key(stage.key("blue")))
    recorded = blue.packet(wire.OFF, "blue1")
    assert blue.multicast(wire.OFF, packet=recorded).code == wire.SUCCESS
    assert blue.multicast(wire.ON, "blue1").code == wire.SUCCESS
    flood(red, stage.host, 1_050_000)
    assert red.multicast(wire.STATUS, "red1").code == wire.SUCCESS
    # Neither generation of all keys has it any more.
    assert all((host.state / it).stat().st_size < 9_000_000 for it in ("packets", "packets.old"))
    assert is_refused()
    reload(groups("red", "blue"), groups("red"))
    assert blue.multicast(wire.STATUS, "blue1", timeout=1).kind == "silence"
    reload(groups("red"), groups("red", "blue"))
    assert is_refused()
    killed(host)
    host = daemon(**settings)
    assert is_refused()
    assert host.stop() == 0
    host = daemon(**settings)
    assert is_refused()


def test_a_disk_with_little_room(stage, daemon, tmp_path):
    """The packets of each key take no room that other files need. It is a warning, and the memory goes on."""
    state = tmp_path / "small"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=15m,mode=700", "small", str(state)], check=True)
    try:
        host = daemon(domains=("vm1", "red1"), env={"STATE_DIRECTORY": str(state)})
        client = wire.FakeClient(stage.guest(1), wire.read_key(stage.key("host")))
        packet = client.packet(wire.OFF, "vm1")
        assert client.multicast(wire.OFF, packet=packet).code == wire.SUCCESS
        assert client.multicast(wire.ON, "vm1").code == wire.SUCCESS
        flood(client, stage.host, 260_000)
        host.wait_log(r"the packets of each key can't be written to the state directory: the disk has only \d+ MB left")
        assert not list(state.glob("packets.kept*"))
        assert "can't be written down" not in host.log and "accepted packets can't be written" not in host.log
        killed(host)
        host = daemon(domains=("vm1", "red1"), env={"STATE_DIRECTORY": str(state)})
        assert client.multicast(wire.OFF, packet=packet, timeout=2).kind == "silence"
        assert is_on(client, stage)
        assert host.stop() == 0
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)
