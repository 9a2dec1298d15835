# SPDX-License-Identifier: GPL-2.0-or-later
"""Agents that hang, fork, flood, lie, tell secrets and die: what clients are told, what is left, what stands in the audit."""

import concurrent.futures
import dataclasses
import json
import pathlib
import re
import signal

import pytest
from lab import net

from .rig import DENIED, FAILED, OFF, OK, Host
from .zoo import Zoo

#: A password that nobody may see.
SECRET = "s3cret-of-the-bmc-and-no-one-elses"

#: Seconds of a try of `off`, and of one look. What hangs is killed then.
TRY, LOOK = 8, 6


@dataclasses.dataclass(frozen=True)
class Case:
    """What a fence of the mode's machine comes to: the client's exit code, the truth after it, and a word on each side:
    `ended` matches how its run of `off` ended by the audit."""

    rc: int
    power: str
    ended: str | None = None


CASES = {
    "good": Case(OK, "off", "exit 0"),
    "slow": Case(OK, "off", "exit 0"),
    "late": Case(OK, "off", "exit 0"),
    "litters": Case(OK, "off", "exit 0"),
    "denies": Case(OK, "off", "exit 1"),
    "talks": Case(OK, "off", "exit 0"),
    "tells": Case(OK, "off", "exit 0"),
    "paints": Case(OK, "off", "exit 0"),
    "faints": Case(OK, "off", "exit 0"),
    "fickle": Case(OK, "off", "exit 0"),
    "lies": Case(FAILED, "on", "exit 0"),
    "twos": Case(FAILED, "on", "exit 2"),
    "dies": Case(FAILED, "on", "signal 11"),
    "hangs": Case(FAILED, "on", "killed"),
    "stubborn": Case(FAILED, "on", "killed"),
    "forks": Case(FAILED, "on", "killed"),
    "floods": Case(FAILED, "on", "killed"),
    "silent": Case(FAILED, "off", "exit 0"),
    "broken": Case(FAILED, "on"),
    "mute": Case(FAILED, "on"),
}


@dataclasses.dataclass
class Shots:
    """A daemon with one device for each case, and what came of one `off` for each, all sent at the same time."""

    site: object
    host: Host
    zoo: Zoo
    results: dict

    def record(self, mode):
        """The audit record of that machine's fence."""
        return self.host.wait_records(1, which=lambda it: it["action"] == "off" and it["target"] == mode)[0]

    def runs(self, mode, action):
        """What was run of that action for it, by the audit."""
        return [run for run in self.record(mode).get("runs", []) if run["action"] == action]


# Cases with a daemon of their own come first: that of `shots` lives as long as the module, hears what they ask, and has devices
# of the same names.


@pytest.mark.parametrize("mode", ["broken", "mute"])
def test_a_script_that_cannot_run_is_never_off(site, start_host, tmp_path, mode):
    """Exit code 2 of whatever it is asked: neither a status nor a fence is believed."""
    zoo = Zoo(tmp_path / "zoo")
    start_host([zoo.device(mode, status_timeout=2, timeout=4, retries=1)])
    assert site.ask("-o", "status", "-H", mode).rc == FAILED
    assert site.ask("-o", "off", "-H", mode).rc == FAILED
    assert zoo.power(mode) == "on"
    zoo.wait_nothing_left()


def test_one_that_hangs_holds_up_nobody_else(site, start_host, tmp_path):
    """A device with more requests than may run at once, all of which hang; another's fences are done meanwhile."""
    zoo = Zoo(tmp_path / "zoo")
    stuck = [f"stuck{n}" for n in range(8)]
    start_host([zoo.device("hangs", *stuck, timeout=20, retries=0), zoo.device("good")])
    shots = [site.ask("-o", "off", "-H", name, wait=False) for name in stuck]
    net.wait_until(lambda: len([run for run in zoo.runs("off") if run.plug in stuck]) >= 4)
    for _ in range(3):
        assert site.ask("-o", "reboot", "-H", "good").rc == OK
    assert len([run for run in zoo.left() if run.plug in stuck]) == 4, "no more than a device may run, and they still hang"
    for shot in shots:
        shot.process.kill()
        shot.finish()
    # Nobody waits for them any more: the daemon's end is theirs.
    assert all(zoo.power(name) == "on" for name in stuck)


