# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/contained: what a run leaves is told by its name, and nothing of a run stays, whatever ends it.

Run: /usr/bin/python3 -m pytest tests/contained        (root)
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import uuid

import pytest

from lab import net, process, programs

CONTAINED = programs.REPOSITORY / "scripts/contained"
#: Leaves one of each kind. "$1" is a name that nobody else uses; "$2" a directory that the machine shares.
LEAVES = r"""
    (setsid sleep 7$(date +%N) > /dev/null 2>&1 &)
    ip netns add "fvlab-$1"
    mkdir "$2/mounted"; mount -t tmpfs "$1" "$2/mounted"
    touch "/tmp/$1" "/var/tmp/$1" "/run/$1" "/run/lock/$1" "/dev/shm/$1" "/etc/$1" "/var/lib/$1" "$2/$1"
    own=$(sed -n 's#.*/\(fvlab-[^/]*\)$#\1#p' /proc/self/cgroup | head -n 1)
    [ -z "$own" ] || for group in $(find /sys/fs/cgroup -type d -name "$own"); do mkdir "$group/$1"; echo "$group/$1"; done
"""


@pytest.fixture
def mark():
    """A name that nobody else uses; the environment of every process of the run has it."""
    return f"left-{uuid.uuid4().hex[:12]}"


