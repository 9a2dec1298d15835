# SPDX-License-Identifier: GPL-2.0-or-later
"""A restart of the daemon loses no request, and carries none out twice."""

import collections
import contextlib
import signal
import threading

import pytest

from lab import loads, net, programs, wire
from lab.service_manager import ServiceManager

from .sites import Site

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="about our programs")

#: Agents at once.
AGENTS = 6
#: Restarts under load, and offs that end between two of them.
RESTARTS, BETWEEN = 5, 12
#: Seconds for anything to happen.
PATIENCE = 120


class TcpLoad(loads.Threads):
    """Agents of red's, some at once. Each powers off a machine of its own."""

    def __init__(self, site, targets):
        self.site, self.targets, self.results = site, iter(targets), {}
        super().__init__([()] * AGENTS)
        self.lock = threading.Lock()

    def run(self):
        while not self.ended.is_set():
            with self.lock:
                target = next(self.targets)
            result = self.site.agent(self.site.red, "tcp", target, "red").finish(PATIENCE)
            with self.lock:
                self.results[target] = result

    def more(self, count):
        """Waits until so many further agents have ended."""
        wanted = len(self.results) + count
        net.wait_until(lambda: len(self.results) >= wanted, PATIENCE)


@contextlib.contextmanager
def opened(*args, **kw):
    """A Site, as long as it is needed."""
    site = Site(*args, **kw)
    try:
        yield site
    finally:
        site.close()


def check_each_done_once(site, load):
    """Every agent had its success, and its off was carried out once, whichever daemon did it."""
    assert len(load.results) > RESTARTS * BETWEEN
    failed = {target: it for target, it in load.results.items() if it.rc != 0}
    assert not failed, (len(failed), len(load.results), next(iter(failed.items())))
    runs = collections.Counter(it["target"] for it in programs.audit_records(site.audit) if it["decision"] == "run")
    assert runs == dict.fromkeys(load.results, 1), [it for it in runs.items() if it[1] != 1]


def test_agents_come_through_restarts(tmp_path):
    """Without a service manager the port is not there for a moment, and what waits is closed: agents ask again."""
    targets = [f"red{number}" for number in range(500)]
    with opened(tmp_path, red=targets) as site:
        with TcpLoad(site, targets) as load:
            for _ in range(RESTARTS):
                load.more(BETWEEN)
                site.restart()
            load.more(BETWEEN)
        site.daemon.end()
        check_each_done_once(site, load)


@pytest.fixture
def managed(tmp_path):
    """A Site whose daemon has a service manager."""
    manager = ServiceManager(tmp_path, programs.OURS_DIR / "fence_virtd")
    with opened(tmp_path, program=manager.program, env=manager.env) as site:
        net.wait_until(lambda: len(manager.kept) == 1)
        yield site, manager
    manager.close()


def is_refused(site, port=wire.PORT):
    """Whether nobody listens at the host's port."""
    with site.red.socket() as sock:
        sock.settimeout(PATIENCE)
        return sock.connect_ex((site.host.ip, port)) != 0


def test_a_client_that_comes_while_no_daemon_runs_is_answered_by_the_next_one(managed):
    """Such a client knows nothing of restarts: it asks once, as the C agent does."""
    site, manager = managed
    client = wire.FakeClient(site.red, wire.read_key(site.keys["red"]))
    inodes = []
    for _ in range(3):
        site.daemon.end()
        answers = []
        asks = threading.Thread(target=lambda: answers.append(
            client.tcp(site.host.ip, wire.STATUS, "red1", timeout=PATIENCE)))
        asks.start()
        # Its connection waits in the kernel.
        net.wait_until(lambda: "ESTAB" in site.red.run(["ss", "-Htn", "dst", site.host.ip]).stdout)
        assert not answers
        site.start()
        asks.join()
        assert answers[0].code == wire.SUCCESS
        site.daemon.wait_serving()
        assert list(manager.kept) == [f"fence-tcp-{site.host.ip}-{wire.PORT}"]
        inodes.append(site.host.run(["ss", "-Htlne", "sport", "=", f":{wire.PORT}"]).stdout.split("ino:")[1].split()[0])
    assert len(set(inodes)) == 1


