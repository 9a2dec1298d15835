# SPDX-License-Identifier: GPL-2.0-or-later
"""A request that never ran says why in the audit file; and nobody waits for what becomes of file and log."""

import contextlib
import datetime
import json
import os
import shlex
import signal
import socket
import stat
import time
import tty

import pytest
from lab import programs, wire
from lab.net import wait_until

from lab.rig import AGENTS, Asker, Gun, answers, slow_to_die, without_what_came_first

pytestmark = pytest.mark.ours

FIELDS = {
    "time": float, "id": int, "transport": str, "peer": str, "source_domain": (str, type(None)),
    "key": (str, type(None)), "hash": str, "action": str, "target": str, "domain": (str, type(None)), "uuid": (str, type(None)),
    "decision": str, "result": (str, type(None)), "reason": (str, type(None)), "delivered": bool,
    "connected_ms": (float, type(None)), "resolved_ms": (float, type(None)), "turn_ms": (float, type(None)),
    "proved_ms": (float, type(None)), "done_ms": (float, type(None)),
}


def well_formed(record):
    """Every field is there, none else, of the right kind, and the stages are in order."""
    assert set(record) == set(FIELDS), record
    for name, kind in FIELDS.items():
        assert isinstance(record[name], kind), (name, record)
    stages = [record[name] for name in FIELDS if name.endswith("_ms") and record[name] is not None]
    assert stages == sorted(stages), record
    return record


def not_run(record, reason, **fields):
    """A record of a request that never ran, for this reason."""
    well_formed(record)
    assert reason in (record["reason"] or ""), record
    expected = {"decision": "not run", "result": None, "delivered": False, "done_ms": None, **fields}
    assert {name: record[name] for name in expected} == expected, record


@pytest.fixture
def host(start_host):
    """A host that is asked over TCP: no source is known there, so all conflict with all."""
    return start_host(listener="tcp")


@pytest.fixture
def victim(site):
    return site.hypervisor.domain("victim")


@pytest.fixture
def other(site):
    return site.hypervisor.domain("other")


@pytest.mark.parametrize("kind, transport", [("card", "multicast"), ("line", "serial")])
def test_its_source_was_fenced(site, start_host, machines, kind, transport):
    pair = machines(kind)
    host = start_host(listener=transport)
    if kind == "card":
        for machine in pair:
            host.wait_recognised(machine, AGENTS[0])
    before = len(host.records())
    gun = Gun()
    shots = [pair[i].shoot("reference", pair[1 - i], "-o", "off", gun=gun, transport=transport) for i in (0, 1)]
    gun.fire()
    for shot in shots:
        shot.finish()
    ran, dropped = sorted(host.wait_records(2, since=before), key=lambda it: it["decision"] != "run")
    assert well_formed(ran)["result"] == "success"
    dead, alive = pair if pair[0].qemu.ended() else reversed(pair)
    # On a serial line the end of the line may be seen before the look that shows the domain off.
    reason = "the source of the request was fenced after the request arrived" if kind == "card" else ""
    not_run(dropped, reason, transport=transport, action="off", source_domain=dead.domain.uuid,
            uuid=alive.domain.uuid, domain=alive.name, proved_ms=None)
    assert without_what_came_first(dropped["reason"]) in ("the source of the request was fenced after the request arrived", "the client hung up before the turn of the request came")


def test_it_was_superseded(site, start_host, machines, victim):
    """A newer request on the same serial line, while the older waits for its turn."""
    pair = machines("line")
    host = start_host(listener="serial")
    lines = []
    for machine in pair:
        machine.line.wait_connected()
        lines.append(os.open(machine.line.device, os.O_RDWR | os.O_NOCTTY))
        tty.setraw(lines[-1])       # an agent was here before
    with slow_to_die(victim) as wait_killed:
        # The second may shoot the source of the first: it waits.
        os.write(lines[0], wire.SerialRequest(wire.OFF, "victim", seqno=1).build())
        wait_killed()
        os.write(lines[1], wire.SerialRequest(wire.OFF, pair[0].name, seqno=2).build())
        host.daemon.wait_log(r"heard id=2 ")
        host.daemon.wait_log(r"resolved id=2 ")
        os.write(lines[1], wire.SerialRequest(wire.STATUS, pair[0].name, seqno=3).build())
        first, newer = host.wait_records(2)
        not_run(first, "superseded by a newer request of the same client", id=2, target=pair[0].name,
                source_domain=pair[1].domain.uuid)
        assert (newer["action"], newer["result"], newer["delivered"]) == ("status", "success", True)
    assert host.wait_records(3)[2]["result"] == "success"
    assert not pair[0].qemu.ended()
    for line in lines:
        os.close(line)