def test_what_waits_for_its_device_is_asked_by_the_rules_of_a_reload(site, start_host, tmp_path):
    """It has its turn and its proof. What runs already ends as it began."""
    zoo = Zoo(tmp_path / "zoo")
    stuck = [f"stuck{n}" for n in range(4)]
    host = start_host([zoo.device("hangs", *stuck, "waits", timeout=6, retries=0)])
    shots = [site.ask("-o", "off", "-H", name, wait=False) for name in stuck]
    net.wait_until(lambda: len(zoo.runs("off")) == 4)
    waits = site.ask("-o", "off", "-H", "waits", wait=False)
    intents = pathlib.Path(host.daemon.state) / "intents"
    net.wait_until(lambda: '"target":"waits"' in intents.read_text())
    with open(host.config, "a") as file:
        file.write('groups { group { ip = "10.9.9.9"; uuid = "waits"; } }\n')
    host.daemon.send_signal(signal.SIGHUP)
    assert waits.finish().rc == DENIED
    reason = host.wait_records(1, which=lambda it: it["target"] == "waits")[0]["reason"]
    assert reason.startswith("a reload forbade this request while it waited: "), reason
    assert len(zoo.left()) == 4, "what was begun goes on"
    for shot in shots:
        assert shot.finish().rc == FAILED
    zoo.wait_nothing_left()
    assert not zoo.runs("off", "waits") and zoo.power("waits") == "on"


@pytest.mark.parametrize("first", ["hangs", "lies", "dies", "denies", "broken", "deaf", "twos"])
def test_the_next_device_does_it(site, start_host, tmp_path, first):
    """Two ways to one machine: the first fails in some way, and the second has it done and proved."""
    zoo = Zoo(tmp_path / "zoo")
    host = start_host([zoo.device(first, "node1", name="first", order=1, timeout=4, retries=0,
                                  # More than a pipe holds.
                                  options={"note": "x" * 100_000}),
                       zoo.device("good", "node1", name="second", order=2, retries=0)])
    result = site.ask("-o", "off", "-H", "node1")
    assert result.rc == OK and zoo.power("node1") == "off", (result, host.record("off"))
    did = {run["device"] for run in host.runs("off") if run["action"] == "off"}
    # One said that it failed, and had done it: nobody else needs to.
    assert did == {"first"} if first == "denies" else "second" in did, host.runs("off")
    zoo.wait_nothing_left()


@pytest.mark.parametrize("mode", ["shy", "garbles", "bombs", "bloats"])
def test_metadata_that_is_no_use(site, start_host, tmp_path, mode):
    """An agent without metadata works as FenceAgentAPI has it."""
    zoo = Zoo(tmp_path / "zoo")
    host = start_host([zoo.device(mode)])
    result = site.ask("-o", "off", "-H", mode)
    assert result.rc == OK and zoo.power(mode) == "off", (result, host.record("off"))
    assert host.daemon.rss_kib() < 150 * 1024
    zoo.wait_nothing_left()


def test_nobody_acts_after_the_deadline(site, start_host, tmp_path):
    """What an agent started ends with its run, also when it has left group, session, parents and environment."""
    zoo = Zoo(tmp_path / "zoo")
    start_host([zoo.device("delegates", timeout=4, retries=0)])
    assert site.ask("-o", "off", "-H", "delegates").rc == FAILED
    assert zoo.runs("child"), "there was nobody to be ended"
    (zoo.state / ".go").touch()
    zoo.wait_nothing_left()
    assert zoo.power("delegates") == "on", "it was powered off after its fence had failed"


def test_killed_with_the_daemon(site, tmp_path):
    """A daemon that is told to end leaves no agent behind."""
    zoo = Zoo(tmp_path / "zoo")
    host = Host(site, tmp_path / "host", [zoo.device("forks", timeout=20, retries=0)])
    # No answer comes any more.
    shot = site.ask("-o", "off", "-H", "forks", "-t", 15, wait=False)
    try:
        net.wait_until(lambda: len(zoo.runs("child")) == 5)
    except TimeoutError:
        host.daemon.stop()
        raise AssertionError((zoo.runs(), host.daemon.log)) from None
    assert host.daemon.stop(timeout=60) == 0, host.daemon.log[-3000:]
    assert not zoo.left()
    assert shot.finish(60).rc != OK