def test_a_killed_daemon_leaves_its_port_to_the_next_one(managed):
    site, _ = managed
    site.daemon.stop(signal.SIGKILL)
    assert not is_refused(site)
    site.start()
    assert site.fence("tcp", "blue1").rc == 0


def test_an_agent_that_waits_for_no_daemon_ends_by_its_time(managed):
    site, _ = managed
    site.daemon.end()
    result = programs.run_agent(site.blue, "-T", site.host.ip, "-o", "off", "-H", "blue1", "-k", site.keys["blue"], "-t", 2,
                                program=programs.OURS_DIR / "fence_virt")
    assert result.rc == 1 and "Timed out waiting for response" in result.err, result
    assert "systemctl status fence_virtd" in result.err


def other_port(site):
    """Writes another port into the configuration, and returns it."""
    text = site.config.read_text()
    own = f'address = "{site.host.ip}";'
    assert text.count(own) == 1
    site.config.write_text(text.replace(own, own + ' port = "1777";'))
    return 1777


@pytest.mark.parametrize("how", ["reload", "restart"])
def test_another_port_leaves_nothing_at_the_old_one(managed, how):
    site, manager = managed
    port = other_port(site)
    if how == "reload":
        site.daemon.send_signal(signal.SIGHUP)
        site.daemon.wait_log("the new configuration is in force")
    else:
        site.daemon.end()
        assert not is_refused(site)
        site.start(ready=None)
        site.daemon.wait_serving()
    # Not when the manager comes to it: at once.
    assert is_refused(site)
    net.wait_until(lambda: list(manager.kept) == [f"fence-tcp-{site.host.ip}-{port}"])
    site.daemon.end()
    assert is_refused(site) and not is_refused(site, port)


# -- what an agent does by itself -------------------------------------------------------------------------


def agent(site, *args):
    """One of ours, in the background."""
    return programs.Agent(site.blue, "-T", site.host.ip, "-k", site.keys["blue"], *args, program=programs.OURS_DIR / "fence_virt")


def fake_host(site, stop, how="close"):
    """A host that leaves each stream at that step."""
    return wire.FakeHost(site.host, wire.read_key(site.keys["blue"]), transport="tcp", stop=stop, how=how)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stop", [wire.Stop.CONNECTED, wire.Stop.CHALLENGED, wire.Stop.ANSWERED])
def test_a_stream_that_ends_before_the_proof_is_no_end(site, stop, how):
    """The host that takes the request next is another one: there the daemon of before was started anew."""
    site.daemon.end()
    with fake_host(site, stop, how) as host:
        asks = agent(site, "-o", "off", "-H", "blue1")
        net.wait_until(lambda: host.packets)
    site.start()
    result = asks.finish()
    assert result.rc == 0, result
    site.daemon.end()
    packets = [packet for packet, _ in host.packets]
    assert len(set(packets)) == len(packets), "a packet that is sent again is a replay"
    runs = [it for it in programs.audit_records(site.audit) if it["decision"] == "run"]
    assert [it["target"] for it in runs] == ["blue1"]


@pytest.mark.parametrize("stop", [wire.Stop.ASKED, wire.Stop.PROVED])
def test_after_its_proof_an_agent_never_asks_again(site, stop):
    """The host may have done what was asked."""
    site.daemon.end()
    with fake_host(site, stop) as host:
        result = agent(site, "-o", "off", "-H", "blue1").finish()
        assert result.rc == 1 and len(host.packets) == 1, result
        assert host.proofs == ([True] if stop == wire.Stop.PROVED else [])


def test_a_host_that_cannot_use_the_request_is_soon_given_up(site):
    result = programs.run_agent(site.blue, "-T", site.host.ip, "-k", programs.write_key(site.config.with_suffix(".other"), b"x" * 99),
                                "-o", "off", "-H", "blue1", program=programs.OURS_DIR / "fence_virt")
    assert result.rc == 1 and "closed before it proved" in result.err and "(4 tries in" in result.err, result
    assert result.seconds < 10


def test_a_wrong_address_is_named(site):
    """An action is tried until its time is over: somebody may be starting the daemon."""
    site.daemon.end()
    result = agent(site, "-o", "off", "-H", "blue1", "-t", 3).finish()
    assert result.rc == 1 and result.seconds < 10, result
    for words in (f"{site.host.ip}:1229", "Connection refused", "nobody listens there", "tries in", "it is tried again"):
        assert words in result.err, result
