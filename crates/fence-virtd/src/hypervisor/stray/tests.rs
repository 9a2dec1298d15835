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
        ("stat", b"7 (a) Z ) S 1 7 7 0 -1 64 0 0 0 0 0 0 0 0 20 0 3 0 4711 0"),
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
        matches!(
            examine(process.path(), 7, false, &OtherPrograms::default()).unwrap(),
            ExaminedProcess::Machine(_)
        )
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
    let comm = "a) Z ".to_owned();
    assert_eq!(stat, MachineStat { comm, state: b'S', flags: 64, threads: 3, started: 4711 });
    assert!(stat.runs() && MachineStat { state: b'Z', ..stat.clone() }.runs());
    assert!(!MachineStat { state: b'Z', threads: 1, ..stat }.runs());
    for odd in ["", "7 (x", "7 (x)", "7 (x) S 1"] {
        fs::write(dir.path().join("stat"), odd).unwrap();
        assert_eq!(read_stat(dir.path()).unwrap(), None, "{odd:?}");
    }
}

/// Files of a QEMU whose first thread has ended, and of a thread that can't, with these arguments.
fn dying(cgroup: &str, of_thread: &[u8]) -> tempfile::TempDir {
    let dir = process("Uid:\t0\t0\t0\t0\nNSpid:\t7\nShdPnd:\t0000000000000100\n", cgroup, b"");
    let stat =
        |state| format!("7 (qemu-system-x86) {state} 1 7 7 0 -1 4194628 0 0 0 0 0 0 0 0 20 0 2 0 4711 0");
    fs::write(dir.path().join("stat"), stat("Z")).unwrap();
    for (thread, state, arguments) in [("7", "Z", &b""[..]), ("8", "D", of_thread)] {
        let directory = dir.path().join("task").join(thread);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("stat"), stat(state)).unwrap();
        fs::write(directory.join("cmdline"), arguments).unwrap();
    }
    dir
}

#[test]
fn a_qemu_that_cannot_end_is_found_by_its_threads() {
    let seen = |dir: &tempfile::TempDir| examine(dir.path(), 7, false, &OtherPrograms::default()).unwrap();
    let dir = dying("0::/x", ARGUMENTS);
    let ExaminedProcess::Machine(found) = seen(&dir) else { panic!("{:?}", seen(&dir)) };
    assert_eq!((found.uuid, &*found.name, found.started), (uuid(), "a,b", 4711));
    assert_eq!(ending_below(dir.path()).as_deref(), Some("D, Z"));
    // Then no thread has the memory with the arguments any more.
    let unnamed = |cgroup: &str| match seen(&dying(cgroup, b"")) {
        ExaminedProcess::Unnamed(it) => it,
        other => panic!("{other:?}"),
    };
    let may = |cgroup: &str, name: &str| unnamed(cgroup).may_have(Some(name));
    assert!(may("0::/x", "web") && unnamed("0::/x").may_have(None));
    for group in [
        r"0::/machine.slice/machine-qemu\x2d3\x2dweb\x2d1.scope/libvirt/emulator",
        "4:cpu:/machine/qemu-3-web-1.libvirt-qemu/emulator",
        r"0::/machine.slice/machine-qemu\x2d3\x2dweb\x2d1.scope (deleted)",
    ] {
        assert!(may(group, "web 1") && may(group, "web-1") && may(group, "web-1-and-more-that-was-cut"));
        assert!(!may(group, "web") && !may(group, "db"), "{group}");
    }
    // Its reader hangs.
    assert!(matches!(
        examine(dir.path(), 7, true, &OtherPrograms::default()).unwrap(),
        ExaminedProcess::Unnamed(_)
    ));
    // Another program without arguments, and a thread of the kernel.
    let dir = dying("0::/x", b"");
    for stat in ["7 (x) Z 1 7 7 0 -1 4 ", "7 (kvm-pit) S 1 7 7 0 -1 2097152 "] {
        fs::write(dir.path().join("stat"), format!("{stat}0 0 0 0 0 0 0 0 20 0 2 0 4711 0")).unwrap();
        assert_eq!(seen(&dir), ExaminedProcess::Other, "{stat}");
    }
}

