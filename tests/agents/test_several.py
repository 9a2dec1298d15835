# SPDX-License-Identifier: GPL-2.0-or-later
"""`backend = "libvirt, agent"`: who has what, what both have, what goes on when one of them can't be asked; and the agent
backend alone. libvirt is a libvirtd with its test driver, agents are the good ones of the zoo."""

import concurrent.futures
import re
import signal
import types

import pytest
from lab import metrics, net, programs
from lab.hypervisor import Pretended
from lab.rig import Asker

from .rig import DENIED, FAILED, OFF, OK, device
from .zoo import Zoo

UUID = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c"
PAGE = programs.REPOSITORY / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def libvirt(site):
    """A hypervisor that can be stopped and lost."""
    it = Pretended(site.place("virt").ns).start()
    yield it
    it.stop()


@pytest.fixture
def two(site, libvirt, start_host, tmp_path):
    """Domains v1, v2 and both of libvirt, and a1, a2 and both of an agent; `host` with both backends."""
    libvirt.recover()
    it = types.SimpleNamespace(zoo=Zoo(tmp_path / "zoo"), libvirt=libvirt)
    it.v1, it.v2, it.both = (libvirt.domain(name) for name in ("v1", "v2", "both"))
    it.device = plugged(it.zoo, "a1", "a2", uuids={"both": UUID})
    it.host = start_host([it.device], backend="libvirt, agent", libvirt=libvirt.uri)
    yield it
    libvirt.recover()


def plugged(zoo, *names, uuids=None, mode="good", name="rack", **keys):
    """A device with these machines, all on."""
    machines = [{"name": it, "plug": it} for it in names]
    machines += [{"name": it, "plug": it, "uuid": uuid} for it, uuid in (uuids or {}).items()]
    for it in machines:
        zoo.switch(it["plug"], "on")
    return device(name, zoo.agent(mode), None, domains=machines, **keys)


def listed(result):
    """{(name, uuid): on} of a host list."""
    rows = [re.split(r"[\s,]+", line.strip()) for line in result.out.splitlines() if line.strip()]
    found = {(name, uuid): state for name, uuid, state in rows}
    assert len(found) == len(rows), rows
    return found


def test_each_is_served_by_the_one_that_has_it(site, two):
    for name, is_off in (("v1", lambda: two.v1.state() == "shut off"), ("a1", lambda: two.zoo.power("a1") == "off")):
        assert site.ask("-o", "status", "-H", name).rc == OK
        assert site.ask("-o", "off", "-H", name).rc == OK
        assert is_off()
        assert site.ask("-o", "status", "-H", name).rc == OFF
        assert site.ask("-o", "on", "-H", name).rc == OK
        assert not is_off()
        assert site.ask("-o", "reboot", "-H", name).rc == OK
        assert not is_off()
    records = two.host.wait_records(10)
    assert not [it for it in records if it["target"] == "v1" and "runs" in it], "libvirt runs nothing"
    for it in records:
        if it["target"] == "a1":
            assert it["runs"], it
            assert {(run["device"], run["agent"]) for run in it["runs"]} == {("rack", str(two.zoo.agent("good")))}
            assert all(run["ended"] == f"exit {run['exit']}" and run["ms"] > 0 for run in it["runs"])
    (off,) = [it for it in records if it["target"] == "a1" and it["action"] == "off"]
    did = [run["action"] for run in off["runs"]]
    assert did.index("off") < len(did) - 1 - did[::-1].index("status"), "no look after it"
    # The log has the same in short.
    assert re.search(r"audit: .*runs=.*rack off exit 0, \d+ ms; .*rack status exit 2, \d+ ms", two.host.daemon.log)


def test_a_name_that_both_have(site, two):
    result = site.ask("-o", "off", "-H", "both")
    assert result.rc == FAILED
    reason = two.host.record("off")["reason"]
    assert "ambiguous" in reason and "backend libvirt" in reason and "backend agent" in reason, reason
    assert two.both.uuid in reason and UUID in reason
    assert two.both.state() == "running" and two.zoo.power("both") == "on"
    # By UUID each is meant alone.
    assert site.ask("-o", "off", "-H", UUID).rc == OK
    assert two.both.state() == "running" and two.zoo.power("both") == "off"
    assert site.ask("-o", "off", "-u", "-H", two.both.uuid.upper()).rc == OK
    assert two.both.state() == "shut off"


