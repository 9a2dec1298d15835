# SPDX-License-Identifier: GPL-2.0-or-later
"""`--diagnose -o off`: what it says is what the request then gets, and the question changes nothing."""

import contextlib
import json
import time

import pytest

from lab import net, programs, testdriver, wire
from lab.hypervisor import Hypervisor, until
from lab.testdriver import PAUSED, SHUTOFF, Domain

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="about our programs")

OURS = programs.OURS_DIR
XVM, VIRT = str(OURS / "fence_xvm"), str(OURS / "fence_virt")
SILENT_HOST = "10.97.53.2"
SHARED = testdriver.uuid_of("on2")
DOMAINS = [Domain("on1"), Domain("on2"), Domain("off1", state=SHUTOFF), Domain("paused1", state=PAUSED),
           Domain(SHARED), Domain("others"), Domain("guarded")]
YES = "would be carried out"


class Lab:
    def __init__(self, directory):
        self.directory, self.net = directory, net.Net()
        self.host, self.guest = self.net.node("host"), self.net.node("guest")
        self.key = programs.write_key(directory / "key", b"the key of the listener, and enough of it")
        self.other = programs.write_key(directory / "other", b"the key of a group, and enough bytes of it")
        self.audit = directory / "audit"

    @contextlib.contextmanager
    def daemon(self, name, listener="multicast", groups="", uri=None, peers="none", program="ours", form=""):
        uri = uri or testdriver.write(self.directory / f"{name}.xml", DOMAINS)
        self.audit = self.directory / f"{name}.audit"
        where = 'interface = "eth0"; negative_delay = "0";' if listener == "multicast" else f'address = "{self.host.ip}";'
        daemon, module = OURS / "fence_virtd", f'audit_log = "{self.audit}"; peers = "{peers}";'
        if program == "reference":
            daemon, module = programs.REFERENCE_DIR / "fence_virtd", f'module_path = "{programs.MODULE_PATH}";'
            where = 'interface = "eth0";' if listener == "multicast" else where
        config = programs.write_config(self.directory / f"{name}.conf", f"""
            fence_virtd {{ listener = "{listener}"; backend = "libvirt"; {module} }}
            listeners {{ {listener} {{ key_file = "{self.key}"; family = "ipv4"; {where} {form} }} }}
            backends {{ libvirt {{ uri = "{uri}"; }} }}
            {groups}""")
        args = ("-w",) if "none" in uri else ()
        with programs.Daemon(self.host, config, *args, program=str(daemon),
                             ready="udp" if listener == "multicast" else "tcp") as daemon:
            yield daemon

    def run(self, *args, listener="multicast", key=None, t=20):
        way = ("-r", 5) if listener == "multicast" else ("-T", self.host.ip)
        return programs.run_agent(self.guest, *way, "-k", key or self.key, "-t", t, *args,
                                  program=XVM if listener == "multicast" else VIRT, timeout=90)

    def ask(self, action, target, *args, **kw):
        """What a guest is told of the action that is not done: (exit code, text)."""
        result = self.run("--diagnose", "-o", action, "-n", target, *args, **kw)
        assert result.rc in (0, 1), result
        return result.rc, result.out + result.err

    def status(self, target):
        return self.run("-o", "status", "-n", target).rc

    def records(self):
        """The audit records so far."""
        return [json.loads(it) for it in self.audit.read_text().splitlines()]

    def last_two(self, action):
        """The records of the last question, and of this request: that is written after its answer is sent."""
        until(lambda: self.records()[-1]["action"] == action, 20, f"a record of {action}")
        records = self.records()
        return [it for it in records if it.get("dry_run")][-1], records[-1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    it = Lab(tmp_path_factory.mktemp("dry"))
    yield it
    it.net.close()


GROUPS = """groups {{
    group {{ name = "guests"; ip = "{ip}"; uuid = "on1"; uuid = "on2"; uuid = "off1"; uuid = "paused1"; uuid = "nobody";
             uuid = "{shared}"; }}
    group {{ name = "keyed"; ip = "{ip}"; uuid = "guarded"; key_file = "{other}"; }}
    group {{ name = "others"; ip = "192.0.2.1"; uuid = "others"; }} }}"""

#: What is told of a denial.
DENIED = "this guest may not fence this domain with its key; the log of the host says why"
#: action, target, words that the question is told; None: those of the audit record of the request itself.
CASES = [
    ("off", "on1", "is on, and would be powered off at host"),
    ("reboot", "on1", "is on, and would be powered off and started again at host"),
    ("on", "on1", "is on, and would stay on"),
    ("off", "off1", "is off everywhere, and would stay off"),
    ("reboot", "off1", "is off everywhere, and would stay off"),
    ("on", "off1", "is off everywhere, and would be started at host"),
    ("off", "paused1", "is on, and would be powered off at host"),
    ("off", "nobody", None),
    ("off", SHARED, None),
    ("off", "others", None),
    ("on", "others", None),
    ("off", "guarded", None),
]


@pytest.mark.parametrize("listener", ["multicast", "tcp"])
@pytest.mark.parametrize("action, target, words", CASES, ids=lambda it: str(it)[:12])
def test_the_question_is_told_what_the_request_gets(lab, listener, action, target, words):
    """Allowed and refused, for each reason: yes exactly where the request succeeds, else the reason of its record, but that of a denial."""
    groups = GROUPS.format(ip=lab.guest.ip, shared=SHARED, other=lab.other)
    with lab.daemon(f"{listener}-{action}-{target}", listener, groups) as daemon:
        before = lab.run("-o", "status", "-n", target, listener=listener).rc
        code, text = lab.ask(action, target, listener=listener)
        # Nothing was done, however often it is asked.
        assert lab.ask(action, target, listener=listener)[0] == code
        assert lab.run("-o", "status", "-n", target, listener=listener).rc == before, daemon.log
        real = lab.run("-o", action, "-n", target, listener=listener)
        question, request = lab.last_two(action)
        assert (question["action"], question["dry_run"]) == ("status", action)
        assert (request["action"], request.get("dry_run")) == (action, None)
        assert (question["domain"], question["uuid"]) == (request["domain"], request["uuid"])
        assert (code == 0) == (real.rc == 0) == (YES in text), f"{text}\n{real}\n{daemon.log}"
        assert (question["decision"] == "denied") == (request["decision"] == "denied") == (real.rc == 3)
        if words is None:
            # A denial names no group: that would tell which domains others have.
            told = DENIED if real.rc == 3 else request["reason"]
            assert request["reason"] and told in text, f"{text}\n{request}"
            assert text.count("cause: ") == 1 and f"{action} would not be carried out" in text, text
        else:
            assert words in text and request["uuid"] in text and f"{action} {target} (" in text, text
        assert "a question what" in daemon.log and "nothing was done" in daemon.log


def test_a_host_that_cant_tell(lab):
    """A silent host that may have it, and a libvirt that is down: the reason is that of the request."""
    for name, kw in (("silent", {"peers": SILENT_HOST}),
                     ("down", {"uri": f"qemu+unix:///system?socket={lab.directory}/none"})):
        with lab.daemon(name, "tcp", **kw) as daemon:
            code, text = lab.ask("off", "off1", listener="tcp", t=30)
            real = lab.run("-o", "off", "-n", "off1", listener="tcp", t=30)
            assert (code, real.rc) == (1, 1), f"{text}\n{real}\n{daemon.log}"
            reason = lab.last_two("off")[1]["reason"]
            assert "off would not be carried out" in text and reason[:60] in text, f"{text}\n{reason}"


def test_another_key_gets_no_answer(lab):
    with lab.daemon("key") as daemon:
        code, text = lab.ask("off", "on1", key=lab.other, t=3)
        assert code == 1 and "can't say what off would do" in text and "no host took the request" in text, text
        daemon.wait_log("another key on the sender's side")
        assert lab.status("on1") == 0


@pytest.mark.parametrize("listener", ["multicast", "tcp"])
def test_a_c_host_cant_say(lab, listener):
    with lab.daemon(f"reference-{listener}", listener, program="reference"):
        code, text = lab.ask("off", "on1", listener=listener, t=4)
        assert code == 1 and "can't say what off would do" in text and "of the C programs" in text, text
        assert lab.run("-o", "status", "-n", "on1", listener=listener).rc == 0


def test_a_refusal_beside_a_c_host_that_has_the_domain(lab):
    """Our host would refuse, and the C host carries it out. A name that no host has is refused all the same."""
    second = lab.net.node("c-host")
    uri = testdriver.write(lab.directory / "c-host.xml", [Domain("conly")])
    config = programs.write_config(lab.directory / "c-host.conf", f"""
        fence_virtd {{ listener = "multicast"; backend = "libvirt"; module_path = "{programs.MODULE_PATH}"; }}
        listeners {{ multicast {{ key_file = "{lab.key}"; family = "ipv4"; interface = "eth0"; }} }}
        backends {{ libvirt {{ uri = "{uri}"; }} }}""")
    c_host = programs.Daemon(second, config, program=str(programs.REFERENCE_DIR / "fence_virtd"))
    try:
        with lab.daemon("beside-c") as daemon:
            code, text = lab.ask("off", "conly")
            assert code == 1 and "can't say what off would do" in text and second.ip in text, f"{text}\n{daemon.log}"
            assert "would not be carried out" not in text, text
            code, text = lab.ask("status", "conly")
            assert code == 0 and "in order" in text, text
            code, text = lab.ask("off", "nobody")
            assert code == 1 and "off would not be carried out" in text, text
            assert lab.run("-o", "off", "-n", "conly").rc == 0, daemon.log
    finally:
        c_host.stop()


def test_a_refusal_beside_a_slow_host_of_ours(lab):
    """It has not the domain, so it calls back after its negative_delay. It is waited for, and it is no host of the C programs."""
    second = lab.net.node("slow-host")
    config = programs.write_config(lab.directory / "slow-host.conf", f"""
        fence_virtd {{ listener = "multicast"; backend = "libvirt"; peers = "none"; }}
        listeners {{ multicast {{ key_file = "{lab.key}"; family = "ipv4"; interface = "eth0"; negative_delay = "2"; }} }}
        backends {{ libvirt {{ uri = "{testdriver.write(lab.directory / "slow-host.xml", [Domain("another")])}"; }} }}""")
    slow = programs.Daemon(second, config, program=str(OURS / "fence_virtd"), ready="udp")
    try:
        with lab.daemon("beside-slow", peers=SILENT_HOST) as daemon:
            code, text = lab.ask("off", "off1", t=30)
            assert code == 1 and "off would not be carried out" in text, f"{text}\n{daemon.log}\n{slow.log}"
            assert f"the host {second.ip} says: no such domain" in text and "C programs" not in text, text
    finally:
        slow.stop()


#: Hash and auth of the host, and options of the agent: one that the host takes, and those that it drops.
FORMS = [
    ("sha256", "sha256", (), True),
    ("sha512", "sha256", (), False),
    ("hmac-sha256", "sha256", (), False),
    ("hmac-sha256", "sha256", ("-c", "hmac-sha256"), True),
    ("hmac-sha256", "sha256", ("-c", "sha512"), False),
    ("sha256", "sha512", (), False),
    ("sha256", "none", (), False),
    ("sha256", "sha256", ("-c", "sha1"), False),
    ("sha256", "sha256", ("-c", "none"), False),
    ("sha256", "sha256", ("-C", "none"), False),
]


@pytest.mark.parametrize("listener, hash_type, auth, args, is_taken", [
    *(("tcp", *it) for it in FORMS), *(("multicast", *it) for it in FORMS[:2])], ids=lambda it: str(it)[:16])
def test_what_the_host_would_drop_is_not_said_to_be_carried_out(lab, listener, hash_type, auth, args, is_taken):
    """The question is asked sealed, and every host takes that; the cluster's own request is another matter."""
    with lab.daemon("forms", listener, form=f'hash = "{hash_type}"; auth = "{auth}";') as daemon:
        code, text = lab.ask("off", "on1", *args, listener=listener, t=4)
        real = lab.run("-o", "off", "-n", "on1", *args, listener=listener, t=4)
        assert real.rc == (0 if is_taken else 1), f"{real}\n{daemon.log}"
        assert (code == 0) == (YES in text) == is_taken, f"{text}\n{daemon.log}"
        assert is_taken or "can't say what off would do" in text, text


@pytest.mark.parametrize("response", [0, 2, 1, 3])
def test_an_older_host_of_ours_cant_say(lab, response):
    """It does not know the question, and answers the status. That is no yes."""
    key = wire.read_key(lab.key)
    with wire.FakeHost(lab.host, key, response=bytes([response])) as host:
        code, text = lab.ask("off", "on1", t=6)
        assert code == 1 and YES not in text, text
        assert "can't say what off would do" in text and "older fence_virtd" in text, text
        assert {packet[0] for packet, _ in host.packets} <= {wire.STATUS, wire.MONITOR, wire.LIST}, "looks alone"


def test_qemu(lab):
    """The process of the machine lives on under the question, and ends by the request."""
    with Hypervisor(lab.host.ns, lab.directory / "hypervisor") as hypervisor:
        vm = hypervisor.domain("vm1")
        process = vm.process()
        with lab.daemon("qemu", uri=hypervisor.uri) as daemon:
            for action in ("off", "reboot", "on"):
                code, text = lab.ask(action, "vm1", t=30)
                assert code == 0 and f"{action} vm1 (" in text, f"{text}\n{daemon.log}"
                assert not process.ended() and vm.state() == "running"
            assert lab.run("-o", "off", "-n", "vm1", t=30).rc == 0, daemon.log
            assert process.ended()
            code, text = lab.ask("off", "vm1", t=30)
            assert code == 0 and "is off everywhere, and would stay off" in text, text
            assert not any(it["action"] == "reboot" for it in lab.records())


def test_a_connection_that_may_only_read(lab):
    """libvirt refuses each order of it, and at once. The question and --check say so before the first one."""
    with Hypervisor(lab.host.ns, lab.directory / "read-only") as hypervisor:
        vm, idle = hypervisor.domain("vm1"), hypervisor.domain("idle", start=False)
        process = vm.process()
        with lab.daemon("read-only", uri=f"{hypervisor.uri}-ro") as daemon:
            for action, target in [("off", "vm1"), ("reboot", "vm1"), ("on", "idle")]:
                code, text = lab.ask(action, target, t=30)
                assert code == 1 and YES not in text and "this connection may only read" in text, f"{text}\n{daemon.log}"
                began = time.monotonic()
                assert lab.run("-o", action, "-n", target, t=30).rc == 1, daemon.log
                assert time.monotonic() - began < 10, daemon.log
                reason = lab.last_two(action)[1]["reason"]
                assert "read only access prevents" in reason and "not libvirt-sock-ro" in reason, reason
                assert "not known" not in reason, reason
            assert lab.run("-o", "off", "-n", "idle", t=30).rc == 0, "it is off"
            assert not process.ended() and idle.state() == "shut off"
            checked = programs.run_agent(lab.host, "--check", "-f", lab.directory / "read-only.conf", program=str(OURS / "fence_virtd"))
            (line,) = [it for it in checked.out.splitlines() if " libvirt " in it]
            assert checked.rc == 1 and line.startswith("failed ") and "reached; 2 domains" in line, checked.out
            assert "this connection may only read" in line, checked.out
        with lab.daemon("read-write", uri=hypervisor.uri):
            checked = programs.run_agent(lab.host, "--check", "-f", lab.directory / "read-write.conf", program=str(OURS / "fence_virtd"))
            assert "ok       libvirt " in checked.out, checked.out


def test_a_line_has_no_seal(lab):
    result = programs.run_agent(lab.guest, "--diagnose", "-o", "off", "-n", "vm1", "-D", "/dev/null", program=VIRT)
    assert result.rc == 1 and "a serial line or VM channel has no seal: nothing was asked" in result.err