#[test]
fn a_program_without_a_machine_is_read_once() {
    let dir = process("Uid:\t0\t0\t0\t0\n", "0::/x", b"/usr/sbin/sshd\0");
    let seen = |others: &OtherPrograms| examine(dir.path(), 7, false, others).unwrap();
    let program = (7, 4711, "a) Z ".to_owned());
    assert_eq!(seen(&OtherPrograms::default()), ExaminedProcess::Program(program.clone()));
    fs::write(dir.path().join("cmdline"), ARGUMENTS).unwrap();
    let others = OtherPrograms::from([program.clone()]);
    assert_eq!(seen(&others), ExaminedProcess::Program(program.clone()));
    // Another process, or another program in the same one.
    for others in [(7, 4712, program.2.clone()), (7, 4711, "libvirtd".to_owned())] {
        assert!(matches!(seen(&OtherPrograms::from([others])), ExaminedProcess::Machine(_)));
    }
}

#[test]
fn a_process_that_runs_on_is_not_ending() {
    let dir = process("ShdPnd:\t0000000000000200\nSigPnd:\t0000000000000000\n", "", ARGUMENTS);
    assert_eq!(ending_below(dir.path()), None);
    fs::write(dir.path().join("status"), "SigPnd:\t0000000000000100\n").unwrap();
    assert!(ending_below(dir.path()).is_some());
}

/// As a user who logs in: none of its processes counts.
#[test]
fn off_needs_that_no_process_is_there() {
    let mut machine = Machine::start();
    let pid = machine.0.id();
    let directory = process_directory(Path::new("/proc"), pid);
    if !counts(&directory).unwrap() {
        return;
    }
    let processes = Arc::new(MachineProcesses::default());
    let gone = |name| processes.gone("qemu:///system", (uuid(), name), Instant::now());
    let why = gone(Some("web")).unwrap_err();
    assert!(why.contains(&format!("process {pid} of that host has the machine")), "{why}");
    let noted = processes.note(uuid());
    assert_eq!(noted.iter().map(|it| (it.pid, &*it.name)).collect::<Vec<_>>(), [(pid, "web")]);
    assert!(MachineProcesses::all_gone("x", &noted).unwrap().is_err());
    assert!(MachineProcesses::all_gone("x", &[]).is_none());
    let other = MachineProcess { started: noted[0].started + 1, ..noted[0].clone() };
    assert!(!other.exists(), "another with this pid");
    assert!(
        processes.find(|it| it.name == "web").is_some() && processes.find(|it| it.name == "we").is_none()
    );
    let (web, other) =
        (HashSet::from([uuid()]), HashSet::from(["5ba0e0aa-0123-1111-2222-333344445556".parse().unwrap()]));
    assert_eq!(processes.held(&web), web, "a list has it on");
    assert!(processes.held(&other).is_empty() && processes.held(&HashSet::new()).is_empty());
    let (words, is_certain) = processes.words_of_lost("qemu:///system", uuid(), "web").unwrap();
    assert!(is_certain && processes.all().iter().any(|it| it.pid == pid));
    assert!(
        words
            .fact
            .ends_with(&format!("process {pid} of this host has the machine: libvirt lost its status file")),
        "{words:?}"
    );
    assert_eq!(words.step, format!("See ps -fp {pid}; if that is the machine: kill {pid}, and ask again"));
    machine.end();
    assert!(processes.held(&web).is_empty());
    assert!(processes.words_of_lost("qemu:///system", uuid(), "web").is_none());
    assert!(MachineProcesses::all_gone("x", &noted).unwrap().is_ok());
    assert!(processes.find(|it| it.name == "web").is_none());
    drop(gone(Some("web")).unwrap());
    assert!(lock(&processes.table).found.iter().all(|it| it.uuid != uuid()), "forgotten");
}

#[test]
fn requests_share_a_search_that_began_after_they_came() {
    let processes = Arc::new(MachineProcesses::default());
    let asked = Instant::now();
    processes.search(asked).unwrap();
    let first = *lock(&processes.turn);
    assert!(first.unwrap() >= asked);
    processes.search(asked).unwrap();
    assert_eq!(*lock(&processes.turn), first);
    processes.search(Instant::now()).unwrap();
    assert!(*lock(&processes.turn) > first);
}