def test_list_and_monitor(site, two):
    two.zoo.switch("a2", "off")
    found = listed(site.ask("-o", "list"))
    names = sorted(name for name, _ in found)
    assert names == ["a1", "a2", "both", "both", "v1", "v2"], found
    on = {name: state for (name, _), state in found.items() if name != "both"}
    assert on == {"a1": "on", "a2": "off", "v1": "on", "v2": "on"}
    assert {("both", UUID), ("both", two.both.uuid), ("v1", two.v1.uuid)} <= set(found)
    # What the list names can be asked for so.
    (a1,) = [uuid for name, uuid in found if name == "a1"]
    assert site.ask("-o", "off", "-H", a1).rc == OK and two.zoo.power("a1") == "off"
    assert site.ask("-o", "monitor").rc == OK
    assert two.host.record("monitor")["reason"] is None


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_libvirt_is_gone(site, two, how):
    """The agent's machines are served, what libvirt had is not guessed, and all is as before when it is back."""
    {"killed": two.libvirt.kill, "frozen": two.libvirt.freeze}[how]()
    if how == "killed":
        two.host.daemon.wait_log("lost libvirt")
    assert site.ask("-o", "off", "-H", "a1").rc == OK and two.zoo.power("a1") == "off"
    # Ten seconds is what a look may take: nobody waited for libvirt.
    assert two.host.record("off")["resolved_ms"] < 8000
    # At once, because each waits as long as a look may take.
    asked = [site.ask(*args, wait=False) for args in (("-o", "off", "-H", "both"), ("-o", "status", "-H", "v1"),
                                                      ("-o", "list"), ("-o", "monitor"))]
    both, status, everything, monitor = (it.finish(60) for it in asked)
    assert both.rc == FAILED and two.zoo.power("both") == "on"
    record = two.host.wait_records(1, which=lambda it: it["target"] == "both")[0]
    reason = record["reason"]
    assert "can't tell" in reason and "backend libvirt" in reason and "backend agent" in reason, reason
    assert status.rc == FAILED, "nobody can tell"
    assert {name for name, _ in listed(everything)} == {"a1", "a2", "both"}
    assert two.libvirt.uri in two.host.record("list")["reason"]
    assert monitor.rc == OK
    assert two.libvirt.uri in two.host.record("monitor")["reason"]
    assert site.ask("-o", "off", "-H", UUID).rc == OK and two.zoo.power("both") == "off"
    two.libvirt.recover()
    if how == "killed":
        for name in ("v1", "v2", "both"):
            two.libvirt.domain(name)
    net.wait_until(lambda: site.ask("-o", "off", "-H", "v2").rc == OK)
    assert site.ask("-o", "off", "-H", "both").rc == FAILED
    assert "ambiguous" in two.host.wait_records(1, which=lambda it: it["target"] == "both")[-1]["reason"]


def test_libvirt_comes_later(site, libvirt, start_host, tmp_path):
    """Without -w too: what needs no libvirt does not wait for one."""
    libvirt.recover()
    zoo = Zoo(tmp_path / "zoo")
    libvirt.domain("v1")
    libvirt.kill()
    host = start_host([plugged(zoo, "a1")], backend="agent, libvirt", libvirt=libvirt.uri)
    assert site.ask("-o", "off", "-H", "a1").rc == OK and zoo.power("a1") == "off"
    assert site.ask("-o", "status", "-H", "v1").rc == FAILED
    libvirt.recover()
    v1 = libvirt.domain("v1")
    net.wait_until(lambda: site.ask("-o", "off", "-H", "v1").rc == OK)
    assert v1.state() == "shut off"
    assert host.daemon.alive()


def test_an_agent_that_hangs(site, libvirt, start_host, tmp_path):
    """A pool that does not answer, not even with its list: what libvirt has is served, and another device's machines are."""
    libvirt.recover()
    zoo, v1 = Zoo(tmp_path / "zoo"), libvirt.domain("v1")
    host = start_host([device("pool", zoo.agent("mute")), plugged(zoo, "a1")], backend="libvirt, agent", libvirt=libvirt.uri)
    zoo.wait_run("always", "")
    for name in ("v1", "a1"):
        assert site.ask("-o", "off", "-H", name).rc == OK
        assert host.wait_records(1, which=lambda it, name=name: it["target"] == name)[0]["resolved_ms"] < 8000
    assert v1.state() == "shut off" and zoo.power("a1") == "off"
    # Nobody can say that there is no such machine.
    assert site.ask("-o", "off", "-H", "nobody").rc == FAILED
    assert "can't tell" in host.wait_records(1, which=lambda it: it["target"] == "nobody")[-1]["reason"]


def test_one_at_a_time(site, libvirt, start_host, tmp_path):
    """Where a source is not known, what one shoots may be where the other comes from, whichever backend has it."""
    libvirt.recover()
    zoo, v1 = Zoo(tmp_path / "zoo"), libvirt.domain("v1")
    host = start_host([plugged(zoo, "late", mode="slow", name="slow")], listener="tcp", backend="libvirt, agent",
                      libvirt=libvirt.uri)
    first = Asker(host, "off", b"late").wait_asked().prove()
    zoo.wait_run("off", "late")
    second = Asker(host, "off", b"v1")
    assert second.whole() == b"\0"
    assert zoo.power("late") == "off", "the second was done before the first"
    assert first.answer() == b"\0" and v1.state() == "shut off"


