# SPDX-License-Identifier: GPL-2.0-or-later
"""Key files that will not do: every program says which, why and what to type, and changes nothing by itself."""

import os
import re
import signal

import pytest

from conftest import OURS_VIRT, OURS_VIRTD, OURS_XVM
from lab import metrics, programs, testdriver, wire

SECRET = b"a secret that is long enough"


def written(path, content=SECRET, mode=0o600):
    path.write_bytes(content)
    path.chmod(mode)
    return path


def fifo(path):
    os.mkfifo(path, 0o600)
    return path


def directory(path):
    path.mkdir(mode=0o700)
    return path


def link(path, to):
    path.symlink_to(to)
    return path


#: name: (what to make at a path, what the text says; @ is the path, P the program)
CASES = {
    "missing": (lambda p: p, "@ does not exist; copy it from a machine that has it{MAKE}"),
    "empty": (lambda p: written(p, b""), "@ has 0 bytes, a key has at least 2 and better 512; copy it from a machine "
                                         "that has it{RM}"),
    "one byte": (lambda p: written(p, b"\n"), "@ has 1 byte, "),
    "others read what is not root's": (lambda p: others(p, mode=0o644),
                                       "@ can be read by every user (mode 0644); chmod 600 @"),
    "others read and write": (lambda p: written(p, mode=0o666),
                              "@ can be written by others than its owner (mode 0666); chmod 600 @"),
    "the group writes": (lambda p: written(p, mode=0o660),
                         "@ can be written by others than its owner (mode 0660); chmod 600 @"),
    "others write": (lambda p: written(p, mode=0o602),
                     "@ can be written by others than its owner (mode 0602); chmod 600 @"),
    "fifo": (fifo, "@ is not a regular file; see what it is with: ls -ld @"),
    "directory": (directory, "@ is not a regular file; see what it is with: ls -ld @"),
    "device": (lambda p: link(p, "/dev/zero"), "@ is not a regular file; see what it is with: ls -ld @"),
    "below a file": (lambda p: written(p) / "x", "@ cannot be read: Not a directory (os error 20); look for the cause "
                                                 "with: namei -l @"),
    "loop": (lambda p: link(p, p), "look for the cause with: namei -l @"),
    "link to a bad one": (lambda p: link(p, written(p.with_name("target"), mode=0o646)),
                          "@ can be written by others than its owner (mode 0646); chmod 600 @"),
    "not ours to read": (lambda p: others(p), "@ cannot be read: Permission denied (os error 13); run this as root, or "
                                              "as its owner: ls -l @"),
}
#: Root, but not above the modes of files.
PLAIN_ROOT = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")


def others(path, mode=0o600):
    written(path, mode=mode)
    os.chown(path, 65534, 65534)
    return path


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """A key file that will not do, and the text about it as a function of the program's name."""
    make, text = CASES[request.param]
    path = make(tmp_path / "the.key")
    before = state(path)
    yield path, lambda program: with_key(text, program).replace("@", str(path))
    assert state(path) == before, "nothing was put right behind the administrator's back"


def with_key(text, program):
    """The text with the ways to a key: a guest is told of none but that of the host, which fits."""
    if program == "fence_virtd":
        make, remove = (f", or make a new one, once for all, with: {it}{program} --keygen @" for it in ("", "rm @; "))
    else:
        make = remove = ": the key of the host, which no guest can make (scp -p, mode 0600)"
    return text.replace("{MAKE}", make).replace("{RM}", remove)


def state(path):
    try:
        s = os.lstat(path)
    except OSError as e:
        return e.errno
    return s.st_mode, s.st_uid, s.st_size, s.st_mtime_ns


def run(stage, *argv):
    return programs.run_agent(stage.host, *PLAIN_ROOT[1:], *argv, program=PLAIN_ROOT[0], timeout=30,
                              env={"STATE_DIRECTORY": str(stage.directory / "state")})


@pytest.mark.parametrize("program, way", [(OURS_XVM, ()), (OURS_VIRT, ("-T", "127.0.0.1")), (OURS_VIRT, ("-S2",))],
                         ids=["multicast", "tcp", "vsock"])
