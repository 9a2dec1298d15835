# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon as a process: options, signals, pid file, life in the background."""

import contextlib
import os
import signal
import time

import pytest

from compliance.support import VIRTD, differs, only
from lab import programs, wire
from lab.net import wait_until


@pytest.fixture(scope="module")
def config(lab, uri):
    return lab.config(uri)


def test_help(lab):
    r = programs.run_daemon(lab.host, "-h")
    assert r.rc == 0
    for letter in "Ffdclwp":
        assert f"-{letter}" in r.out


@differs("reference.md: fence_virtd options; a wrong option is no success (the reference prints its help and says 0)",
         about=VIRTD, reference=0, ours=1)
@pytest.mark.parametrize("args", [["-x"], ["-f"]])
def test_wrong_options(lab, args, expected):
    r = programs.run_daemon(lab.host, *args, timeout=5)
    assert r.rc == expected and r.err


@differs("reference.md: -l list modules (the reference prints none when its module path is not configured)",
         about=VIRTD, reference=False, ours=True)
def test_list_of_modules(lab, expected):
    r = programs.run_daemon(lab.host, "-l", timeout=5)
    assert r.rc == 0
    assert all(name in r.out for name in ("libvirt", "multicast", "tcp", "serial")) is expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_signals_end_it_cleanly(lab, config, number):
    daemon = programs.Daemon(lab.host, config)
    assert daemon.stop(number) == 0
    assert not daemon.pidfile.exists()


