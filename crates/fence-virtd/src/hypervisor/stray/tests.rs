// SPDX-License-Identifier: GPL-2.0-or-later
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;

const UUID: &str = "5ba0e0aa-0123-1111-2222-333344445555";

fn uuid() -> Uuid {
    UUID.parse().unwrap()
}

/// A process that stands for QEMU.
struct Machine(Child);

impl Machine {
    fn start() -> Self {
        let mut command = Command::new("sh");
        let words = ["-c", "read line", "-name", "guest=web,debug-threads=on", "-S", "-uuid", UUID];
        let child = command.args(words).stdin(Stdio::piped()).spawn().unwrap();
        let directory = process_directory(Path::new("/proc"), child.id());
        // The kernel shows the arguments a moment after the program has begun.
        let begun = Instant::now();
        while machine_of(&read_file(&directory.join("cmdline"), MAX_ARGUMENTS).unwrap()).is_none() {
            assert!(begun.elapsed() < Duration::from_secs(120));
            std::thread::yield_now();
        }
        Self(child)
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Files of a process in /proc.
fn process(status: &str, cgroup: &str, arguments: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("status", status.as_bytes()),
        ("cgroup", cgroup.as_bytes()),
        ("cmdline", arguments),
        ("stat", b"7 (a) Z ) S 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 3 0 4711 0"),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

const ARGUMENTS: &[u8] =
    b"/usr/bin/qemu\0-name\0guest=a,,b,debug-threads=on\0-uuid\x005ba0e0aa-0123-1111-2222-333344445555\0";

#[test]
fn a_process_counts_if_it_belongs_to_the_system_of_this_host() {
    let seen = |status: &str, cgroup: &str| {
        let process = process(status, cgroup, ARGUMENTS);
        examine(process.path(), 7).unwrap().is_some()
    };
    let of = |uid: u32| format!("Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nNSpid:\t7\n");
    for uid in [0, 107, 999, 64_055] {
        assert!(seen(&of(uid), "0::/user.slice"), "{uid}");
    }
    for uid in [1000, 60_001, 60_513, 65_534, 100_000, u32::MAX] {
        assert!(!seen(&of(uid), "0::/user.slice/machine.slice/x\n"), "{uid}");
        assert!(!seen(&of(uid), "0::/machine.slicer/x"), "{uid}");
        assert!(seen(&of(uid), "4:cpu:/\n0::/machine.slice/machine-qemu.scope/libvirt\n"), "{uid}");
        assert!(seen(&of(uid), "4:cpu,cpuacct:/machine/qemu-1-x.libvirt-qemu/emulator\n0::/\n"), "{uid}");
    }
    // A login user's, by a program with another effective user; a container's; and what no kernel writes.
    assert!(!seen("Uid:\t1000\t0\t0\t0\nNSpid:\t7\n", ""));
    assert!(!seen("Uid:\t0\t0\t0\t0\nNSpid:\t7\t1\n", "0::/machine.slice/x"));
    for odd in ["", "Uid:\n", "Uid:\tx\n", "Uid:\t0\nNSpid:\tx\n"] {
        assert!(!seen(odd, ""), "{odd:?}");
    }
    assert!(seen("Uid:\t0\t0\t0\t0\n", ""), "a kernel without PID namespaces");
}

#[test]
fn a_machine_is_told_by_the_arguments() {
    let of = |words: &[&str]| machine_of(words.join("\0").as_bytes());
    assert_eq!(machine_of(ARGUMENTS), Some((uuid(), "a,b".to_owned())));
    assert_eq!(of(&["q", "-uuid", UUID, "-name", "old"]), Some((uuid(), "old".to_owned())));
    for none in [
        &["q", "-uuid", UUID][..],
        &["q", "-name", "x"],
        &["q", "-name", "x", "-uuid"],
        &["q", "-name", "x", "-uuid", "5ba0e0aa"],
        &["sh", "-c", "qemu -name guest=x -uuid 5ba0e0aa-0123-1111-2222-333344445555"],
        &["q", "-name", &"x".repeat(MAX_NAME + 1), "-uuid", UUID],
        &[],
    ] {
        assert_eq!(of(none), None, "{none:?}");
    }
    assert_eq!(machine_of(b"q\0-name\0\xff\0-uuid\0\xff\0"), None);
}

#[test]
fn the_first_thread_may_end_before_the_others() {
    let dir = process("", "", b"");
    let stat = read_stat(dir.path()).unwrap().unwrap();
    assert_eq!(stat, StrayState { state: b'S', threads: 3, started: 4711 });
    assert!(stat.runs() && StrayState { state: b'Z', ..stat }.runs());
    assert!(!StrayState { state: b'Z', threads: 1, ..stat }.runs());
    for odd in ["", "7 (x", "7 (x)", "7 (x) S 1"] {
        fs::write(dir.path().join("stat"), odd).unwrap();
        assert_eq!(read_stat(dir.path()).unwrap(), None, "{odd:?}");
    }
}

/// As a user who logs in: none of its processes counts.
#[test]
fn a_machine_that_is_not_listed_is_found_until_its_process_ends() {
    let mut machine = Machine::start();
    let pid = machine.0.id();
    let directory = process_directory(Path::new("/proc"), pid);
    if !counts(&directory).unwrap() {
        return;
    }
    let strays = Arc::new(StrayProcesses::default());
    let find = || strays.find(|it| it.uuid == uuid());
    strays.search("qemu:///system", HashSet::from([uuid()]));
    assert_eq!(find(), None, "libvirt has it on");
    strays.search("qemu:///system", HashSet::new());
    strays.search("qemu:///system", HashSet::new());
    let stray = find().unwrap();
    assert_eq!((stray.pid, &*stray.name), (pid, "web"));
    assert_eq!(strays.find(|it| it.name == "web2"), None);
    assert_eq!(lock(&strays.found).len(), 1);
    assert!(!StrayProcess { started: stray.started + 1, ..stray.clone() }.runs(), "another with this pid");
    strays.search("qemu:///system", HashSet::from([uuid()]));
    assert_eq!(find(), None, "libvirt has it again");
    strays.search("qemu:///system", HashSet::new());
    assert!(find().is_some());
    machine.end();
    assert_eq!(find(), None);
    assert!(lock(&strays.found).is_empty(), "forgotten");
}