def test_agents(stage, case, program, way):
    path, text = case
    result = run(stage, program, *way, "-k", path, "-o", "off", "-n", "vm1", "-t", 5)
    assert (result.rc, result.out) == (1, "")
    name = program.rsplit("/", 1)[1]
    assert result.err.count("\n") == 1 and result.err.startswith(f"{name}: key file ")
    assert text(name) in result.err


@pytest.mark.parametrize("listener", ["multicast", "tcp", "vsock", "group", "second"])
def test_the_daemon(stage, case, tmp_path, listener):
    path, text = case
    good, group = stage.key("host"), ""
    files = f'key_file = "{path}";'
    if listener == "group":
        files = f'key_file = "{good}";'
        group = f'groups {{ group {{ name = "red"; uuid = "vm1"; key_file = "{path}"; }} }}'
    elif listener == "second":
        files = f'key_file = "{good}"; key_file = "{path}";'
    kind = listener if listener in ("tcp", "vsock") else "multicast"
    config = programs.write_config(tmp_path / "fence_virt.conf", f"""
        fence_virtd {{ listener = "{kind}"; }}
        listeners {{ {kind} {{ {files} }} }}
        backends {{ libvirt {{ uri = "{testdriver.write(tmp_path / 'domains.xml', ['vm1'])}"; }} }}
        {group}""")
    result = run(stage, OURS_VIRTD, "-F", "-f", config)
    assert result.rc == 1
    errors = [line for line in (result.out + result.err).splitlines() if "ERROR" in line]
    assert len(errors) == 1, result
    assert f"listener {kind}: " + ("group red: " if listener == "group" else "") + "key file " in errors[0]
    assert text("fence_virtd") in errors[0]


#: What every guide's `dd` makes, and what some make so that ordinary users can fence.
EXPOSED = "key file {} can be read by every user of this machine (mode {:04o})"
#: Pacemaker takes agents' messages with these for another failure.
PACEMAKER_READS = r"imed out|timeout|unrecogni[sz]ed action"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o444])
def test_a_key_of_root_that_everybody_reads_fences_and_is_shown(stage, daemon, mode):
    it = daemon(options='metrics = "127.0.0.1:9229";')
    path = stage.key("exposed")
    path.write_bytes(stage.key("host").read_bytes())
    path.chmod(mode)
    for way, program in ((stage.multicast, "fence_xvm"), (stage.tcp, "fence_virt")):
        for action in ("status", "validate-all", "off", "on"):
            result = way("exposed", "-o", action, "-H", "vm1")
            assert result.rc == 0, (action, result)
            assert f"{program}: warning: {EXPOSED.format(path, mode)}" in result.err, (action, result)
            assert not re.search(PACEMAKER_READS, result.err), (action, result)
            assert path.stat().st_mode & 0o777 == mode
    # Of the host's own key nobody had to be warned.
    assert "every user" not in it.log and metrics.scrape(stage.host)["fence_virtd_exposed_keys"] == 0


def test_a_daemon_goes_on_with_a_key_that_everybody_reads_and_warns_at_each_load(stage, daemon):
    path = stage.key("dd")
    path.chmod(0o644)
    it = daemon(keys=("dd",), options='metrics = "127.0.0.1:9229";')
    warning = f" WARN .*{re.escape(EXPOSED.format(path, 0o644))}"
    try:
        it.wait_serving()
        # Two listeners have it, and it is one file.
        assert len(re.findall(warning, it.log)) == 2
        assert metrics.scrape(stage.host)["fence_virtd_exposed_keys"] == 1
        path.chmod(0o600)
        assert stage.multicast("dd", "-o", "off", "-n", "vm1").rc == 0
        reloaded(it, "the new configuration is in force")
        assert len(re.findall(warning, it.log)) == 2
        assert metrics.scrape(stage.host)["fence_virtd_exposed_keys"] == 0
        path.chmod(0o644)
        reloaded(it, "the new configuration is in force")
        assert len(re.findall(warning, it.log)) == 4
        assert metrics.scrape(stage.host)["fence_virtd_exposed_keys"] == 1
        # Who wants the old rule: from the next reload on.
        text = it.config.read_text()
        programs.write_config(it.config, text.replace("metrics", 'strict_keys = "yes"; metrics'))
        reloaded(it, f"the old one stays: .*key file {path} can be read by every user .mode 0644.; chmod 600 {path}")
        path.chmod(0o600)
        reloaded(it, "the new configuration is in force")
        assert "needs a restart" not in it.log
        path.chmod(0o644)
        reloaded(it, "the old one stays: ")
    finally:
        path.chmod(0o600)


