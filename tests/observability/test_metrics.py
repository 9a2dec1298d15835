# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics, --status and SIGUSR1: they say what was sent, and whoever reads them delays nobody."""

import contextlib
import re
import signal
import socket
import stat
import subprocess
import threading

import pytest

from conftest import VIRT, VIRTD, XVM
from lab import metrics, net, programs, wire
from lab.metrics import PORT

PAGE = programs.REPOSITORY / "docs" / "metrics.md"


@contextlib.contextmanager
def daemon(setup, endpoint=f"127.0.0.1:{PORT}", options="", pidfile=None, **kw):
    """Our fence_virtd with metrics; ended with exit code 0."""
    setup.write(options=f'metrics = "{endpoint}"; {options}', **kw)
    it = programs.Daemon(setup.stage.host, setup.file, program=VIRTD, ready="tcp", wait=60, pidfile=pidfile)
    try:
        it.wait_log(r": serving| serving version", timeout=60)
        yield it
    finally:
        code = it.stop()
    assert code == 0, it.log


def until(setup, key, value):
    """Waits until a metric has the value: records are written after the answer."""
    return net.wait_until(lambda: (lambda all_of: all_of if all_of.get(key) == value else None)(metrics.scrape(setup.stage.host)), 60)


def requests(transport, action, result):
    return f'fence_virtd_requests_total{{action="{action}",result="{result}",transport="{transport}"}}'


def tcp(setup, *args):
    return programs.run_agent(setup.stage.guest, "-T", setup.stage.host.ip, "-k", setup.key, "-t", 20, *args,
                              program=VIRT)


def test_what_was_sent_is_counted(setup, stage):
    groups = 'groups { group { ip = "%s"; uuid = "vm1"; uuid = "vm2"; } }' % stage.guest.ip
    with daemon(setup, groups=groups, options=f'audit_log = "{setup.directory}/audit";') as it:
        before = until(setup, 'fence_virtd_listener_up{listener="multicast"}', 1)
        before = until(setup, 'fence_virtd_listener_up{listener="tcp"}', 1)
        assert not [key for key in before if key.startswith("fence_virtd_requests_total")]
        assert before[f'fence_virtd_libvirt_up{{uri="{setup.uri}"}}'] == 1
        until(setup, f'fence_virtd_domains_running{{uri="{setup.uri}"}}', 2)
        for _ in range(3):
            assert tcp(setup, "-o", "status", "-H", "vm1").rc == 0
        assert tcp(setup, "-o", "off", "-H", "vm1").rc == 0
        assert tcp(setup, "-o", "status", "-H", "vm1").rc == 2
        assert tcp(setup, "-o", "off", "-H", "vm3").rc == 3
        assert programs.run_agent(stage.guest, "-k", setup.key, "-t", 20, "-r", 5, "-o", "off", "-H", "vm2",
                                  program=XVM).rc == 0
        # A wrong key, twice.
        client = wire.FakeClient(stage.guest, b"another key, and long enough")
        for _ in range(2):
            client.tcp(stage.host.ip, wire.STATUS, b"vm1")
        until(setup, requests("multicast", "off", "success"), 1)
        seen = until(setup, f'fence_virtd_domains_running{{uri="{setup.uri}"}}', 0)
        assert seen[requests("tcp", "status", "success")] == 3
        assert seen[requests("tcp", "status", "off")] == 1
        assert seen[requests("tcp", "off", "success")] == 1
        assert seen[requests("tcp", "off", "denied")] == 1
        assert sum(value for key, value in seen.items() if key.startswith("fence_virtd_requests_total")) == 7
        dropped = {key: value for key, value in seen.items()
                   if key.startswith("fence_virtd_drops_total") and 'transport="tcp"' in key}
        assert list(dropped.values()) == [2], dropped
        assert seen['fence_virtd_stage_seconds_count{action="off",stage="done"}'] == 3
        assert seen['fence_virtd_stage_seconds_bucket{action="off",le="+Inf",stage="done"}'] == 3
        assert seen["fence_virtd_requests_in_flight"] == seen["fence_virtd_requests_waiting"] == 0
        assert seen["fence_virtd_remembered_packets"] >= 7 and seen["fence_virtd_remembered_on_disk"] == 1
        # What a peer chose is nowhere.
        text = metrics.get(setup.stage.host)[1]
        assert not [word for word in ("vm1", "vm2", "vm3", stage.guest.ip) if word in text.replace(setup.uri, "")]
        # For people the same.
        status = setup.run("--status", "-f", setup.file)
        assert status.rc == 0 and status.err == ""
        assert "listener multicast: serves\n" in status.out
        assert f"libvirt {setup.uri}: connected, 0 domains running\n" in status.out
        assert "requests: 7 - " in status.out and "status success by tcp 3" in status.out
        assert re.search(r"packets remembered: \d+, kept on disk\n", status.out)
        it.send_signal(signal.SIGUSR1)
        line = it.wait_log(r"SIGUSR1: fence_virtd .*")[0]
        assert "; requests: 7 - " in line and line.endswith(", kept on disk")
    # The page names every metric, and no other.
    families = {re.sub(r"\{.*|_(bucket|sum|count)\b.*", "", key) for key in seen}
    # Those of other backends show only where they are in use.
    lines = [line for line in PAGE.read_text().splitlines() if not re.search(r"\| backend (cpg|agent): ", line)]
    named = set(re.findall(r"(?m)^\| `(fence_virtd_\w+)`", "\n".join(lines)))
    # This daemon asks no other host (`peers = "none"`), so it counts none.
    named = {name for name in named if not name.startswith("fence_virtd_peer_")}
    assert families == named