@pytest.mark.parametrize("how, reason", [
    ("silent", "the client did not prove that it holds the key: nothing came in time"),
    ("gone", "the client did not prove that it holds the key: it hung up"),
    ("wrong", ""),
])
def test_its_proof_failed(host, victim, how, reason):
    qemu = victim.process()
    asker = Asker(host, "off", "victim").wait_asked()
    if how == "gone":
        asker.close()
    if how == "wrong":
        asker.prove(wrong=True)
    (record,) = host.wait_records(1)
    not_run(record, reason, transport="tcp", action="off", target="victim", uuid=victim.uuid, proved_ms=None)
    assert how != "wrong" or record["reason"], record
    assert ("or another host answered it first, which is normal" in record["reason"]) == (how == "gone"), record
    assert not qemu.ended()


def test_it_hung_up_before_its_turn(host, victim, other):
    qemu = other.process()
    with slow_to_die(victim) as wait_killed:
        first = Asker(host, "off", "victim").wait_asked().prove()
        wait_killed()
        second = Asker(host, "off", "other")
        host.daemon.wait_log(r"resolved id=2 ")
        second.close()
        (record,) = host.wait_records(1)
        not_run(record, "the client hung up before the turn of the request came", id=2, target="other")
    assert first.answer() == b"\0"
    assert not qemu.ended()


def test_the_queue_is_full(host, victim, other):
    """64 requests for one domain; one more is told so."""
    with slow_to_die(other) as wait_killed:
        # The others may shoot its source: they wait.
        first = Asker(host, "off", "other").wait_asked().prove()
        wait_killed()
        askers = [Asker(host, "off", "victim") for _ in range(64)]
        wait_until(lambda: host.daemon.log.count("joins the same work") == 63)
        assert Asker(host, "off", "victim").whole() == bytes([wire.FAILURE])
        (record,) = host.wait_records(1)
    well_formed(record)
    assert record["reason"] == "queue full: 64 requests for this domain are under way"
    assert (record["result"], record["delivered"]) == ("failure", True)
    assert answers([first, *askers]) == [b"\0"] * 65
    assert len(host.wait_records(66)) == 66


def test_its_deadline_passed_before_its_turn(site, host, victim, other):
    """libvirt hangs in the middle of the request before it; what waited is not carried out, then or later."""
    untouched = other.process()
    with slow_to_die(victim) as wait_killed:
        first = Asker(host, "off", "victim").wait_asked().prove()
        wait_killed()
        second = Asker(host, "off", "other")
        host.daemon.wait_log(r"resolved id=2 ")
        site.hypervisor.freeze()
    (record,) = host.wait_records(1, which=lambda it: it["id"] == 2)
    # An off that hangs holds up others until its request is over, and that is a moment before the deadline of the second one, or after it.
    reasons = (f"the deadline of the request passed before its turn came: off of {victim.uuid} (request 1) comes first",
               "the client did not prove that it holds the key")
    reason = next((it for it in reasons if it in record["reason"]), reasons[0])
    not_run(record, reason, target="other", uuid=other.uuid, proved_ms=None)
    assert 25_000 < record["turn_ms"] < 35_000, record
    (ran,) = host.wait_records(1, which=lambda it: it["id"] == 1)
    well_formed(ran)
    assert ran["result"] == "failure" and ran["reason"], ran
    site.hypervisor.thaw()
    site.hypervisor.virsh("list")
    assert first.answer() == bytes([wire.FAILURE])
    # Whose turn came has a challenge to answer, and nothing else.
    assert reason != reasons[0] or second.answer() == b""
    # The daemon works again, as soon as it has tried to connect again, and nothing comes late.
    wait_until(lambda: Asker(host, "status", "other").whole() == b"\0")
    assert not untouched.ended(1)


