# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose firewall lets TCP port 1229 in and nothing else, as guides and roles open it.

A disturbance (an agent that timed out or was killed, many agents at once) must cost no later request its answer, and
no request may get another one's answer. `ROUNDS=100` is the long run; `TABLE=file` writes its table for
docs/fence_xvm.md. A wrong answer comes with what both agents, the daemon and the wire said in the last rounds.
"""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import time

import pytest

from lab import net, programs, testdriver, trace

ROUNDS = int(os.environ.get("ROUNDS", "4"))
TABLE = os.environ.get("TABLE")
FIREWALL = """table inet lab { chain c { type filter hook input priority 0;
    iifname "eth0" tcp dport 1229 accept; ct state established,related accept; iifname "eth0" drop; }; }"""
#: Ours, the C daemon of this machine, and that of Debian sid.
HOSTS = ["ours", "installed", "today"]
# The answer says which domain was asked for.
STATES = {"vm1": 0, "vm2": 2}

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="about our agent")


class Site:
    """A host with this fence_virtd, and a guest behind the firewall."""

    def __init__(self, directory, host):
        self.directory = pathlib.Path(directory)
        self.net = net.Net()
        self.host, self.guest = self.net.node("host"), self.net.node("guest")
        self.guest.run(["nft", "-f", "-"], check=True, input=FIREWALL)
        self.key = programs.write_key(self.directory / "key")
        self.trace = trace.Trace(self.host)
        # What was done, as (time, text).
        self.steps = []
        self.daemon = self.serve(self.host, host)

    def serve(self, node, kind, *more):
        """A daemon on a node, with both domains and these."""
        uri = testdriver.write(self.directory / f"{node.name}.xml", [
            testdriver.Domain("vm1"), testdriver.Domain("vm2", state=testdriver.SHUTOFF), *more])
        module = "" if kind == "ours" else f'module_path = "{programs.modules(kind)}";'
        config = programs.write_config(self.directory / f"{node.name}.conf", f"""
            fence_virtd {{ listener = "multicast"; backend = "libvirt"; {module} }}
            listeners {{ multicast {{ key_file = "{self.key}"; family = "ipv4"; interface = "eth0"; }} }}
            backends {{ libvirt {{ uri = "{uri}"; }} }}""")
        return programs.Daemon(node, config, program=programs.program(kind, "fence_virtd"), debug=0 if kind == "ours" else 99)

    def ask(self, name, *, timeout, hash_type="sha256"):
        """Starts an agent that asks for a domain's status."""
        self.steps.append((time.monotonic(), f"an agent for {name}"))
        return programs.Agent(self.guest, "-d", "-o", "status", "-H", name, "-t", timeout, "-k", self.key, "-c", hash_type)

    def end(self, agent, timeout=60.0):
        """Waits for an agent's end, or kills it then."""
        result = agent.finish(timeout)
        self.steps.append((time.monotonic(), f"ended: {result}"))
        return result

    def signal(self, number):
        """Stops the daemon, or lets it go on."""
        self.steps.append((time.monotonic(), number.name))
        self.daemon.send_signal(number)

    def story(self, since):
        """What happened since then: the steps, the daemon's lines and the packets, each with its time."""
        parts = {"test": self.steps, "daemon": list(zip(self.daemon.times, self.daemon.lines)), "wire": self.trace.lines(since)}
        told = sorted((when, who, text) for who, lines in parts.items() for when, text in lines if when >= since)
        return "\n".join(f"{when - since:9.4f} {who:6} {text}" for when, who, text in told)

    def close(self):
        self.daemon.send_signal(signal.SIGCONT)
        self.daemon.stop()
        self.trace.close()
        self.net.close()


@pytest.fixture(params=HOSTS)
def site(request, tmp_path):
    it = Site(tmp_path, request.param)
    it.kind = request.param
    yield it
    it.close()


def timed_out(site, hash_type, draw):
    """The daemon stands still, and answers later what was asked meanwhile."""
    site.signal(signal.SIGSTOP)
    site.end(site.ask(draw.choice(list(STATES)), timeout=1, hash_type=hash_type))
    later = site.ask(draw.choice(list(STATES)), timeout=1, hash_type=hash_type) if draw.random() < 0.5 else None
    site.signal(signal.SIGCONT)
    return later and site.end(later)


def killed(site, hash_type, draw):
    """An agent that is killed while the daemon stands still."""
    site.signal(signal.SIGSTOP)
    agent = site.ask(draw.choice(list(STATES)), timeout=10, hash_type=hash_type)
    assert site.end(agent, timeout=0.1 + draw.random() * 0.3).rc is None, "it was killed"
    site.signal(signal.SIGCONT)


def nothing(*_):
    """No disturbance but that eight ask at once."""


DISTURBANCES = {"a time-out": (timed_out, 1), "SIGKILL": (killed, 1), "eight at once": (nothing, 8),
                "SIGKILL, then eight": (killed, 8), "a time-out, then eight": (timed_out, 8)}
#: What is left of earlier rounds shows after some of them.
MORE_ROUNDS = {"a time-out, then eight": 3}


