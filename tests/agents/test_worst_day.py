# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong around the agents: libraries that go away, daemons that are killed, secrets that are told in passing."""

import os
import signal

import pytest
from lab import net

from .rig import FAILED, OK, Host, device
from .zoo import Zoo

#: A password that nobody may see.
SECRET = "correct-horse-battery"

#: Reads its options into variables, as agents without a library do.
READ = 'while read -r line; do case $line in action=*) action=${line#*=};; password=*) password=${line#*=};; esac; done'


def agent(path, text):
    """An agent of somebody's own."""
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("wrapped", [False, True], ids=["shell", "python"])
def test_a_library_that_goes_away_is_no_machine_that_goes_off(site, start_host, tmp_path, wrapped):
    """The agent stays the same file and worked a moment ago; now a shell without its library, and Python without its script,
    end with 2, as a status of "off" does."""
    library = tmp_path / "library"
    act = f"case $action in off) rm {library}; exit 1;; metadata) exit 1;; esac"
    if wrapped:
        library.write_text("import sys\nsys.exit(0)\n")
        text = f"#!/bin/sh\n{READ}\n{act}\nexec python3 {library}\n"
    else:
        library.write_text(f"{READ}\n")
        text = f"#!/bin/sh\n. {library}\n{act}\nexit 0\n"
    host = start_host([device("bmc", agent(tmp_path / "fence_own", text), "node1", timeout=4, status_timeout=4,
                              retries=0)])
    assert site.ask("-o", "status", "-H", "node1").rc == OK
    assert site.ask("-o", "off", "-H", "node1").rc == FAILED
    runs = host.runs("off")
    assert any(run["action"] == "status" and run["exit"] == 2 for run in runs), runs
    # Nor is it off already for the next one.
    assert site.ask("-o", "status", "-H", "node1").rc == FAILED


def test_what_a_killed_daemon_had_begun_ends_with_it(site, tmp_path):
    """An `off` that still hangs must not be carried out when nobody knows of it any more."""
    zoo = Zoo(tmp_path / "zoo")
    host = Host(site, tmp_path / "host", [zoo.device("forks", timeout=20, retries=0)])
    shot = site.ask("-o", "off", "-H", "forks", wait=False)
    net.wait_until(lambda: len(zoo.runs("child")) == 5)
    assert zoo.left(), "there is nothing to be ended"
    host.daemon.stop(signal.SIGKILL)
    zoo.wait_nothing_left()
    assert shot.finish(1).rc != OK


def test_what_was_killed_with_all_supervisors_ends_with_the_next_start(site, tmp_path):
    """Daemon and supervisor at once, as somebody does who kills by name."""
    zoo = Zoo(tmp_path / "zoo")
    host = Host(site, tmp_path / "host", [zoo.device("stubborn", timeout=20, retries=0)])
    shot = site.ask("-o", "off", "-H", "stubborn", wait=False)
    net.wait_until(lambda: zoo.runs("child"))
    # The daemon must not see that its supervisor has gone.
    host.daemon.send_signal(signal.SIGSTOP)
    os.kill(zoo.runs("off")[0].parent(), signal.SIGKILL)
    host.daemon.stop(signal.SIGKILL)
    assert zoo.left(), "there is nothing to be ended"
    assert shot.finish(1).rc != OK
    host = Host(site, tmp_path / "host", [zoo.device("good")])
    zoo.wait_nothing_left()
    host.stop()


@pytest.mark.parametrize("before", ["on", "off"])
def test_what_a_killed_daemon_owes_a_machine_is_made_good(site, tmp_path, before):
    """Killed after the power-off of a reboot, before any status has shown it: the next start looks, and starts the machine. One
    that was off is owed nothing."""
    state, held = tmp_path / "state", tmp_path / "held"
    state.write_text(before)
    # Once the daemon has told it to go off, no status comes back before the daemon is gone.
    text = (f"#!/bin/sh\n{READ}\ncase $action in\n"
            f"off) echo off > {state}; touch {held}; exit 0;;\non) echo on > {state}; exit 0;;\n"
            f"monitor) exit 0;;\nstatus) while [ -e {held} ]; do sleep 0.1; done; [ $(cat {state}) = on ] && exit 0; exit 2;;\nesac\nexit 1\n")
    devices = [device("bmc", agent(tmp_path / "fence_own", text), "node1", retries=0)]
    host = Host(site, tmp_path / "host", devices)
    shot = site.ask("-o", "reboot", "-H", "node1", wait=False)
    if before == "on":
        net.wait_until(held.exists)
        host.daemon.stop(signal.SIGKILL)
        assert shot.finish(1).rc != OK
        held.unlink()
    else:
        assert shot.finish(30).rc == OK
        host.daemon.stop(signal.SIGKILL)
    host = Host(site, tmp_path / "host", devices)
    if before == "on":
        net.wait_until(lambda: state.read_text().strip() == "on")
        reason = host.record("reboot")["reason"]
        assert reason.startswith("was under way when the daemon ended; the start that the reboot owed is made good (fence_virtd was killed")
    assert site.ask("-o", "status", "-H", "node1").rc == (OK if before == "on" else 2)
    host.stop()


def test_a_secret_in_a_list_is_nobodys_name(site, start_host, tmp_path):
    """What an agent says in passing while it lists would be a name that guests are told, and that stands in the log."""
    text = (f'#!/bin/sh\n{READ}\ncase $action in list) echo "login with $password"; echo "node1,web"; exit 0;; '
            f'metadata) exit 1;; esac; exit 0\n')
    password = {"password_file": site.secret(SECRET)}
    start_host([device("pool", agent(tmp_path / "fence_own", text), options=password)])
    names = site.ask("-o", "list")
    assert names.rc == OK and "web" in names.out and SECRET not in names.out + names.err
    assert site.ask("-o", "status", "-H", "web").rc == OK


def test_errors_in_the_configuration_tell_no_secret(site, start_host, tmp_path):
    """A reload writes what is wrong, with the line, to the log."""
    text = agent(tmp_path / "fence_own", "#!/bin/sh\nexit 0\n")
    host = start_host([device("bmc", text, "node1", options={"password": SECRET})])
    site.secret(SECRET)
    host.config.write_text(host.config.read_text().replace(f'"{SECRET}"', f'"{SECRET}" bogus'))
    host.daemon.send_signal(signal.SIGHUP)
    host.daemon.wait_log("SIGHUP: the new configuration is refused")
    assert "password = ***" in host.daemon.log and SECRET not in host.daemon.log