def test_who_may_read_the_file_and_where_it_goes_on(site, host, victim):
    assert stat.S_IMODE(host.audit_file.stat().st_mode) == 0o640
    assert Asker(host, "status", "victim").whole() == b"\0"
    host.wait_records(1)
    moved = host.audit_file.with_suffix(".1")
    host.audit_file.rename(moved)
    assert Asker(host, "status", "victim").whole() == b"\0"
    wait_until(lambda: len(moved.read_text().splitlines()) == 2)
    host.daemon.send_signal(signal.SIGHUP)
    wait_until(host.audit_file.exists)
    host.daemon.wait_log("audit file opened anew")
    assert stat.S_IMODE(host.audit_file.stat().st_mode) == 0o640
    assert Asker(host, "status", "victim").whole() == b"\0"
    assert [well_formed(it)["id"] for it in host.wait_records(1)] == [3]
    assert len(moved.read_text().splitlines()) == 2


def test_a_file_that_hangs_holds_up_nobody(start_host, victim, tmp_path):
    """A pipe that is full and that nobody reads, in place of a disk that hangs: fencing goes on, SIGHUP or not, and no
    record is lost or twice once it is read. (That the file keeps the order in which records are handed over is a unit
    case; a record is handed over when its client has the answer, so the next request's may be a moment earlier.)"""
    pipe = tmp_path / "host0" / "audit"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    full = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            full += os.write(reader, b"-" * 4096)
    host = start_host(listener="tcp")
    # More than the daemon has threads for what must not wait.
    count = 2 * os.cpu_count() + 8
    for number in range(count):
        assert Asker(host, "status", "victim").whole() == b"\0", number
        if number == count // 2:
            host.daemon.send_signal(signal.SIGHUP)
            host.daemon.wait_log("the new configuration is in force")
    text = b""

    def read():
        nonlocal text
        with contextlib.suppress(BlockingIOError):
            while True:
                text += os.read(reader, 65536)
        return text.count(b"\n") >= count

    wait_until(read)
    ids = [well_formed(json.loads(line))["id"] for line in text[full:].splitlines()]
    assert sorted(ids) == list(range(1, count + 1))
    host.daemon.wait_log("audit file opened anew")
    os.close(reader)


def test_a_log_that_nobody_reads_holds_up_nobody(start_host, victim, tmp_path):
    """Standard error is a pipe that is full: fencing goes on, and who reads it at last reads all of it."""
    host = start_host(listener="tcp")
    host.daemon.stop()
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    wrapper = tmp_path / "with-log"
    wrapper.write_text(f'#!/bin/sh\nexec {tmp_path / "host0" / "fence_virtd"} "$@" 2<>{pipe}\n')
    wrapper.chmod(0o755)
    host.daemon = programs.Daemon(host.node, host.daemon.config, program=str(wrapper), ready="tcp", debug=3)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(reader, b"-" * 4096)
    count = 2 * os.cpu_count() + 8
    for number in range(count):
        assert Asker(host, "status", "victim").whole() == b"\0", number
    text = b""

    def read():
        nonlocal text
        with contextlib.suppress(BlockingIOError):
            while True:
                text += os.read(reader, 65536)
        return f" audit: status victim: success id={count} ".encode() in text

    wait_until(read)
    assert b"lines are lost" not in text
    heard = [int(line.split(b" heard id=")[1].split()[0]) for line in text.splitlines() if b" heard id=" in line]
    assert heard == list(range(1, count + 1))
    os.close(reader)


