# SPDX-License-Identifier: GPL-2.0-or-later
"""fence_virtd --check and the devices of the agent backend: each line passes where all is well, and fails for its own reason."""

import os
import time

import pytest

from lab import programs

from test_check import failed, of

#: An agent that does as the names of its options say.
AGENT = """#!/bin/sh
action=none
while read -r line; do
    case "$line" in
    action=*) action=${line#action=};;
    mood=*) mood=${line#mood=};;
    password=*) password=${line#password=};;
    esac
done
echo "$action" >> %(calls)s
case "$action $mood" in
"metadata "*)
    [ -e %(silent)s ] && exit 1
    parameters='mood password ip ca_file %(plug)s'
    actions='on off status monitor %(list)s'
    echo '<resource-agent name="fence_test"><parameters>'
    for it in $parameters; do echo "<parameter name=\\"$it\\"/>"; done
    echo '</parameters><actions>'
    for it in $actions; do echo "<action name=\\"$it\\"/>"; done
    echo '</actions></resource-agent>';;
"monitor hangs") sleep 1000;;
"monitor talks") printf 'login as \\033[31m%%s refused\\n' "$password" >&2; exit 1;;
"list empty") ;;
"list broken") exit 1;;
list*) echo 101,web1; echo 102,web2;;
*) exit 0;;
esac
"""
SECRET = "geheim & lang"


@pytest.fixture
def site(setup):
    """setup, with site(devices, …): what --check finds for these devices."""
    return Site(setup)


class Site:
    def __init__(self, setup):
        self.setup, self.directory = setup, setup.directory
        self.calls = setup.directory / "calls"
        self.password = programs.write_key(setup.directory / "password", f"{SECRET}\n".encode())
        self.agent = self.make("fence_test")

    def make(self, name, *, plug="plug", lists="list", silent=False):
        path = self.directory / name
        path.write_text(AGENT % {"calls": self.calls, "plug": plug, "list": lists,
                                 "silent": "/" if silent else "/nonexistent"})
        path.chmod(0o755)
        return path

    def device(self, name="one", *, agent=None, plugs="*", keys="", **options):
        options = " ".join(f'{key} = "{value}";' for key, value in options.items())
        return f'device = "{name}" {{ agent = "{agent or self.agent}"; plugs = "{plugs}"; {keys} options {{ {options} }} }}'

    def write(self, *devices):
        programs.write_config(self.setup.file, f"""
            fence_virtd {{ listener = "tcp"; backend = "agent"; }}
            listeners {{ tcp {{ key_file = "{self.setup.key}"; address = "0.0.0.0"; }} }}
            backends {{ agent {{ {" ".join(devices)} }} }}""")

    def check(self, *devices):
        self.write(*devices)
        rc, found = self.setup.check()
        assert SECRET not in str(found), found
        return rc, found


def test_whose_requests_are_known(site):
    """Each machine with a source, with its cards in order; no word where there is none."""
    cards = 'domain = "web1" { plug = "101"; source = "52:54:00:AB:00:02 52:54:00:ab:00:01"; }'
    rc, found = site.check(site.device(keys=cards, password_file=site.password))
    assert rc == 0 and not failed(found), found
    text = of(found, "source", "")["text"]
    assert text.startswith("known by the network card, by multicast: web1 (52:54:00:ab:00:01, 52:54:00:ab:00:02); "), text
    _, found = site.check(site.device(password_file=site.password))
    assert "source" not in {check for check, _ in found}, found


def test_all_is_well(site):
    rc, found = site.check(site.device(password_file=site.password, ip="::1"), site.device("two", plugs="web1:101, w:102"))
    assert rc == 0 and not failed(found), found
    for name in ("one", "two"):
        it = of(found, "agent", name)
        assert it["text"].startswith(f"{site.agent}: monitor is well, ") and it["text"].endswith(" ms")
        assert of(found, "plugs", name)["text"] == "its list has 2 plugs"
    assert of(found, "secret", "one: password_file")["text"] == f"{site.password} can be read"
    # Nothing was done to anybody.
    assert set(site.calls.read_text().split()) == {"metadata", "monitor", "list"}


def test_an_agent_that_is_not_there_or_not_safe(site):
    rc, found = site.check(site.device(agent="fence_nosuch"))
    it = of(found, "agent", "one")
    assert rc == 1 and it["text"].startswith("no fence_nosuch in /usr/sbin, ") and "fence-agents" in it["next"]
    for change, text in [(lambda: site.agent.chmod(0o777), "chmod go-w"), (lambda: site.agent.chmod(0o644), "is no program"),
                         (lambda: (site.agent.chmod(0o755), os.chown(site.agent, 65534, 65534)), "belongs to user 65534")]:
        change()
        rc, found = site.check(site.device())
        assert rc == 1 and text in of(found, "agent", "one")["text"], found
    assert not site.calls.exists()


def test_a_monitor_that_fails_says_why(site):
    rc, found = site.check(site.device(mood="talks", password_file=site.password))
    it = of(found, "agent", "one")
    assert rc == 1 and failed(found) == {"agent"}
    assert it["text"] == f"{site.agent}: monitor: exit 1: login as \\x1b[31m*** refused" and "When it fails" in it["next"], it
    text = site.setup.run("--check", "-f", site.setup.file).out
    assert it["text"] in text and SECRET not in text and "\x1b" not in text
    # What follows from a login is not looked at.
    assert not [it for it in found if it[0] == "plugs"]


