#!/usr/bin/python3 -ES
# SPDX-License-Identifier: GPL-2.0-or-later
"""A fence agent that is bad in the way that its file's name says: `fence_bad_MODE`.

Its machines are files beside it, `state/PLUG` with "on" or "off": that is the truth. Every run leaves a line in `state/runs`
(pid, start of the process, action, plug), every child that it starts one too, so that a case can see what is left.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(os.path.abspath(sys.argv[0])).parent
MODE = pathlib.Path(sys.argv[0]).name.removeprefix("fence_bad_")
STATE = HERE / "state"
ON, FAILED, OFF = 0, 1, 2

METADATA = """<?xml version="1.0" ?>
<resource-agent name="fence_bad" shortdesc="Not good">
<parameters>
<parameter name="action"><content type="string" default="reboot"/></parameter>
<parameter name="plug" required="1"><content type="string"/></parameter>
<parameter name="password"><content type="string"/></parameter>
</parameters>
<actions>
<action name="on"/><action name="off"/><action name="reboot"/><action name="status"/>
<action name="monitor"/><action name="list"/><action name="metadata"/>
</actions>
</resource-agent>"""

#: Modes that are bad in every action, metadata and monitor too.
ALWAYS = {"broken", "mute", "deaf"}


def main():
    if MODE in ALWAYS:
        note("always", "")
        return BAD[MODE]("always", "", {})
    options = dict(line.rstrip("\n").split("=", 1) for line in sys.stdin if "=" in line)
    if len(sys.argv) > 1:
        options["action"] = sys.argv[-1]
    action, plug = options.get("action", "reboot"), options.get("plug", "")
    note(action, plug)
    if action == "metadata":
        return METADATAS.get(MODE, metadata)()
    return BAD.get(MODE, good)(action, plug, options)


def note(action, plug, pid=None):
    """One line in `state/runs`, in one write."""
    pid = pid or os.getpid()
    with open(f"/proc/{pid}/stat") as f:
        start = f.read().rpartition(")")[2].split()[19]
    fd = os.open(STATE / "runs", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{pid} {start} {action} {plug}\n".encode())
    os.close(fd)


def power(plug, to=None):
    """The machine's state; sets it where `to` says so. Written beside and renamed, so that no reader sees it empty."""
    file = STATE / plug
    if to:
        new = STATE / f".{plug}.{os.getpid()}"
        new.write_text(to)
        new.rename(file)
    return file.read_text()


def runs(action, plug):
    """How often it was run so, this time too."""
    return sum(line.split()[2:] == [action, plug] for line in (STATE / "runs").read_text().splitlines())


# -- the good way -----------------------------------------------------------------------------------------


def metadata():
    print(METADATA)
    return 0


def good(action, plug, options):
    match action:
        case "on" | "off":
            power(plug, action)
            return 0
        case "status":
            return {"on": ON, "off": OFF}[power(plug)]
        case "monitor":
            return 0
        case "list":
            print("\n".join(f"{it.name}," for it in sorted(STATE.iterdir()) if it.name[0] != "." and it.name != "runs"))
            return 0
    return FAILED


def only(actions):
    """A mode that is good but for these actions."""
    def mode(bad):
        def run(action, plug, options):
            return (bad if action in actions else good)(action, plug, options)
        BAD[bad.__name__] = run
        return bad
    return mode


