# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose firewall lets TCP port 1229 in and nothing else, as guides and roles open it.

A disturbance (an agent that timed out or was killed, many agents at once) must cost no later request its answer, and
no request may get another one's answer. `ROUNDS=100` is the long run; `TABLE=file` writes its table for
docs/fence_xvm.md.
"""

import os
import pathlib
import random
import signal

import pytest

from lab import net, programs, testdriver

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
        uri = testdriver.write(self.directory / "domains.xml", [
            testdriver.Domain("vm1"), testdriver.Domain("vm2", state=testdriver.SHUTOFF)])
        program = programs.program(host, "fence_virtd")
        module = "" if host == "ours" else f'module_path = "{programs.modules(host)}";'
        config = programs.write_config(self.directory / "fence_virt.conf", f"""
            fence_virtd {{ listener = "multicast"; backend = "libvirt"; {module} }}
            listeners {{ multicast {{ key_file = "{self.key}"; family = "ipv4"; interface = "eth0"; }} }}
            backends {{ libvirt {{ uri = "{uri}"; }} }}""")
        self.daemon = programs.Daemon(self.host, config, program=program)

    def ask(self, name, *, timeout, hash_type="sha256"):
        """Starts an agent that asks for a domain's status."""
        return programs.Agent(self.guest, "-o", "status", "-H", name, "-t", timeout, "-k", self.key, "-c", hash_type)

    def close(self):
        self.daemon.send_signal(signal.SIGCONT)
        self.daemon.stop()
        self.net.close()


@pytest.fixture(params=HOSTS)
def site(request, tmp_path):
    it = Site(tmp_path, request.param)
    it.kind = request.param
    yield it
    it.close()


def timed_out(site, hash_type, draw):
    """The daemon stands still, and answers later what was asked meanwhile."""
    site.daemon.send_signal(signal.SIGSTOP)
    site.ask(draw.choice(list(STATES)), timeout=1, hash_type=hash_type).finish()
    later = site.ask(draw.choice(list(STATES)), timeout=1, hash_type=hash_type) if draw.random() < 0.5 else None
    site.daemon.send_signal(signal.SIGCONT)
    return later and later.finish()


def killed(site, hash_type, draw):
    """An agent that is killed while the daemon stands still."""
    site.daemon.send_signal(signal.SIGSTOP)
    agent = site.ask(draw.choice(list(STATES)), timeout=10, hash_type=hash_type)
    assert agent.finish(timeout=0.1 + draw.random() * 0.3).rc is None, "it was killed"
    site.daemon.send_signal(signal.SIGCONT)


def nothing(*_):
    """No disturbance but that eight ask at once."""


DISTURBANCES = {"a time-out": (timed_out, 1), "SIGKILL": (killed, 1), "eight at once": (nothing, 8),
                "SIGKILL, then eight": (killed, 8)}


@pytest.mark.parametrize("hash_type", ["sha256", "hmac-sha256"])
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_nothing_is_lost_and_nothing_is_mixed_up(site, disturbance, hash_type):
    """Each request after the disturbance gets its own answer within its time."""
    if site.kind != "ours" and hash_type == "hmac-sha256":
        pytest.skip("the C daemon takes no sealed requests")
    disturb, number = DISTURBANCES[disturbance]
    draw = random.Random(f"{disturbance} {hash_type}")
    lost, wrong, asked, slowest = [], [], 0, 0
    for _ in range(ROUNDS):
        disturb(site, hash_type, draw)
        names = [draw.choice(list(STATES)) for _ in range(number)]
        agents = [site.ask(name, timeout=10 if number == 1 else 20, hash_type=hash_type) for name in names]
        for name, agent in zip(names, agents):
            result = agent.finish()
            asked, slowest = asked + 1, max(slowest, result.seconds)
            if result.rc == 1:
                lost.append(result)
            elif result.rc != STATES[name]:
                wrong.append((name, result))
    if TABLE:
        with open(TABLE, "a") as table:
            table.write(f"| {disturbance} | {site.kind} | {hash_type} | {asked} | {len(lost)} | {len(wrong)} | {slowest:.1f} s |\n")
    assert not wrong, wrong
    assert not lost, lost