def reloaded(it, says):
    since = len(it.lines)
    it.send_signal(signal.SIGHUP)
    it.wait_log(says, timeout=60, since=since)


def test_strict_keys_holds_at_the_start(stage, tmp_path):
    path = written(tmp_path / "the.key", mode=0o644)
    for options, groups, named in (
            ("", "", f'key_file = "{path}";'),
            ("", f'groups {{ group {{ uuid = "vm1"; key_file = "{path}"; }} }}', f'key_file = "{stage.key("host")}";'),
            (f'peers = "127.0.0.2"; peer_key_file = "{path}";', "", f'key_file = "{stage.key("host")}";')):
        config = programs.write_config(tmp_path / "fence_virt.conf", f"""
            fence_virtd {{ listener = "tcp"; strict_keys = "yes"; {options} }}
            listeners {{ tcp {{ {named} }} }}
            backends {{ libvirt {{ uri = "{testdriver.write(tmp_path / 'domains.xml', ['vm1'])}"; }} }}
            {groups}""")
        result = run(stage, OURS_VIRTD, "-F", "-f", config)
        errors = [line for line in (result.out + result.err).splitlines() if "ERROR" in line]
        assert result.rc == 1 and len(errors) == 1, result
        assert f"{path} can be read by every user (mode 0644); chmod 600 {path}" in errors[0]


def test_a_link_to_a_good_one_will_do(stage, daemon, tmp_path):
    daemon()
    path = link(tmp_path / "link", stage.key("host"))
    for mode in (0o400, 0o440, 0o600, 0o640):
        stage.key("host").chmod(mode)
        assert programs.run_agent(stage.guest(1), "-k", path, "-o", "status", "-n", "vm1", program=OURS_XVM).rc == 0
    stage.key("host").chmod(0o600)


@pytest.fixture
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("program", [OURS_VIRTD, OURS_XVM, OURS_VIRT], ids=["fence_virtd", "fence_xvm", "fence_virt"])
@pytest.mark.parametrize("form", ["--keygen {}", "--keygen={}"])
def test_keygen(stage, tmp_path, usual_umask, program, form):
    path = tmp_path / "cluster" / "new.key"
    words = form.format(path).split()
    done = programs.run_agent(stage.host, *words, program=program)
    assert (done.rc, done.err) == (0, "")
    assert path.stat().st_size == 512 and path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o755
    assert [it.name for it in path.parent.iterdir()] == ["new.key"]
    assert f"Made the directory {path.parent} (mode 0755)." in done.out
    assert f"New key in {path}: 512 bytes, mode 0600, fingerprint " in done.out
    # As /etc/cluster/fence_xvm.key it would take the place of the guests' key.
    assert f"scp -p {path} MACHINE:{path}\n" in done.out and "other hosts only" in done.out
    # Never a second time, whatever happens.
    before = path.read_bytes()
    again = programs.run_agent(stage.host, *words, program=program)
    assert (again.rc, again.out) == (1, "")
    assert f"{path} is there already and is not touched" in again.err and again.err.count("\n") == 1
    assert path.read_bytes() == before


def test_what_keygen_made_is_a_key(stage, daemon, tmp_path):
    path = stage.directory / "made.key"
    done = programs.run_agent(stage.host, "--keygen", path, program=OURS_VIRTD)
    fingerprint = done.out.split("fingerprint ")[1].split(".")[0]
    host = daemon(keys=("made",))
    assert f"key={fingerprint} " in host.log
    assert stage.multicast("made", "-o", "status", "-n", "vm1").rc == 0
    # The agents of others take it as well.
    client = wire.FakeClient(stage.guest(1), wire.read_key(path))
    assert client.tcp(stage.host.ip, wire.STATUS, "vm1").code == wire.SUCCESS


@pytest.mark.parametrize("args", [("--keygen", "a", "b"), ("--keygen", "-F"), ("--keygen=",), ("-F", "--keygen"),
                                  ("--keygen", "/proc/none/none/key")])
def test_keygen_takes_one_file_and_nothing_else(stage, args, tmp_path):
    result = programs.run_agent(stage.host, *args, program=OURS_VIRTD)
    assert result.rc == 1 and result.out == "" and result.err