def test_one_that_hangs_holds_up_no_other(site):
    hanging = [site.device(f"slow-{number:02}", mood="hangs", plugs=f"slow-{number:02}", keys='status_timeout = "2";') for number in range(20)]
    start = time.monotonic()
    site.write(*hanging, site.device("quick", plugs="web1"))
    rc, found = site.setup.check()
    # One after the other they would take 40 s.
    assert time.monotonic() - start < 35
    assert rc == 1 and of(found, "agent", "quick")["result"] == "ok"
    for number in range(20):
        it = of(found, "agent", f"slow-{number:02}")
        assert "killed" in it["text"], it


def test_options_that_the_agent_has_not(site):
    rc, found = site.check(site.device(mod="x", passwrd_file=site.password, nonsense="1", keys='plug_option = "system";'))
    assert rc == 0, found
    assert of(found, "option", "one: mod")["next"] == "did you mean mood?"
    assert of(found, "option", "one: passwrd")["next"] == "did you mean password?"
    assert "did you mean" not in of(found, "option", "one: nonsense")["next"]
    assert of(found, "option", "one: system")["result"] == "warning"


def test_a_secret_that_the_agent_does_not_take(site):
    """Agents of the project's library write what they don't know into the syslog, secret or not: they are not run with it."""
    agent = site.make("fence_lib", plug="plug plug_separator")
    for options in ({"passwrd_file": site.password}, {"passwrd": SECRET}):
        site.calls.unlink(missing_ok=True)
        rc, found = site.check(site.device(agent=agent, **options))
        it = of(found, "agent", "one")
        assert rc == 1 and "its agent has no option passwrd, and would write its value into the system's log" in it["text"], it
        assert of(found, "option", "one: passwrd")["next"] == "did you mean password?"
        assert site.calls.read_text().split() == ["metadata"]


def test_secrets(site):
    rc, found = site.check(site.device(password=SECRET))
    it = of(found, "secret", "one: password")
    assert rc == 0 and it["result"] == "warning" and "password_file = " in it["next"]
    for spoil, text, step in [
            (lambda: site.password.chmod(0o640), "chmod 600", "chmod 600"),
            (lambda: os.chown(site.password, 65534, -1), "belongs to user", "chown root"),
            (lambda: site.password.write_text("\n"), "is empty", "write the value, such as the password"),
            (site.password.unlink, "No such file", "install -m 600")]:
        programs.write_key(site.password, SECRET.encode())
        os.chown(site.password, 0, 0)
        site.password.chmod(0o600)
        spoil()
        rc, found = site.check(site.device(password_file=site.password))
        assert rc == 1 and failed(found) == {"agent", "secret"}, found
        it = of(found, "secret", "one: password_file")
        assert text in it["text"] and str(site.password) in it["text"] and step in it["next"], it
        assert of(found, "agent", "one")["next"] == "mend the file that is named below"


def test_files_that_the_agent_reads_itself(site):
    rc, found = site.check(site.device(ca_file="/nonexistent/ca"))
    assert rc == 1 and of(found, "file", "one: ca_file")["text"].startswith("/nonexistent/ca: ")
    rc, found = site.check(site.device(ca_file=site.setup.file))
    assert rc == 0 and of(found, "file", "one: ca_file")["result"] in ("ok", "warning")


def test_plugs(site):
    no_plug, no_list = site.make("fence_board", plug=""), site.make("fence_blind", lists="")
    rc, found = site.check(site.device(agent=no_list))
    assert rc == 1 and of(found, "plugs", "one")["text"] == 'plugs = "*", but its agent has no list'
    rc, found = site.check(site.device(agent=no_plug))
    assert rc == 1 and of(found, "plugs", "one")["text"] == "its agent takes no plug, so it has no list"
    rc, found = site.check(site.device(agent=no_plug, plugs="a, b"))
    it = of(found, "plugs", "one")
    assert rc == 1 and "for each of 2 domains" in it["text"] and "plug_option" in it["next"]
    rc, found = site.check(site.device(agent=no_plug, plugs="a, b", keys='plug_option = "ip";'), site.device("two", agent=no_plug, plugs="c"))
    assert rc == 0, found
    rc, found = site.check(site.device(plugs="web1, web3:103, web2:102"))
    it = of(found, "plugs", "one")
    assert rc == 0 and it["result"] == "warning" and it["text"] == "not in its list: web3"
    rc, found = site.check(site.device(mood="empty"))
    assert rc == 0 and of(found, "plugs", "one")["text"] == "its list is empty"
    rc, found = site.check(site.device(mood="broken"))
    assert rc == 1 and "exit 1" in of(found, "plugs", "one")["text"]


def test_an_agent_without_metadata(site):
    agent = site.make("fence_own", silent=True)
    rc, found = site.check(site.device(agent=agent, anything="1"))
    it = of(found, "agent", "one")
    assert rc == 0 and it["result"] == "warning" and "has no metadata" in it["text"], found
    assert not [it for it in found if it[0] == "option"]


def test_members_of_a_pool(site):
    """Of which one is its master: the others say no, and that is no failure."""
    rc, found = site.check(site.device("first", mood="talks"), site.device("second"), site.device("third", mood="talks", plugs="web1:101"))
    assert rc == 0, found
    for name in ("first", "third"):
        it = of(found, "agent", name)
        assert it["result"] == "warning" and it["next"].startswith("second serves the same and is well"), it
    rc, found = site.check(site.device("first", mood="talks"), site.device("second", plugs="web1:101"))
    assert rc == 1 and of(found, "agent", "first")["result"] == "failed"