def test_off_already(site, start_host, tmp_path):
    """Nothing is done to what is off: one look, and only with a monitor that said that the device is well."""
    zoo = Zoo(tmp_path / "zoo")
    host = start_host([zoo.device("hangs")])
    zoo.switch("hangs", "off")
    assert site.ask("-o", "off", "-H", "hangs").rc == OK, (host.record("off"), host.daemon.log)
    assert not zoo.runs("off") and zoo.runs("monitor") and zoo.runs("status", "hangs")
    assert {run["action"] for run in host.runs("off")} <= {"status", "monitor", "metadata", "list"}


@pytest.fixture(scope="module")
def shots(site, tmp_path_factory):
    """The Shots."""
    directory = tmp_path_factory.mktemp("bad")
    zoo = Zoo(directory / "zoo")
    password = {"password_file": site.secret(SECRET)}
    devices = [zoo.device(mode, options=password, timeout=TRY, status_timeout=LOOK, retries=0) for mode in CASES]
    host = Host(site, directory / "host", devices, agent={"max_running": 64})
    site.guest()
    with concurrent.futures.ThreadPoolExecutor(len(CASES)) as pool:
        asked = {mode: pool.submit(site.ask, "-o", "off", "-H", mode, "-t", 40) for mode in CASES}
        results = {mode: it.result() for mode, it in asked.items()}
    yield Shots(site, host, zoo, results)
    host.stop()


@pytest.mark.parametrize("mode", CASES)
def test_what_a_client_is_told(shots, mode):
    case, result, record = CASES[mode], shots.results[mode], shots.record(mode)
    assert result.rc == case.rc, (result, record)
    assert "imed out waiting for response" not in result.err
    assert shots.zoo.power(mode) == case.power
    assert record["delivered"] and record["result"] == ("success" if case.rc == OK else "failure"), record
    if case.rc != OK:
        assert record["reason"], record
    if case.ended:
        # Not where it would be called a success: the run's own end is on record as it was.
        runs = shots.runs(mode, "off")
        assert runs and all(run["ended"].startswith(case.ended) for run in runs), record
    assert all(run["device"] == mode and f"fence_bad_{mode}" in run["agent"] for run in record.get("runs", [])), record


def test_nothing_is_left(shots):
    """Neither agents nor what they started in their group, in a session of its own, or by two forks; and no zombies."""
    assert {run.plug for run in shots.zoo.runs("child")} == {"group", "clean", "session", "daemon", "lost", "flood"}
    shots.zoo.wait_nothing_left()
    net.wait_until(lambda: not children(shots.host.daemon.pid))


def test_masked(shots):
    """The password is in what the agent wrote, and `***` in what is kept."""
    outputs = "".join(run["output"] for run in shots.record("tells")["runs"])
    assert "login ***" in outputs and SECRET not in outputs
    assert "password=***" in outputs, "one that came in two pieces"
    assert SECRET not in shots.host.daemon.log and SECRET not in shots.host.audit_file.read_text()


def test_nothing_is_painted(shots):
    """What a terminal would act on is escaped, and no line of the log is the agent's."""
    line = next(line for line in shots.host.audit_file.read_text().splitlines()
                if json.loads(line)["target"] == "paints")
    outputs = "".join(run["output"] for run in json.loads(line)["runs"])
    assert "hidden" in outputs and "all is well" in outputs
    for text in (line, outputs, shots.host.daemon.log):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert not re.search(r"^\S+ +INFO audit: forged", shots.host.daemon.log, re.M)


def test_what_is_kept_is_bounded(shots):
    """Ten megabytes of output are no failure, output without end is ended, and neither is what the audit file is for."""
    assert "more and more" in shots.runs("floods", "off")[0]["output"]
    assert shots.host.daemon.rss_kib() < 150 * 1024
    assert all(len(json.dumps(it)) < 65536 for it in shots.host.records())


def test_the_daemon_goes_on(shots):
    """After all of that."""
    shots.zoo.switch("good", "on")
    shots.zoo.wait_nothing_left()
    assert shots.site.ask("-o", "status", "-H", "good").rc == OK
    assert shots.site.ask("-o", "reboot", "-H", "good").rc == OK
    assert shots.site.ask("-o", "off", "-H", "good").rc == OK
    assert shots.site.ask("-o", "status", "-H", "good").rc == OFF
    assert shots.host.daemon.descriptors() < 100 and shots.host.daemon.rss_kib() < 150 * 1024


def children(pid):
    """Pids of the children of a process, of all its threads, zombies too."""
    return [child for task in pathlib.Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()]
