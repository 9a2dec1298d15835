# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command of our programs on the pages, run as it stands there: in code blocks, and in sentences.

The host has a key, a daemon with multicast, TCP and metrics, and domains by the names of the pages; fence_virtd is run there, the
agents in a guest. A command must end with 0. One that can't here has a row in `ENDS`, with the reason and the words that
it must say. So a new command on a page is run at once, and one that the programs don't take fails.
"""

import re
import shlex

import pytest

from lab import programs, testdriver

from .machines import KEY, Site

pytestmark = pytest.mark.skipif(programs.SIDE != "ours", reason="about our programs and our pages")

#: What a changelog quotes of earlier versions is no advice.
PAGES = [*sorted((programs.REPOSITORY / "docs").glob("*.md")), programs.REPOSITORY / "README.md", programs.REPOSITORY / "SECURITY.md"]
#: A call of ours at the start, after a root's prompt, or behind another command.
CALL = re.compile(r"(?:^|^# |[|&;] *)fence_(?:virtd|xvm|virt)(?= +-| *$| *[#|&;])")
DOMAINS = ["vm1", "vm2", "vm-n1", "vm-n2", "node2", "web1"]
ADDRESS = "192.168.122.1"
#: What stands for a value on the pages: {word: value}.
VALUES = {"NAME": "vm1", "…": "vm1", "UUID": testdriver.uuid_of("vm1"), "FILE": "/etc/fence_virt.conf", "HOST": "h2", "ADDRESS": "10.0.0.2",
          "KEY": "8c58"}

SERVES = "serves until it is ended"
NO_HOST = "no other host was ever heard: tests/observability/test_hosts.py and tests/elsewhere/test_peers.py forget some"
NO_VSOCK = "vsock of this machine leads outside; without a key nothing is sent. tests/guests/test_guests_vsock.py runs it in a guest"
#: Commands that do not end with 0 here: {how it begins: (the reason, exit code, words that it says)}.
ENDS = {
    "fence_virtd -F": (SERVES, 0, "run: serving"),
    "fence_virtd --forget": (NO_HOST, 1, ""),
    "fence_virt -S": (NO_VSOCK, 1, "/nonexistent does not exist"),
    "fence_virt --diagnose": ("there is no VM channel: tests/diagnose has one", 1, "10.0.2.179"),
}
#: Words that no command of a page may bring about.
USAGE = ("unknown option", "shows the options", "lists the options", "which is no option", "unknown action", "takes the name", "takes -f")


def commands():
    """{command: where it stands}, of all pages."""
    found = {}
    for page in PAGES:
        fenced = False
        for number, line in enumerate(page.read_text().splitlines(), 1):
            if line.lstrip().startswith("```"):
                fenced = not fenced
                continue
            is_block = fenced or line.startswith("    ") and not line.lstrip().startswith(("|", "- ", "* "))
            pieces = [line.strip()] if is_block else re.findall(r"`([^`]+)`", line)
            for piece in pieces:
                # A name alone, in a sentence, is the program's name.
                if CALL.search(piece) and (is_block or re.search(r"fence_\w+ +-", piece)):
                    found.setdefault(piece.removeprefix("# "), f"{page.name}:{number}")
    return found


COMMANDS = commands()


def test_the_pages_have_commands():
    """What the search for them finds, so that it finds something."""
    assert {"fence_xvm -o list", "fence_virtd --check", "fence_virt -S2 -o list", "printf 'action=reboot\\nplug=node2\\n' | fence_xvm"} \
        <= set(COMMANDS)


def test_each_end_is_on_a_page():
    unused = [begin for begin in ENDS if not any(command.startswith(begin) for command in COMMANDS)]
    assert not unused


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """See the module's head."""
    with Site(tmp_path_factory.mktemp("pages"), "ours", DOMAINS) as site:
        site.share_key()
        site.host.place.ip_cmd(f"addr add {ADDRESS}/24 dev eth0")
        site.guest.place.ip_cmd(f"route add {ADDRESS}/32 dev eth0 src {site.guest.ip}")
        site.host.path("/run/fence_virtd").mkdir()
        site.serve(f"""fence_virtd {{ listener = "multicast, tcp"; backend = "libvirt"; metrics = "unix:/run/fence_virtd/metrics"; }}
            listeners {{ multicast {{ interface = "eth0"; }} tcp {{ address = "{ADDRESS}"; }} }}
            backends {{ libvirt {{ uri = "{site.uri}"; }} }}""")
        site.spare = site.machine("spare")
        yield site
        site.spare.kill()


def runnable(command):
    """The command with a value for each word that stands for one."""
    return re.sub(r"(?<![\w/.-])(?:" + "|".join(VALUES) + r")(?![\w/.-])", lambda found: VALUES[found[0]], command)


@pytest.mark.parametrize("command", COMMANDS, ids=[f"{where} {command}" for command, where in COMMANDS.items()])
def test_command(site, command):
    begin = next((it for it in ENDS if command.startswith(it)), None)
    _, code, words = ENDS.get(begin, ("", 0, ""))
    line, stdin = runnable(command), None
    machine = site.host if "fence_virtd " in command else site.guest
    if re.search("--keygen| -F| -c$", command):
        # What makes files, or serves, does so beside the daemon.
        machine = site.spare
        machine.run("sh", "-c", "rm -rf /etc/cluster /etc/fence_virt.conf")
    if " -c" in command and machine is site.spare:
        stdin = "y\n" + "\n" * 8 + "y\n\n"
    elif " -F" in command:
        machine.path("/etc/cluster").mkdir()
        machine.write(KEY, site.host.path(KEY).read_bytes())
        programs.write_config(machine.path("/etc/fence_virt.conf"), site.conf())
        line = f"timeout --preserve-status 5 {line}"
    elif "-S2" in command:
        line += " -k /nonexistent"
    elif named := re.search(r"-[Hn] (\S+)", line):
        # The commands before this one may have powered it off.
        site.guest.run("fence_xvm", "-o", "on", "-H", named[1])
    done = machine.ask("sh", "-c", line, stdin=stdin, timeout=120)
    said = done.out + done.err
    assert not any(it in said for it in USAGE), f"{command}: {said}"
    assert done.rc == code, f"{shlex.quote(line)} ended with {done.rc}: {said}"
    assert words in said, said