def test_a_reload_changes_the_listeners(setup):
    with daemon(setup) as it:
        until(setup, 'fence_virtd_listener_up{listener="multicast"}', 1)
        setup.write(options=f'metrics = "127.0.0.1:{PORT}";', listener="tcp")
        it.send_signal(signal.SIGHUP)
        it.wait_log("the new configuration is in force", timeout=60)
        seen = metrics.scrape(setup.stage.host)
        assert 'fence_virtd_listener_up{listener="multicast"}' not in seen
        assert seen['fence_virtd_listener_up{listener="tcp"}'] == 1


def test_unix_socket(setup):
    path = setup.directory / "metrics"
    # What a killed daemon left behind.
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with daemon(setup, endpoint=f"unix:{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert metrics.scrape(setup.stage.host, str(path))["fence_virtd_remembered_on_disk"] == 1
        assert "listener tcp: " in setup.run("--status", "-f", setup.file).out
    assert not path.exists()
    # What is no socket is left alone, and the daemon serves without.
    path.write_text("x")
    with daemon(setup, endpoint=f"unix:{path}") as it:
        assert re.search("no metrics at unix:.*no socket", it.log)
        assert tcp(setup, "-o", "status", "-H", "vm1").rc == 0
    assert path.read_text() == "x"


def test_a_hostile_reader(setup):
    """Silence, junk, floods, floods that never end: fencing goes on, and readers are served when they are gone."""
    with daemon(setup) as it:
        for request, status in [(b"POST /metrics HTTP/1.1\r\n\r\n", "405"), (b"GET / HTTP/1.0\r\n\r\n", "404"),
                                (b"\0" * 5000, "400"), (b"GET /metrics HTTP/9.9\r\n\r\n", "400")]:
            with metrics.connect(setup.stage.host) as junk:
                junk.sendall(request[:4096])
                assert junk.recv(65536).startswith(f"HTTP/1.0 {status} ".encode())
        silent = [metrics.connect(setup.stage.host) for _ in range(100)]
        over, refused = threading.Event(), []

        def flood():
            while not over.is_set():
                try:
                    with metrics.connect(setup.stage.host) as it:
                        it.settimeout(0.05)
                        it.sendall(b"GET /metrics HTTP/1.0\r\n" + b"X: y\r\n" * 50)
                        it.recv(1)
                except OSError as e:
                    refused.append(e)

        floods = [threading.Thread(target=flood) for _ in range(4)]
        for thread in floods:
            thread.start()
        try:
            for _ in range(5):
                assert tcp(setup, "-o", "status", "-H", "vm2").rc == 0
            assert tcp(setup, "-o", "off", "-H", "vm1").rc == 0
            # Few of them got further than the kernel's queue.
            assert it.descriptors() < 100
        finally:
            over.set()
            for thread in floods:
                thread.join()
            for one in silent:
                one.close()
        net.wait_until(lambda: answers(setup), 60)
        assert metrics.scrape(setup.stage.host)[requests("tcp", "off", "success")] == 1


def answers(setup):
    with contextlib.suppress(OSError, AssertionError, ValueError):
        return metrics.get(setup.stage.host)[0].endswith("200 OK")


@pytest.mark.parametrize("address", ["0.0.0.0:9229", "192.0.2.1:9229", "[::]:9229", "9229", "127.0.0.1", "127.0.0.1:0",
                                     "unix:relative", "unix:/" + "x" * 107, "localhost:9229"])
def test_addresses_that_others_reach_are_refused(setup, address):
    setup.write(options=f'metrics = "{address}";')
    rc, found = setup.check()
    [it] = [it for it in found.values() if it["result"] == "failed"]
    assert rc == 1 and it["check"] == "configuration" and "metrics" in it["text"]
    assert "loopback" in it["next"]


def test_status_without_a_daemon(setup):
    setup.write()
    result = setup.run("--status", "-f", setup.file)
    assert result.rc == 1 and 'metrics = "127.0.0.1:9229"' in result.err and "USR1" in result.err
    setup.write(options=f'metrics = "127.0.0.1:{PORT}";')
    result = setup.run("--status", "-f", setup.file)
    assert result.rc == 1 and "no daemon answers" in result.err
    result = setup.run("--status", "-f", setup.directory / "none")
    assert result.rc == 1 and "can't read" in result.err


def test_a_socket_whose_program_accepts_nothing_costs_the_metrics_alone(setup):
    path = setup.directory / "metrics"
    deaf = socket.socket(socket.AF_UNIX)
    deaf.bind(str(path))
    deaf.listen(0)
    waiting = []
    with contextlib.suppress(BlockingIOError):
        while True:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect(str(path))
    try:
        with daemon(setup, endpoint=f"unix:{path}") as it:
            it.wait_log("no metrics at .*another program has it, and takes no connection")
            assert tcp(setup, "-o", "status", "-H", "vm1").rc == 0
            asked = setup.run("--status", "-f", setup.file)
            assert asked.rc == 1 and "does not answer within 5 s" in asked.err, asked
            assert setup.run("--check", "-f", setup.file).rc is not None
    finally:
        for it in [deaf, *waiting]:
            it.close()


@contextlib.contextmanager
def disk(path):
    """A file system of its own: disk(options) mounts it anew with other options."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def test_a_read_only_disk_costs_records_and_no_fence(setup):
    """At the start, and later: `audit_log`, `state_dir` and the pid file are there."""
    place = setup.directory / "var"
    audit = place / "audit"
    options = f'audit_log = "{audit}"; state_dir = "{place}/state";'
    with disk(place) as remount:
        remount("ro")
        with daemon(setup, options=options, pidfile=place / "pid") as it:
            it.wait_log(f"can't open the audit file: Read-only file system.*{audit}|{audit}.*can't open the audit file: Read-only")
            it.wait_log("can't write the pid file .*Read-only file system.*goes on without it")
            it.wait_log("remembered in memory alone.*Read-only|Read-only.*remembered in memory alone")
            assert tcp(setup, "-o", "status", "-H", "vm1").rc == 0
            until(setup, "fence_virtd_audit_records_missing_total", 1)
            assert metrics.scrape(setup.stage.host)["fence_virtd_audit_log_up"] == 0
            assert "audit_log: CAN'T BE WRITTEN, 1 record in the log alone" in setup.run("--status", "-f", setup.file).out
            it.wait_log("target=.?audit|audit.*status vm1")
            assert len(re.findall("can't open the audit file", it.log)) == 1, "each cause is logged once"
            checked = setup.run("--check", "-f", setup.file)
            assert checked.rc == 1
            assert f"failed   audit_log {audit}: is on a read-only file system: records are in the daemon's log alone" in checked.out
            assert f"failed   state_dir {place}/state: is on a read-only file system" in checked.out
            remount("rw")
            # Nobody asks for it.
            until(setup, "fence_virtd_audit_log_up", 1)
            it.wait_log("the audit file takes records again; 1 are in the log alone")
            assert tcp(setup, "-o", "status", "-H", "vm2").rc == 0
            assert [record["target"] for record in net.wait_until(lambda: programs.audit_records(audit))] == ["vm2"]