def test_groups(site, libvirt, start_host, tmp_path):
    """What a client may do holds for either backend's domains, by name and by UUID."""
    libvirt.recover()
    zoo = Zoo(tmp_path / "zoo")
    for name in ("v1", "v2"):
        libvirt.domain(name)
    guest = site.guest()
    start_host([plugged(zoo, "a1", "a2", uuids={"a3": UUID})], backend="libvirt, agent", libvirt=libvirt.uri,
               extra=f'groups {{ group {{ ip = "{guest.ip}"; uuid = "v1"; uuid = "a1"; uuid = "{UUID}"; }} }}')
    for name in ("a1", "a3", UUID, "v1"):
        assert site.ask("-o", "off", "-H", name).rc == OK, name
    for name in ("a2", "v2"):
        assert site.ask("-o", "off", "-H", name).rc == DENIED, name
    assert [zoo.power(name) for name in ("a1", "a2", "a3")] == ["off", "on", "off"]
    assert {name for name, _ in listed(site.ask("-o", "list"))} == {"v1", "a1", "a3"}
    assert site.ask("-o", "off", "-H", "a1", node=site.place("other")).rc == DENIED


def test_many_at_once(site, libvirt, start_host, tmp_path):
    """Requests of one guest for machines of both, and the same one several times: each is done, and once."""
    libvirt.recover()
    zoo = Zoo(tmp_path / "zoo")
    mine, theirs = [f"v{n}" for n in range(1, 4)], [f"a{n}" for n in range(1, 7)]
    for name in mine:
        libvirt.domain(name)
    host = start_host([plugged(zoo, *theirs, mode="slow", max_running=3)], backend="libvirt, agent", libvirt=libvirt.uri)
    site.guest()
    wanted = [*mine, *theirs, *theirs[:2]]
    with concurrent.futures.ThreadPoolExecutor(len(wanted)) as pool:
        results = list(pool.map(lambda name: site.ask("-o", "off", "-H", name), wanted))
    assert [it.rc for it in results] == [OK] * len(wanted), results
    assert all(zoo.power(name) == "off" for name in theirs)
    assert all(libvirt.domain(name, start=False).state() == "shut off" for name in mine)
    assert sorted(run.plug for run in zoo.runs("off")) == theirs, "once each"
    host.wait_records(len(wanted), which=lambda it: it["result"] == "success")


def test_a_reload_says_what_needs_a_restart(site, two):
    text = two.host.config.read_text()
    two.host.config.write_text(text.replace('"a2"', '"a9"'))
    two.host.daemon.send_signal(signal.SIGHUP)
    two.host.daemon.wait_log(r"SIGHUP: the backends changed: that needs a restart")
    two.host.daemon.wait_log(r"the new configuration is in force")
    assert site.ask("-o", "status", "-H", "a2").rc == OK
    assert site.ask("-o", "status", "-H", "a9").rc == FAILED


def test_the_agent_backend_alone(site, start_host, tmp_path):
    """No libvirt anywhere; metrics and --status show the devices, and the page has them."""
    zoo = Zoo(tmp_path / "zoo")
    host = start_host([plugged(zoo, "a1"), plugged(zoo, "b1", mode="broken", name="bad", retries=0), plugged(zoo, "c1", name="spare")],
                      virtd={"metrics": "127.0.0.1:9229"})
    assert "libvirt" not in host.daemon.log
    assert site.ask("-o", "status", "-H", "a1").rc == OK
    assert site.ask("-o", "reboot", "-H", "a1").rc == OK
    assert site.ask("-o", "off", "-H", "b1").rc == FAILED
    assert site.ask("-o", "on", "-H", "nobody").rc == FAILED
    assert {name for name, _ in listed(site.ask("-o", "list"))} >= {"a1", "c1"}
    host.wait_records(5)
    text = metrics.text(host.node)
    assert 'fence_virtd_agent_device_up{device="rack"} 1' in text
    assert 'fence_virtd_agent_device_up{device="bad"} 0' in text
    assert 'fence_virtd_agent_runs_total{device="rack",action="off",result="exit_0"} 1' in text
    assert 'fence_virtd_agent_runs_total{device="rack",action="on",result="exit_0"} 1' in text
    assert re.search(r'fence_virtd_agent_runs_total\{device="bad",action="\w+",result="exit_2"\} ', text)
    assert 'fence_virtd_agent_run_seconds_count{device="rack",action="off"} 1' in text
    assert "libvirt_up" not in text and "a1" not in text, "a plug, which a peer may choose"
    families = set(re.findall(r"(?m)^# TYPE (fence_virtd_agent_\w+) ", text))
    page = {re.sub("_total$", "", it) for it in re.findall(r"(?m)^\| `(fence_virtd_\w+)`.*\| backend agent: ", PAGE.read_text())}
    assert families == page
    status = programs.run_daemon(host.node, "--status", "-f", host.config, program=programs.OURS_DIR / "fence_virtd")
    assert status.rc == 0, status
    assert re.search(r"(?m)^device rack: answers, \d+ runs$", status.out), status.out
    assert re.search(r"(?m)^device bad: DOES NOT ANSWER, \d+ runs$", status.out), status.out