def contained(mark, script, *options, place, wait=True, outermost=True):
    """A shell script in a run of its own. `outermost`: as if this test were in none."""
    env = {**os.environ, "MARK": mark}
    if outermost:
        env.pop("LAID_OVER", None)
    run = subprocess.Popen([CONTAINED, *options, "--place", place, "sh", "-c", script, "sh", mark, place], text=True, env=env,
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    if not wait:
        return run
    out, err = run.communicate(timeout=120)
    return subprocess.CompletedProcess(script, run.returncode, out, err)


def wait_for(file, run):
    """Returns when the program of the run has made the file."""
    net.wait_until(lambda: file.exists() or run.poll() is not None)
    assert run.poll() is None, run.communicate()


def processes(mark):
    """A Process for each process of the run that still lives."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"MARK={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(process.Process(entry.name))
        except (OSError, ProcessLookupError):
            continue
    return [it for it in found if not it.ended()]


def remains(mark, place):
    """Whatever of the run can be found outside of it."""
    found = [f"process {it.pid}" for it in processes(mark)]
    for directory in ("/tmp", "/var/tmp", "/run", "/run/lock", "/run/netns", "/dev/shm", "/etc", "/var/lib"):
        if os.path.isdir(directory):
            found += [f"{directory}/{it}" for it in os.listdir(directory) if mark in it]
    found += [directory for directory, _, _ in os.walk("/sys/fs/cgroup") if mark in directory]
    found += [line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines() if mark in line]
    return found


def test_records_of_ports_are_a_runs_own(mark, tmp_path):
    """Runs beside each other: a fake host of one removed the record of the other's guest, which then took an old answer."""
    outside = pathlib.Path("/run/fence_virt")
    outside.mkdir(mode=0o700, exist_ok=True)
    record = outside / f"1229-{mark}.lock"
    record.touch()
    try:
        run = contained(mark, 'ls -A /run/fence_virt; touch "/run/fence_virt/$0-inside"; rm -f /run/fence_virt/1229-*', place=tmp_path)
        assert (run.returncode, run.stdout) == (0, ""), run
        assert record.exists() and not (outside / f"{mark}-inside").exists()
    finally:
        record.unlink(missing_ok=True)


def test_what_is_left_is_told_by_name(mark, tmp_path):
    run = contained(mark, LEAVES, "--strict", place=tmp_path)
    assert run.returncode == 1, run
    told = {line.strip() for line in run.stderr.splitlines()}
    files = {f"file {it}/{mark}" for it in ("/tmp", "/var/tmp", "/run", "/run/lock", "/dev/shm", "/var/lib", "/etc", tmp_path)}
    assert files <= told, files - told
    assert {f"network namespace fvlab-{mark}", f"mount {tmp_path}/mounted"} <= told, told
    assert {f"control group {it}" for it in run.stdout.split()} <= told, (run.stdout, told)
    assert [it for it in told if it.startswith("process ") and ": sleep 7" in it], told
    # What the machine shares with the run is told, and is not ours to remove.
    assert remains(mark, tmp_path) == [] and (tmp_path / mark).exists()


def test_nothing_left_is_nothing_told(mark, tmp_path):
    run = contained(mark, 'touch "/tmp/$1"; rm "/tmp/$1"; sleep 0.2 & ip netns add x; ip netns del x; echo said; echo wrong >&2',
                    "--strict", place=tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "said\n", "wrong\n")


def test_status(mark, tmp_path):
    """The program's own; only where that is 0 does what is left count."""
    assert contained(mark, "exit 3", "--strict", place=tmp_path).returncode == 3
    assert contained(mark, 'touch "/tmp/$1"; exit 3', "--strict", place=tmp_path).returncode == 3
    assert contained(mark, "kill -9 $$", "--strict", place=tmp_path).returncode == 128 + 9
    assert contained(mark, 'touch "/tmp/$1"', place=tmp_path).returncode == 0


def test_what_was_there_is_seen(mark, tmp_path):
    """Files that others have in places which become the run's own, and those of the checkout, which stay what they are."""
    kept = pathlib.Path("/tmp", f"kept-{mark}")
    kept.write_text("before\n")
    try:
        run = contained(mark, f'cat {kept}; echo after > {kept}; touch "$2/new"; cat /etc/hostname', place=tmp_path)
    finally:
        text = kept.read_text()
        kept.unlink()
    assert run.returncode == 0 and run.stdout.startswith("before\n"), run
    assert text == "after\n" and (tmp_path / "new").exists()


def test_inside_of_each_other(mark, tmp_path):
    """What an inner run left is told and removed by that; the outer one has nothing to say about it."""
    run = contained(mark, f'"{CONTAINED}" sh -c \'touch "/tmp/$1"; sleep 7000 & ip netns add fvlab-x\' sh "$1"', "--strict",
                    place=tmp_path)
    assert run.returncode == 0 and run.stderr.count("left by") == 1, run.stderr
    assert f"file /tmp/{mark}" in run.stderr and "fvlab-x" in run.stderr


@pytest.mark.parametrize("victim", ["itself", "janitor", "unshare", "first process", "program", "all but the janitor"])
def test_killed(mark, tmp_path, victim):
    """SIGKILL to any process of the run: the others end, and what it had is gone."""
    ready = tmp_path / "ready"
    run = contained(mark, LEAVES + 'touch "$2/ready"; exec sleep 8000', place=tmp_path, wait=False)
    try:
        wait_for(ready, run)
        janitor, unshare = sorted(process.children(run.pid), key=lambda pid: "unshare" in programs_of(pid))
        first = process.only_child(unshare)
        # It becomes sleep a moment after it has made the file, and its command line names it before.
        (program,) = net.wait_until(lambda: [it for it in process.children(first) if programs_of(it).startswith("sleep 8")])
        chosen = {"itself": [run.pid], "janitor": [janitor], "unshare": [unshare], "first process": [first], "program": [program],
                  "all but the janitor": [run.pid, unshare, first, program]}[victim]
        work = next(it for it in pathlib.Path(f"/proc/{first}/cmdline").read_text().split("\0") if "fvlab-" in it)
        assert os.path.isdir(work) and len(processes(mark)) > 4
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):     # the one before may have taken it along
                os.kill(pid, signal.SIGKILL)
        if victim == "janitor":
            run.terminate()
        net.wait_until(lambda: not processes(mark))
        net.wait_until(lambda: not os.path.exists(work))
        assert remains(mark, tmp_path) == []
    finally:
        run.kill()
        run.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on(mark, tmp_path, number):
    """To the program, as SIGTERM: it may end in its own way."""
    script = 'trap "echo ended; exit 5" TERM; touch "$2/ready"; while :; do sleep 0.1; done'
    run = contained(mark, script, place=tmp_path, wait=False)
    wait_for(tmp_path / "ready", run)
    run.send_signal(number)
    assert run.communicate(timeout=60)[0] == "ended\n" and run.returncode == 5
    assert remains(mark, tmp_path) == []


def programs_of(pid):
    """Command line of a process."""
    return pathlib.Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
