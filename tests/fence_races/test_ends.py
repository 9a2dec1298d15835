# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon ends in the middle of a reboot, at each of its steps: afterwards there is one audit record, and the
machine is in the state that was asked for.

Fault points (FENCE_VIRTD_STOP_AT) are in debug builds alone, so the daemon of these cases is that of target/debug, whatever
build the suite is for; without it they fail. One case holds that the name is not in a build that is shipped.
"""

import hashlib
import json
import os
import pathlib
import signal
import stat
import subprocess
import time

import pytest
from lab import net, process, programs
from lab.rig import Asker, Host, slow_to_die, starts

pytestmark = pytest.mark.ours

SHIPPED = pathlib.Path(programs.program("ours", "fence_virtd"))
DEBUG = programs.DEBUG_DIR / "fence_virtd"


def has_fault_points(path):
    return path.exists() and b"FENCE_VIRTD_STOP_AT" in path.read_bytes()


#: Steps of a reboot, in their order.
STEPS = ["intent_written", "destroy_called", "seen_off", "start_called", "seen_on", "done_written", "audit_written"]

PASSWORD = "s3cret"


@pytest.fixture(params=["persistent", "transient"])
def victim(request, site):
    """A running domain. A transient one leaves nothing behind, and its XML has a password."""
    if request.param == "persistent":
        yield site.hypervisor.domain("victim")
        return
    domain = site.hypervisor.domain("brief", transient=True, vnc_password=PASSWORD)
    yield domain
    domain.remove()


class Mortal(Host):
    """A Host whose daemon may be killed and started again."""

    def __init__(self, site, directory, monkeypatch, step=None, **rest):
        monkeypatch.setenv("FENCE_VIRTD_STOP_AT", step or "nowhere")
        with monkeypatch.context() as patch:
            patch.setattr(programs, "OURS_DIR", DEBUG.parent)
            super().__init__(site, directory, listener="tcp", **rest)
        monkeypatch.delenv("FENCE_VIRTD_STOP_AT")

    def wait_stopped(self):
        """Returns when the daemon stands at its fault point."""
        net.wait_until(lambda: process.is_frozen(self.daemon.pid))

    def kill(self):
        """SIGKILL."""
        self.daemon.stop(signal.SIGKILL)

    def again(self):
        """The next daemon, with the same configuration and memory."""
        self.daemon = programs.Daemon(self.node, self.daemon.config,
                                      program=str(self.audit_file.parent / "fence_virtd"), ready="tcp", debug=3)
        self.daemon.wait_serving()

    def left(self):
        """What is in the state directory, beside what replays need."""
        state = pathlib.Path(self.daemon.state)
        return {it.name: it.read_text() for it in state.iterdir() if it.name not in ("packets", "packets.old", "lock")}


@pytest.fixture
def mortal(site, tmp_path, monkeypatch):
    """mortal(step): a Mortal that stops at that step; none is left at the end."""
    assert has_fault_points(DEBUG), f"{DEBUG} is not there or no debug build: cargo build -p fence-virtd"
    made = []

    def make(step=None, **rest):
        made.append(Mortal(site, tmp_path / f"host{len(made)}", monkeypatch, step, **rest))
        return made[-1]

    yield make
    for host in made:
        if host.daemon.alive():
            process.thaw(host.daemon.pid)
            host.daemon.stop(signal.SIGKILL)


def rebooted(site, victim, old, before):
    """The machine was powered off and runs again, once."""
    net.wait_until(lambda: old.ended() and victim.state() == "running")
    assert starts(site.hypervisor, victim) == before + 1


def one_record(host):
    """The audit record of the reboot: there is one, now and after one more start of the daemon."""
    (record,) = [it for it in host.wait_records(1) if it["action"] == "reboot"]
    host.daemon.end()
    host.again()
    host.daemon.end()
    records = [it for it in host.records() if it["action"] == "reboot"]
    assert records == [record]
    host.again()
    return record


def clean(host):
    """Nothing is left in the state directory that is not over, and no password."""
    left = host.left()
    # Room for one XML is kept, and nothing is in it.
    assert not [it for it, text in left.items() if it.startswith("owed") and text], left
    assert PASSWORD not in "".join(left.values())
    events = [json.loads(line[17:]) for line in left["intents"].splitlines()]
    begun = [it["begun"]["number"] for it in events if "begun" in it]
    assert sorted(begun) == sorted(it["audited"]["number"] for it in events if "audited" in it)


@pytest.mark.skipif(SHIPPED == DEBUG, reason="a debug build")
def test_a_release_build_has_no_fault_points():
    assert SHIPPED.exists() and not has_fault_points(SHIPPED)


@pytest.mark.parametrize("step", STEPS)
def test_killed_in_the_middle_of_a_reboot(site, mortal, victim, step):
    host = mortal(step)
    old, before = victim.process(), starts(site.hypervisor, victim)
    asker = Asker(host, "reboot", victim.name).wait_asked().prove()
    host.wait_stopped()
    intents = pathlib.Path(host.daemon.state) / "intents"
    assert stat.S_IMODE(intents.stat().st_mode) == 0o600
    for it in pathlib.Path(host.daemon.state).glob("owed-*"):
        assert stat.S_IMODE(it.stat().st_mode) == 0o600
    host.kill()
    asker.close()
    host.again()
    record = one_record(host)
    assert (record["id"], record["uuid"]) == (1, victim.uuid)
    if step == "intent_written":
        # Nothing was done, and nothing is owed.
        assert not old.ended() and "the domain is on" in record["reason"], record
    else:
        rebooted(site, victim, old, before)
    if STEPS.index(step) < STEPS.index("done_written"):
        assert record["reason"].startswith("was under way when the daemon ended; "), record
        assert (record["decision"], record["result"], record["delivered"]) == ("run", None, False)
    clean(host)
    host.stop()


@pytest.mark.parametrize("step", STEPS)
def test_terminated_in_the_middle_of_a_reboot(site, mortal, victim, step):
    host = mortal(step)
    old, before = victim.process(), starts(site.hypervisor, victim)
    asker = Asker(host, "reboot", victim.name).wait_asked().prove()
    host.wait_stopped()
    host.daemon.send_signal(signal.SIGTERM)
    process.thaw(host.daemon.pid)
    assert host.daemon.wait_exit() == 0
    rebooted(site, victim, old, before)
    assert asker.answer() == b"\0"
    host.again()
    record = one_record(host)
    assert (record["result"], record["reason"]) == ("success", None)
    clean(host)
    host.stop()


def test_a_termination_waits_for_a_start_that_is_owed(site, mortal):
    """The power-off takes longer than requests in flight get."""
    host = mortal()
    victim = site.hypervisor.domain("victim")
    old, before = victim.process(), starts(site.hypervisor, victim)
    with slow_to_die(victim) as wait_killed:
        asker = Asker(host, "reboot", "victim").wait_asked().prove()
        wait_killed()
        host.daemon.send_signal(signal.SIGTERM)
        # QEMU stands still for longer than the 5 s of LAST_REQUESTS: libvirt kills it after 10 s.
        assert old.ended(30)
    assert host.daemon.wait_exit() == 0
    rebooted(site, victim, old, before)
    assert asker.answer() == b"\0"
    host.again()
    assert one_record(host)["result"] == "success"
    host.stop()


def test_a_second_termination_leaves_the_start_to_the_next_daemon(site, mortal):
    host = mortal()
    victim = site.hypervisor.domain("victim")
    old, before = victim.process(), starts(site.hypervisor, victim)
    with slow_to_die(victim) as wait_killed:
        asker = Asker(host, "reboot", "victim").wait_asked().prove()
        wait_killed()
        host.daemon.send_signal(signal.SIGTERM)
        host.daemon.wait_log("no new requests")
        host.daemon.send_signal(signal.SIGTERM)
        assert host.daemon.wait_exit() == 0
        assert not old.ended()
        asker.close()
    assert old.ended(30)
    host.again()
    rebooted(site, victim, old, before)
    assert one_record(host)["reason"].startswith("was under way when the daemon ended; ")
    host.stop()


@pytest.mark.parametrize("then", ["reboot", "off", "on"])
@pytest.mark.parametrize("came", ["while QEMU ends", "just before"])
def test_a_client_that_asks_again_has_the_machine_started_once(site, mortal, came, then):
    """fence_virtd is killed in the power-off of a reboot. The debt of the start passes to the request that the next one gets."""
    # A reboot of a machine that is off starts it because of the debt.
    host = mortal(backend={"reboot_starts": "no"})
    victim = site.hypervisor.domain("victim")
    old, before = victim.process(), starts(site.hypervisor, victim)
    with slow_to_die(victim) as wait_killed:
        asker = Asker(host, "reboot", "victim").wait_asked().prove()
        wait_killed()
        host.kill()
        asker.close()
        if came == "just before":
            # libvirt loses patience after ten seconds, and lists nothing until then.
            time.sleep(8)
        host.again()
        again = Asker(host, then, "victim", timeout=60)
        host.daemon.wait_log(rf"heard id=.*action={then} target=victim")
        in_time = not old.ended()
        if came == "just before":
            assert old.ended(30)
    assert old.ended(30) and again.whole() == b"\0"
    told = starts(site.hypervisor, victim)
    left = host.wait_records(2, timeout=60, which=lambda it: it["target"] == "victim")
    time.sleep(3)
    records = [it for it in host.records() if it["target"] == "victim"]
    assert len(records) == 2 == len(left), records
    (first,) = [it for it in records if (it["reason"] or "").startswith("was under way when the daemon ended; ")]
    assert victim.state() == ("shut off" if then == "off" else "running"), (records, host.daemon.log[-6000:])
    assert then != "off" or told == starts(site.hypervisor, victim), "it was started after its off"
    # Where it was asked for when QEMU had ended, the start may have been made good before.
    asked_for, made_good = int(then != "off"), int(not in_time)
    assert before + asked_for <= starts(site.hypervisor, victim) <= before + max(asked_for, made_good), (records, host.daemon.log[-6000:])
    said = {"reboot": "has taken over the start that the reboot owed", "off": "somebody asked for the domain since (off, request"}
    assert then == "on" or not in_time or said[then] in first["reason"], records
    host.stop()


def test_the_next_daemon_listens_while_libvirt_is_busy(site, mortal):
    """libvirt lists no domains while it ends a QEMU that is slow to die: requests are heard meanwhile, and answered then."""
    host = mortal()
    victim = site.hypervisor.domain("victim")
    site.hypervisor.domain("other")
    qemu = victim.process()
    with slow_to_die(victim) as wait_killed:
        asker = Asker(host, "off", "victim").wait_asked().prove()
        wait_killed()
        host.kill()
        asker.close()
        host.again()
        assert not qemu.ended(), "it served when libvirt was done"
        status = Asker(host, "status", "other")
        host.daemon.wait_log("is busy")
    assert status.whole() == b"\0"
    host.stop()


def test_who_was_started_or_is_too_old_is_left_alone(site, mortal):
    """Somebody has started the domain since; and a start from another boot of the host is never made good."""
    victim = site.hypervisor.domain("victim")
    for other_boot in (False, True):
        victim.start()
        host = mortal("seen_off")
        before = starts(site.hypervisor, victim)
        asker = Asker(host, "reboot", "victim").wait_asked().prove()
        host.wait_stopped()
        host.kill()
        asker.close()
        intents = pathlib.Path(host.daemon.state) / "intents"
        if other_boot:
            boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            assert boot in intents.read_text()
            intents.write_text("\n".join(line_of(json.loads(it[17:]), boot) for it in
                                         intents.read_text().splitlines()) + "\n")
        else:
            victim.start()
        running = victim.pid()
        host.again()
        record = one_record(host)
        assert victim.pid() == running, record
        assert starts(site.hypervisor, victim) == before + (not other_boot)
        assert ("has booted since" if other_boot else "the domain is on") in record["reason"], record
        host.stop()


def line_of(event, boot):
    """A line of the file with another boot in it."""
    text = json.dumps(event, separators=(",", ":")).replace(boot, "0" * 8)
    return f"{hashlib.sha1(text.encode()).hexdigest()[:16]} {text}"


def test_a_disk_that_takes_nothing_refuses_no_fence(site, mortal):
    """The state directory is a full file system: fencing goes on, and the log says what that means."""
    host = mortal()
    victim = site.hypervisor.domain("victim")
    state = pathlib.Path(host.daemon.state)
    host.daemon.end()
    for it in state.iterdir():
        it.unlink()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=0700", "tmpfs", str(state)], check=True)
    try:
        host.again()
        with open(state / "filler", "wb") as filler:
            try:
                while True:
                    os.write(filler.fileno(), b"-" * 4096)
            except OSError:
                pass
        old = victim.process()
        assert Asker(host, "off", "victim").whole() == b"\0" and old.ended()
        host.daemon.wait_log("the file of intents can't be written: fencing goes on")
        host.wait_records(1)
        host.stop()
    finally:
        subprocess.run(["umount", str(state)], check=True)
