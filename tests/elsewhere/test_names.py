# SPDX-License-Identifier: GPL-2.0-or-later
"""Two domains with one name and different UUIDs: the name is off only if both are."""

import pathlib

import pytest

from lab.hypervisor import until

from .hosts import FAILED, OFF, OK, PATIENCE, Tally, uuid_of
from .test_migrations import settle

#: Another domain, also called x.
OTHER = "0f5f1c36-6f5c-4c08-8d8f-2f6a3a3f7e11"


@pytest.fixture
def pair(hosts):
    """h1 and h2 with our daemons, which know of each other. Nobody asks h3."""
    hosts.serve("h1", "h2")
    return hosts


def migrates(hosts, here):
    """x goes to h3."""
    settle(hosts, here.migrate("x", hosts.h3))


def is_saved(hosts, here):
    """x goes to h3 by a file."""
    file = here.directory / "memory"
    here.hypervisor.virsh("save", "x", file)
    hosts.h3.hypervisor.virsh("restore", file)


def held(hosts, tally, *actions):
    """No host calls x off."""
    for action in actions or ("status", "off", "reboot"):
        answer = hosts.ask(action, "x")
        assert answer.rc == FAILED, f"{action}: {answer.result}\n{hosts.logs()}"
        if action != "reboot":
            tally.add(answer)
    assert hosts.where("x") == ["h3"]


@pytest.mark.parametrize("leaves", [migrates, is_saved], ids=["migrated", "saved"])
def test_a_namesake_that_left_for_a_host_that_nobody_asks(pair, note, leaves):
    """The definition at h1 is off; the other x left h2, and runs at h3."""
    tally = Tally(note)
    pair.h1.has("x", uuid=OTHER, start=False)
    pair.h2.has("x")
    leaves(pair, pair.h2)
    held(pair, tally)
    why = pair.h1.records()[-1]["reason"]
    assert all(word in why for word in ("another domain", pair.h2.name, "`peers`", OTHER)), why
    # By its UUID each is asked about alone.
    assert pair.ask("status", OTHER, "-u").rc == OFF, pair.logs()
    assert pair.ask("status", uuid_of("x"), "-u").rc == FAILED, pair.logs()
    # It comes back, and ends where somebody looks.
    pair.h3.hypervisor.virsh("destroy", "x")
    pair.h2.hypervisor.virsh("start", "x")
    pair.h2.hypervisor.virsh("destroy", "x")
    until(lambda: pair.ask("status", "x").rc == OFF, PATIENCE, f"both are off\n{pair.logs()}")
    assert pair.ask("off", "x").rc == OK, pair.logs()
    tally.none(pair.logs())


def test_a_name_that_is_the_uuid_of_a_machine_elsewhere(pair, note):
    """x runs at h1; h2 has a domain that is called as x's UUID, off."""
    tally, target = Tally(note), uuid_of("x")
    pair.h2.has(target, uuid=OTHER, start=False)
    for action in ("status", "off") * 3:
        pair.h1.has("x")
        # The call-back of one of the two comes first.
        before = pair.h1.processes("x")
        answer = pair.ask(action, target)
        still = [pid for pid in pair.h1.processes("x") if pid in before]
        tally.add(answer, f"{action}: x runs" if answer.says_off() and still else None)
    pair.h1.has("x")
    pair.h1.does_not_call_back()
    for action in ("status", "off", "reboot"):
        assert pair.ask(action, target).rc == FAILED, pair.logs()
    assert pair.where("x") == ["h1"]
    why = pair.h2.records()[-1]["reason"]
    assert pair.h1.name in why and target in why, why
    tally.none(pair.logs())


def test_a_name_that_is_given_to_a_new_domain(pair, note):
    """x without a definition left h1 for h3, and h1 has another x since. So it stays over a start of fence_virtd."""
    tally = Tally(note)
    here = pair.h1
    pair.h2.does_not_call_back()
    here.has("x", transient=True)
    migrates(pair, here)
    here.has("x", uuid=OTHER, start=False)
    held(pair, tally, "status")
    here.serve_again()
    held(pair, tally, "status", "off")
    tally.none(pair.logs())
    # It is gone for good: what the page says to do then.
    pair.h3.hypervisor.virsh("destroy", "x")
    here.stop_serving()
    file = pathlib.Path(f"{here._config}.state/moves")
    file.write_text("".join(it for it in file.read_text().splitlines(True) if uuid_of("x") not in it))
    here.serve_again()
    assert pair.ask("status", "x").rc == OFF, pair.logs()


def test_a_namesake_that_ended_where_somebody_looks(pair):
    """x moved from h1 to h2 and ended there; its definitions are gone, and h1 has another x since."""
    here, there = pair.h1, pair.h2
    there.does_not_call_back()
    here.has("x", transient=True)
    said = settle(pair, here.migrate("x", there))
    assert pair.where("x") == ["h2"], f"{said}\n{pair.logs()}"
    there.hypervisor.virsh("destroy", "x")
    here.has("x", uuid=OTHER, start=False)
    until(lambda: pair.ask("status", "x").rc == OFF, PATIENCE, f"both are off\n{pair.logs()}")
    assert [pair.ask(it, "x").rc for it in ("off", "on")] == [OK, OK], pair.logs()
    assert here.state("x") == "running"


def test_more_older_machines_than_one_answer_tells(pair):
    """Four older x left h2 for h1 and ended there, which h1 saw; now h1 has a new x. An answer tells of three: h2 looks for them itself."""
    here, there = pair.h1, pair.h2
    older = [OTHER[:-1] + str(it) for it in range(2, 6)]
    for uuid in older:
        there.has("x", uuid=uuid, transient=True)
        settle(pair, there.migrate("x", here))
        here.hypervisor.virsh("destroy", "x")
    here.has("x", start=False)
    until(lambda: pair.ask("status", "x").rc == OFF, PATIENCE, f"all are off\n{pair.logs()}")
    assert [pair.ask(it, "x").rc for it in ("off", "on")] == [OK, OK], pair.logs()
    assert here.state("x") == "running"
    # The moves are over for good, also for the next daemon.
    file = pathlib.Path(f"{there._config}.state/moves")
    until(lambda: not any(it in file.read_text() for it in older), PATIENCE, "the file forgets them")


def test_older_machines_that_nobody_saw_end_hold_up_no_request_by_uuid(pair):
    """Four older x were saved at h2, and may be restored anywhere; h1 has a new x. An answer between hosts has room for three of them."""
    for number in range(2, 6):
        pair.h2.has("x", uuid=f"{OTHER[:-1]}{number}", transient=True)
        pair.h2.hypervisor.virsh("save", "x", pair.h2.directory / f"memory-{number}")
    pair.h1.has("x", start=False)
    assert pair.ask("status", "x").rc == FAILED, pair.logs()
    assert pair.ask("status", uuid_of("x"), "-u").rc == OFF, pair.logs()
    assert [pair.ask(it, uuid_of("x"), "-u").rc for it in ("off", "on")] == [OK, OK], pair.logs()
    assert pair.h1.state("x") == "running"