class Journal:
    """A journald that reads only when it is told to, in the place of a daemon's own; it hangs to begin with."""

    def __init__(self, directory):
        self._path = directory / "socket"
        directory.mkdir()
        self.start()

    def start(self):
        """A new socket, in which there is room for nothing."""
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(self._path))
        full = False
        while not full:
            # One sender alone comes to its own limit first.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(BlockingIOError):
                sender.setblocking(False)
                full = True
                while True:
                    sender.sendto(b"", str(self._path))
                    full = False

    def end(self):
        """It is gone."""
        self._path.unlink()
        self._socket.close()

    def read(self):
        """The entries that came."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, files, _, _ = socket.recv_fds(self._socket, 1 << 20, 1)
                for it in files:
                    with open(it, "rb") as file:
                        file.seek(0)
                        data += file.read()
                if data:
                    yield self._fields(data)

    @staticmethod
    def _fields(data):
        fields = {}
        while data:
            name, _, data = data.partition(b"\n")
            end = 8 + int.from_bytes(data[:8], "little")
            assert data[end:end + 1] == b"\n", data
            assert name not in fields
            fields[name.decode()] = data[8:end].decode()
            data = data[end + 1:]
        return fields


def test_a_journal_that_hangs_holds_up_nobody(start_host, victim, tmp_path):
    """Under systemd, with a journald that takes nothing: fencing goes on, and it gets all of it when it is started anew or
    reads at last, the daemon's last words too."""
    host = start_host(listener="tcp")
    config = host.daemon.config
    host.daemon.stop()
    journal = Journal(tmp_path / "journal")
    place = "/run/systemd/journal"
    wrapper = tmp_path / "under-systemd"
    wrapper.write_text(f"""#!/bin/sh
mkdir -p {place}
exec unshare --mount --propagation=private sh -c 'mount --bind {shlex.quote(str(tmp_path / "journal"))} {place} && exec "$@"' \\
    sh {tmp_path / "host0" / "fence_virtd"} "$@"
""")
    wrapper.chmod(0o755)
    entries = []

    def came(message, start=0):
        entries.extend(journal.read())
        return [it for it in entries if it["MESSAGE"].startswith(message)]

    def fenced(count):
        """Requests, more than the daemon has threads for what must not wait."""
        for number in range(count):
            assert Asker(host, "status", "victim").whole() == b"\0", number

    count = 2 * os.cpu_count() + 8
    daemon = programs.Daemon(host.node, config, program=str(wrapper), ready="tcp", debug=3, env={"JOURNAL_STREAM": "1:1"})
    with daemon:
        fenced(count)
        journal.end()
        fenced(count)
        started_anew = time.time()
        journal.start()
        fenced(count)
        qemu = victim.process()
        assert Asker(host, "off", "victim").whole() == b"\0" and qemu.ended()
        wait_until(lambda: came("off victim: success"))
        (fence,) = came("off victim: success")
        # Too long for a datagram.
        long = "x" * 300_000
        text = config.read_text()
        config.write_text(text.replace(str(host.site.key), f"/{long}"))
        daemon.send_signal(signal.SIGHUP)
        wait_until(lambda: came("SIGHUP: the new configuration is refused"))
        config.write_text(text)
        (refused,) = came("SIGHUP: the new configuration is refused")
        assert long in refused["MESSAGE"]
        assert daemon.stop() == 0
        wait_until(lambda: came("SIGTERM: "))
    assert daemon.lines == []
    assert [int(it["F_ID"]) for it in came("heard")] == list(range(1, 3 * count + 2))
    assert "system calls limited" in came("sandbox: ")[0]["MESSAGE"]
    (record,) = host.wait_records(1, since=3 * count)
    assert fence.keys() == {
        "MESSAGE", "PRIORITY", "TARGET", "SYSLOG_IDENTIFIER", "SYSLOG_TIMESTAMP", "CODE_FILE", "CODE_LINE", "F_SOURCE",
        "F_SOURCE_UUID", *(f"F_{name.upper()}" for name in FIELDS.keys() - {"time", "source_domain", "delivered"})}
    same = ("transport", "peer", "hash", "key", "action", "target", "domain", "uuid", "decision", "result")
    assert [fence[f"F_{name.upper()}"] for name in same] == [record[name] for name in same]
    assert (fence["PRIORITY"], fence["TARGET"], fence["SYSLOG_IDENTIFIER"]) == ("5", "audit", "fence_virtd")
    # When it was logged, not when the journal took it.
    assert datetime.datetime.fromisoformat(came("heard")[0]["SYSLOG_TIMESTAMP"]).timestamp() < started_anew
    journal.end()
    host.daemon = programs.Daemon(host.node, config, ready="tcp")
