# SPDX-License-Identifier: GPL-2.0-or-later
"""`fence_virtd -c` and the devices of the agent backend, which the reference has not got."""

import os
import subprocess

from lab import programs

from configure.dialogue import NAME, OURS, Terminal, run

#: From the first question to the backends, with a key file.
BEGIN = ["y", "none", "tcp", "", ""]
EXISTING = """\
fence_virtd { listener = "tcp"; backend = "libvirt, agent"; }
listeners { tcp { hash = "none"; auth = "none"; key_file = "/proc/none"; } } # by hand
backends {
  agent {
    # The first member
    device = "pool/1" {
      agent = "fence_xenapi"; plugs = "*"; order = "7";
      options { session_url = "https://a"; password = "geheim"; login_file = "/l"; }
    }
    device = "board" { agent = "/usr/sbin/fence_redfish"; domain = "Web 1" { plug = "1"; } options { ip = "::1"; } }
  }
}
"""


def test_a_pool_and_a_board(tmp_path):
    key = programs.write_key(tmp_path / "key")
    password = programs.write_key(tmp_path / "password", b"geheim\n")
    done = run(OURS, tmp_path, [
        *BEGIN, str(key), "libvirt, agent", "",
        "pool/1", "fence_xenapi", "", "session_url", "https://127.0.0.1:1", "username", "root", "password", str(password), "none",
        "board", "fence_redfish", "web1:1", "none",
        "none", "y"])
    assert done.rc == 0, done
    assert done.file.decode().endswith("""\
\tagent {
\t\tdevice = "pool/1" {
\t\t\tagent = "fence_xenapi";
\t\t\tplugs = "*";
\t\t\toptions {
\t\t\t\tsession_url = "https://127.0.0.1:1";
\t\t\t\tusername = "root";
\t\t\t\tpassword_file = "%s";
\t\t\t}
\t\t}
\t\tdevice = "board" {
\t\t\tagent = "fence_redfish";
\t\t\tplugs = "web1:1";
\t\t}
\t}
}
""" % password), done.file.decode()
    assert done.err == f"{NAME} does not exist\n"
    # It is what --check wants, but for endpoints that nobody has.
    check = subprocess.run([OURS, "--check", "-f", NAME], cwd=tmp_path, capture_output=True, text=True, timeout=120).stdout
    assert f"ok       configuration {NAME}: listeners: tcp; backend: libvirt, agent; " in check, check
    assert f"ok       secret pool/1: password_file: {password} can be read" in check, check
    assert not [line for line in check.splitlines() if line.split()[1:2] in (["option"], ["configuration"]) and not line.startswith("ok")]
    # Who takes every default the next time changes nothing.
    again = run(OURS, tmp_path, ["none"])
    assert again.file == done.file and f"Nothing changes in {NAME}" in again.out, again.out
    assert again.prompts.count("Device [pool/1]: ") == again.prompts.count("Device [board]: ") == 1


def test_what_is_there_is_kept(tmp_path):
    done = run(OURS, tmp_path, [], existing=EXISTING)
    assert done.rc == 1
    asked = [it for it in done.prompts if it.startswith(("Device", "Fence agent", "Domains", "Option", "Value", "File"))]
    assert asked[:8] == ["Device [pool/1]: ", "Fence agent (its name or path) [fence_xenapi]: ", "Domains [*]: ",
                         "Option [session_url]: ", "Value of session_url [https://a]: ", "Option [password]: ",
                         "File of password [none]: ", "Option [login_file]: "], asked
    assert "Domains [none]: " in asked and asked[-1] == "Device [none]: "
    # Nobody reads it over somebody's shoulder.
    assert "geheim" not in done.out + done.err and 'password = "***"' in done.out
    changed = run(OURS, tmp_path, ["none", "", "", "", "", "", "", "pool/1", "", "", "session_url", "https://b", "none", "none",
                                   "y"], existing=EXISTING)
    assert changed.rc == 0, changed
    block = EXISTING[EXISTING.index("  agent {"):EXISTING.rindex("}")]
    assert block.replace("https://a", "https://b") in changed.file.decode(), changed.file.decode()


def test_a_password_moves_into_a_file(tmp_path):
    password = programs.write_key(tmp_path / "password", b"geheim\n")
    answers = ["", "", "", "", "", "", "", "pool/1", "", "", "password", str(password), "none", "none", "y"]
    done = run(OURS, tmp_path, answers, existing=EXISTING)
    assert done.rc == 0 and "geheim" not in done.out + done.err
    assert b"geheim" not in done.file and f'password_file = "{password}";'.encode() in done.file, done.file


def test_who_insists_has_the_password_in_the_file(tmp_path):
    begin = [*BEGIN, "none", "agent", "board", "fence_redfish", "web1", "password", "none"]
    done = run(OURS, tmp_path, [*begin, "y", "geheim", "none", "none", "y"])
    assert done.rc == 0 and b'password = "geheim";' in done.file and "geheim" not in done.out
    (tmp_path / NAME).unlink()
    done = run(OURS, tmp_path, [*begin, "", "none", "none", "y"])
    assert done.rc == 0 and b"password" not in done.file


def test_answers_that_cannot_be_used(tmp_path):
    begin = [*BEGIN, "none", "agent"]
    done = run(OURS, tmp_path, [*begin, "none", 'a"b', "x", "sub/agent", "fence_nosuch", "web1:", "web1", "action", "a.b", "ip", "::1",
                                "none", "none", "y"])
    assert done.rc == 0, done
    for reason in ("needs a device", "text without quotes", "its path from `/`", "`action` is set by fence_virtd", "no agent has an option",
                   "names of domains with commas"):
        assert reason in done.out, (reason, done.out)
    assert "there is no fence_nosuch in /usr/sbin, " in done.err and "fence-agents" in done.err
    # Without answers there is no device, and no file.
    (tmp_path / NAME).unlink()
    for count in range(3):
        done = run(OURS, tmp_path, [*begin, *["x", "fence_redfish"][:count]])
        assert done.rc == 1 and not os.path.exists(tmp_path / NAME), done
    done = run(OURS, tmp_path, begin)
    assert 'no more answers, and the default "none" for "Device" can\'t be used' in done.err


def test_files_of_secrets(tmp_path):
    loose = programs.write_key(tmp_path / "loose", b"geheim\n")
    loose.chmod(0o644)
    with Terminal(tmp_path) as terminal:
        terminal.answer(("Start from scratch", "y"), ("Module search path", ""), ("Listener module", "tcp"), ("TCP Listen IP", ""),
                        ("TCP Listen Port", ""), ("Key File", "none"), ("Backend module", "agent"),
                        ("Device", "board"), ("Fence agent", "fence_redfish"), ("Domains", "web1"), ("Option", "password"),
                        ("File of password", "relative"))
        assert "File of password [/etc/fence_virt/board.password]: " in terminal.text
        terminal.expect("relative is no path from /")
        terminal.answer(("File of password", str(tmp_path)))
        terminal.expect("is not a regular file")
        terminal.answer(("File of password", f"{tmp_path}/a/b"))
        terminal.expect(f"{tmp_path}/a/b does not exist yet; make it with: install -d -m 700 {tmp_path}/a; "
                        f"install -m 600 /dev/null {tmp_path}/a/b; ")
        terminal.answer(("Option", "password_file"), ("File of password", str(loose)))
        terminal.expect(f"chmod 600 {loose}")
        terminal.answer(("Option", "none"), ("Device", "none"), ("Replace", "y"))
        assert terminal.finish() == 0
    assert f'password_file = "{loose}";' in terminal.path.read_text()