def child(what):
    """A process that sleeps for ever, noted; `what`: how it gets away."""
    if what == "group":
        it = subprocess.Popen(["sleep", "3600"])
    elif what == "clean":
        # As sudo does it: nothing of our environment.
        it = subprocess.Popen(["sleep", "3600"], env={})
    elif what == "session":
        it = subprocess.Popen(["sleep", "3600"], start_new_session=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    else:
        return orphan(what, ["sleep", "3600"], {} if what == "lost" else os.environ)
    note("child", what, it.pid)


def orphan(what, command, environment):
    """As a daemon does it: two forks, a session of its own, nobody's child."""
    read, write = os.pipe()
    first = os.fork()
    if first == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            note("child", what)
            os.write(write, b"x")
            os.execve(f"/usr/bin/{command[0]}", command, environment)
        os._exit(0)
    os.waitpid(first, 0)
    os.read(read, 1)


def for_ever():
    while True:
        time.sleep(3600)


# -- the bad ways -----------------------------------------------------------------------------------------

BAD, METADATAS = {}, {}
#: In which ways children get away. The last one has nothing in common with the agent but its ancestors.
WAYS = ("group", "clean", "session", "daemon", "lost")


def broken(*_):
    """As an interpreter that can't read its script, and as argparse."""
    print("usage: fence_bad [-h]\nfence_bad: error: unrecognized arguments", file=sys.stderr)
    return 2


def mute(*_):
    """Hangs whatever it is asked."""
    for_ever()


def deaf(*_):
    """Wants to know nothing: what it is told finds a closed pipe."""
    os.close(0)
    time.sleep(0.2)
    print("I have no time for this", file=sys.stderr)
    return 1


BAD.update(broken=broken, mute=mute, deaf=deaf)


@only({"off"})
def hangs(*_):
    for_ever()


def fails_late(why):
    """Long enough that the order may have been given."""
    time.sleep(2.5)
    print(f"Failed: {why}", file=sys.stderr)
    return FAILED


@only({"off"})
def waits(*_):
    """Gives the order, and gives up waiting for its effect."""
    return fails_late("Timed out waiting to power OFF")


@only({"off", "status", "monitor"})
def away(*_):
    """Can't reach its device, and needs some time to say so."""
    return fails_late("Unable to connect/login to fencing device")


@only({"off"})
def unsure(*_):
    """Fails late, and does not say whether the order was given."""
    return fails_late("Connection lost")


@only({"off", "status", "monitor"})
def breaks(*_):
    """Fails, and can't tell: its connection breaks. It never worked, so nobody waits for it to get well."""
    print("connection lost", file=sys.stderr)
    return FAILED


@only({"off"})
def stubborn(*_):
    """No signal but the last one ends it, nor its child."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    child("group")
    for_ever()


@only({"status"})
def silent(action, plug, options):
    """Does what it is told and never says how it stands."""
    for_ever()


@only({"off"})
def forks(*_):
    """Hangs, and so do those that it started in all ways there are."""
    for what in WAYS:
        child(what)
    for_ever()


@only({"off"})
def litters(action, plug, options):
    """Works, and leaves children that hold its output open."""
    for what in WAYS:
        child(what)
    return good(action, plug, options)


@only({"off"})
def delegates(action, plug, options):
    """Has somebody do it who is nobody's child and has cleared the environment, as soon as `state/.go` is there."""
    do = f"while [ ! -e {STATE}/.go ]; do sleep 0.1; done; echo off > {STATE}/{plug}; sleep 3600"
    orphan("lost", ["sh", "-c", do], {"PATH": "/usr/bin:/bin"})
    for_ever()


@only({"off"})
def floods(*_):
    """Both outputs without end."""
    if os.fork() == 0:
        note("child", "flood")
        while True:
            os.write(2, b"\x1b[31mE" * 8192)
    while True:
        os.write(1, b"more and more\n" * 4096)


@only({"on"})
def lingers(action, plug, options):
    """Does it at once, and returns much later."""
    good(action, plug, options)
    time.sleep(6)
    return 0


@only({"status"})
def ponders(action, plug, options):
    """Knows how it stands, and needs some time for it."""
    time.sleep(3.5)
    return good(action, plug, options)


@only({"off", "status"})
def talks(action, plug, options):
    """Ten megabytes, and then the right thing."""
    for _ in range(160):
        os.write(1, b"x" * 65536)
        os.write(2, b"y\n" * 2048)
    return good(action, plug, options)


@only({"off"})
def lies(*_):
    print("Success: Powered OFF")
    return 0


@only({"off"})
def denies(action, plug, options):
    """Does it, and says that it failed."""
    good(action, plug, options)
    print("Failed: Timed out waiting to power OFF", file=sys.stderr)
    return 1


@only({"off"})
def twos(action, plug, options):
    """Does nothing and ends with what means "off" for a status."""
    return 2


@only({"off", "status"})
def tells(action, plug, options):
    """Shows all that it was told, as agents do when they are verbose."""
    secret = options["password"]
    print(f"login {secret}; again: {secret}{secret}")
    sys.stdout.flush()
    # In two pieces.
    os.write(2, f"POST /login?password={secret[:5]}".encode())
    time.sleep(0.1)
    os.write(2, f"{secret[5:]}\n".encode())
    return good(action, plug, options)


@only({"off", "status"})
def paints(action, plug, options):
    """What a terminal would act on."""
    os.write(1, b"\x1b]0;owned\x07\x1b[2J\x1b[1;1Hall is well\r\n\x00\x9b31m\xff\xfe \xe2\x80\xaegnirts\n")
    os.write(2, b"\x1b[8mhidden\x1b[0m\n2026-11-21T00:00:00Z  INFO audit: forged record id=1 result=success\n")
    return good(action, plug, options)


@only({"off"})
def dies(*_):
    os.kill(os.getpid(), signal.SIGSEGV)
    for_ever()


@only({"status"})
def faints(action, plug, options):
    """Its looks end by a signal, each other time."""
    if runs("status", plug) % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return good(action, plug, options)


@only({"off", "status"})
def late(action, plug, options):
    """Says done, and is done a while after: by its endpoint, so that it is nothing of its own that lives on."""
    asked = STATE / f".asked-{plug}"
    if action == "off":
        asked.touch()
        return 0
    if asked.exists() and time.time() - asked.stat().st_mtime > 2:
        power(plug, "off")
    return good(action, plug, options)


@only({"off"})
def slow(action, plug, options):
    time.sleep(2)
    return good(action, plug, options)


@only({"status"})
def fickle(action, plug, options):
    """Another answer each time; only each fifth is one."""
    answers = [1, 127, 3, 255]
    number = runs("status", plug) % 5
    return answers[number - 1] if number else good(action, plug, options)


def no_metadata():
    print("unknown action", file=sys.stderr)
    return 1


def wrong_metadata():
    print("<resource-agent name='x'><parameters><parameter name=</resource-agent>")
    return 0


def bomb_metadata():
    """Ten entities, each ten times the one before."""
    entities = '<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(10))
    print(f'<?xml version="1.0"?><!DOCTYPE r [{entities}]><resource-agent name="&k;"/>')
    return 0


def huge_metadata():
    print("<resource-agent>" + "<parameter/>" * 1_000_000)
    return 0


METADATAS.update(shy=no_metadata, garbles=wrong_metadata, bombs=bomb_metadata, bloats=huge_metadata)

if __name__ == "__main__":
    sys.exit(main())