@only("ours", VIRTD, "leave.rs: the C libraries' destructors run beside threads that still use them, and so must not run")
class TestNoDestructorsAtTheEnd:
    """The dynamic linker tells which libraries it starts and which it ends."""

    @pytest.fixture
    def linker(self, lab):
        """(env, told): what the program needs in its environment, and the linker's lines about what it ended."""
        path = lab.file(".linker")

        def told():
            texts = [it.read_text() for it in path.parent.glob(f"{path.name}.*")]
            [text] = [text for text in texts if "calling init" in text and "/libvirt.so" in text]
            return [line for line in text.splitlines() if "calling fini" in line]
        return {"LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(path)}, told

    def test_after_a_signal(self, lab, config, linker):
        env, told = linker
        daemon = programs.Daemon(lab.host, config, env=env)
        assert lab.xvm("-o", "status", "-H", "on1").rc == 0
        assert daemon.stop(signal.SIGTERM) == 0
        assert told() == []

    @pytest.mark.parametrize("arg, code", [("-F", 1), ("--check", 1), ("-h", 0)])
    def test_of_other_ends(self, lab, linker, arg, code):
        """Two of them have started libvirt's threads, to find no hypervisor."""
        env, told = linker
        config = lab.config("test:///nonexistent/file.xml")
        r = programs.run_daemon(lab.host, arg, "-f", config, "-p", lab.file(".pid"), env=env)
        assert r.rc == code and (r.out or r.err), r
        assert told() == []


def test_it_ends_while_a_client_is_silent(lab, config):
    with programs.Daemon(lab.host, config) as daemon:
        client = wire.FakeClient(lab.guest, lab.key)
        with client.listening() as listener:
            listener.settimeout(1)
            # Its socket is bound before it has joined its group: what comes in between is lost.
            held = wait_until(lambda: called_back(client, listener))
            assert daemon.stop(signal.SIGTERM, timeout=15) == 0
            held.close()


def called_back(client, listener):
    """The call-back for a request that is sent now; none within a second."""
    client.send(client.packet(wire.OFF, "vm1"))
    with contextlib.suppress(TimeoutError):
        return listener.accept()[0]


def test_debug_level(lab, config):
    with programs.Daemon(lab.host, config, "-d", "5") as daemon:
        assert lab.xvm("-o", "status", "-H", "on1").rc == 0
        daemon.wait_log("on1")


def test_foreground_writes_its_pid(lab, config):
    with programs.Daemon(lab.host, config) as daemon:
        assert daemon.pidfile.read_text().strip() == str(daemon.pid)


def test_a_second_one_on_the_same_pid_file(lab, config):
    with programs.Daemon(lab.host, config) as first:
        second = programs.Daemon(lab.host, config, ready=None, pidfile=first.pidfile)
        assert second.wait_exit() == 1
        assert first.pidfile.read_text().strip() == str(first.pid)
        assert lab.xvm("-o", "status", "-H", "on1").rc == 0
        assert first.alive()


def test_a_stale_pid_file(lab, config):
    pidfile = lab.file(".pid")
    pidfile.write_text(f"{no_process()}\n")
    with programs.Daemon(lab.host, config, pidfile=pidfile) as daemon:
        assert pidfile.read_text().strip() == str(daemon.pid)


class TestBackground:
    """Without -F."""

    @pytest.fixture
    def background(self, lab, config):
        pidfile = lab.file(".pid")
        r = programs.run_daemon(lab.host, "-f", config, "-p", pidfile)
        assert r.rc == 0, r
        pid = wait_until(lambda: pid_in(pidfile))
        wait_until(lambda: programs.bound(pid, "udp", 1229))
        yield pid, pidfile
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"))

    def test_serves_and_stands_apart(self, lab, background):
        pid, _ = background
        assert lab.xvm("-o", "status", "-H", "on1").rc == 0
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        for fd in range(3):
            with contextlib.suppress(FileNotFoundError):
                assert "pipe" not in os.readlink(f"/proc/{pid}/fd/{fd}"), "holds nobody's pipe"
        session, terminal = stat(pid)[3:5]
        assert session != os.getsid(0) and terminal == 0

    def test_is_found_by_its_name(self, background):
        """pgrep and killall look at the one, ps and pgrep -f at the other."""
        pid, _ = background
        with open(f"/proc/{pid}/comm") as comm, open(f"/proc/{pid}/cmdline") as line:
            assert comm.read() == "fence_virtd\n"
            assert os.path.basename(line.read().split("\0")[0]) == "fence_virtd"

    def test_a_second_one(self, lab, config, background):
        pid, pidfile = background
        assert programs.run_daemon(lab.host, "-f", config, "-p", pidfile).rc == 1
        assert pid_in(pidfile) == pid and os.path.exists(f"/proc/{pid}")

    def test_sigterm_removes_the_pid_file(self, background):
        pid, pidfile = background
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
        assert not pidfile.exists()


def test_background_with_a_bad_config_says_so(lab):
    bad = programs.write_config(lab.file(".conf"), "fence_virtd { listener = }")
    r = programs.run_daemon(lab.host, "-f", bad, "-p", lab.file(".pid"), timeout=8)
    assert r.rc not in (0, None) and r.out + r.err


def test_wait_for_the_hypervisor(lab, uri):
    """-w: tries again instead of giving up."""
    path = uri.removeprefix("test://")
    later = f"{path}.later"
    daemon = programs.Daemon(lab.host, lab.config(f"test://{later}"), "-w", ready=None)
    try:
        time.sleep(1)
        assert daemon.alive()
        with open(path) as f, open(later, "w") as g:
            g.write(f.read())
        wait_until(lambda: daemon.bound("udp") and lab.xvm("-o", "status", "-H", "on1", t=3).rc == 0, 20, step=0.3)
    finally:
        daemon.stop()


@differs("reference.md, -w: retry instead of giving up; without -w the reference gives up, ours serves and reconnects "
         "(architecture.md, rule 7: lost connections come back by themselves)", about=VIRTD, reference=False, ours=None)
def test_without_the_hypervisor(lab, expected):
    """Ours may give up at the start or go on; what it must not do is answer as if all were well."""
    config = lab.config("test:///nonexistent/file.xml")
    try:
        with programs.Daemon(lab.host, config, wait=4):
            up = True
            assert lab.xvm("-o", "off", "-H", "on1", t=5).rc == 1
            assert lab.xvm("-o", "status", "-H", "on1", t=5).rc == 1
    except RuntimeError:
        up = False
    if expected is not None:
        assert up is expected


@only("ours", VIRTD, "architecture.md, rule 7: SIGHUP reloads; a bad new config is refused and the old one stays")
def test_sighup(lab, uri):
    config = lab.config(uri)
    with programs.Daemon(lab.host, config) as daemon:
        good = config.read_text()
        config.write_text("rubbish {")
        daemon.send_signal(signal.SIGHUP)
        daemon.wait_log(rf"{config.name}:1:")
        assert lab.xvm("-o", "status", "-H", "on1").rc == 0 and daemon.alive()
        config.write_text(good + 'groups { group { ip = "192.0.2.1"; uuid = "on1"; } }\n')
        daemon.send_signal(signal.SIGHUP)
        wait_until(lambda: lab.xvm("-o", "status", "-H", "on1").rc == 3, 10, step=0.2)


def pid_in(path):
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def stat(pid):
    """Fields of /proc/PID/stat from the state on: state 0, parent 1, group 2, session 3, terminal 4."""
    with open(f"/proc/{pid}/stat") as f:
        return [int(x) if x.lstrip("-").isdigit() else x for x in f.read().rsplit(")", 1)[1].split()]


def no_process():
    """A number that is no process's."""
    with open("/proc/sys/kernel/pid_max") as f:
        pid = int(f.read()) - 1
    while os.path.exists(f"/proc/{pid}"):
        pid -= 1
    return pid