@contextlib.contextmanager
def busy_machine():
    """Programs that only calculate, more than there are processors: the daemon reads what came late."""
    programs_that_calculate = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(os.cpu_count() + 1)]
    try:
        yield
    finally:
        for it in programs_that_calculate:
            it.kill()
            it.wait()


def test_a_busy_host_loses_none_of_eight(site):
    """An agent passes the port on as soon as it is called back. Its request is not ended by what the next one sends from the
    same address and port, though the host reads its proof later than that."""
    if site.kind != "ours":
        pytest.skip("the C daemon takes no sealed requests")
    draw = random.Random("busy")
    lost = []
    with busy_machine():
        for _ in range(5 * ROUNDS):
            agents = [site.ask(draw.choice(list(STATES)), timeout=12, hash_type="hmac-sha256") for _ in range(8)]
            lost += [result for result in map(site.end, agents) if result.rc == 1]
    assert not lost, lost
    assert not [line for line in site.daemon.lines if "superseded" in line or "answer-not-taken" in line]


@pytest.mark.parametrize("hash_type", ["sha256", "hmac-sha256"])
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_nothing_is_lost_and_nothing_is_mixed_up(site, disturbance, hash_type):
    """Each request after the disturbance gets its own answer within its time."""
    if site.kind != "ours" and hash_type == "hmac-sha256":
        pytest.skip("the C daemon takes no sealed requests")
    disturb, number = DISTURBANCES[disturbance]
    draw = random.Random(f"{disturbance} {hash_type}")
    lost, wrong, asked, slowest = [], [], 0, 0
    begun = [time.monotonic()]
    for number_of_round in range(1, ROUNDS * MORE_ROUNDS.get(disturbance, 1) + 1):
        begun.append(time.monotonic())
        disturb(site, hash_type, draw)
        names = [draw.choice(list(STATES)) for _ in range(number)]
        agents = [site.ask(name, timeout=10 if number == 1 else 20, hash_type=hash_type) for name in names]
        for name, agent in zip(names, agents):
            result = site.end(agent)
            asked, slowest = asked + 1, max(slowest, result.seconds)
            if result.rc == 1:
                lost.append(result)
            elif result.rc != STATES[name]:
                wrong.append(f"round {number_of_round}, {name}, since the round before it:\n{site.story(begun[-2])}")
    if TABLE:
        with open(TABLE, "a") as table:
            table.write(f"| {disturbance} | {site.kind} | {hash_type} | {asked} | {len(lost)} | {len(wrong)} | {slowest:.1f} s |\n")
    assert not wrong, "\n".join(wrong)
    assert not lost, lost


def asked(site, name):
    """An agent whose request is in the queue of the daemon, which stands still."""
    before = len(site.trace.lines())
    agent = site.ask(name, timeout=30)
    net.wait_until(lambda: any(f"request {name} " in text for _, text in site.trace.lines()[before:]))
    return agent


def test_a_removed_ledger_gives_no_old_answer(site):
    """Somebody cleaned /run, or a container began anew with a /run of its own: a killed agent's request is not known any more."""
    site.signal(signal.SIGSTOP)
    assert site.end(asked(site, "vm2"), timeout=0).rc is None, "it was killed"
    site.guest.forget_ports()
    agent = asked(site, "vm1")
    site.signal(signal.SIGCONT)
    result = site.end(agent)
    assert result.rc == STATES["vm1"], site.story(0)


@pytest.mark.parametrize("kind", ["installed", "today"])
def test_a_list_has_what_a_c_host_alone_has(tmp_path, kind):
    """In the middle of a migration of hosts, after a request that nobody answered: our host lists at once, and the C host is
    hung up on first, since it may call for that request."""
    site = Site(tmp_path, "ours")
    c_host = site.serve(site.net.node("c-host"), kind, testdriver.Domain("vm3"))
    try:
        nobody = programs.run_agent(site.guest, "-a", "225.0.0.99", "-o", "status", "-H", "vm1", "-t", 1, "-k", site.key)
        assert nobody.rc == 1 and "call-back from" not in nobody.err, nobody
        begun = time.monotonic()
        for _ in range(ROUNDS):
            listed = programs.run_agent(site.guest, "-d", "-o", "list", "-k", site.key, "-t", 20)
            states = {line.split()[0]: line.split()[-1] for line in listed.out.splitlines()}
            assert (listed.rc, states) == (0, {"vm1": "on", "vm2": "off", "vm3": "on"}), f"{listed}\n{site.story(begun)}"
            assert "it may call for an earlier request" in listed.err, "the case of this test"
    finally:
        c_host.stop()
        site.close()


def test_a_second_host_gives_no_old_answer(site):
    """A host that was busy calls back late, for a request that another host has answered long ago."""
    second = site.serve(site.net.node("second"), site.kind)
    try:
        second.send_signal(signal.SIGSTOP)
        assert site.end(asked(site, "vm2")).rc == STATES["vm2"]
        site.signal(signal.SIGSTOP)
        agent = asked(site, "vm1")
        second.send_signal(signal.SIGCONT)
        result = site.end(agent)
        assert result.rc == STATES["vm1"], site.story(0)
    finally:
        second.send_signal(signal.SIGCONT)
        second.stop()
