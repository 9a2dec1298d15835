// SPDX-License-Identifier: GPL-2.0-or-later
//! seccomp: system calls that are refused.
//!
//! The list names refused calls, not allowed ones. libvirt, its TLS and SASL libraries and the C library make
//! calls that change with their versions. A fence that fails after an upgrade of the C library would cost
//! more than the harmless calls that are left. For the same reason a refusal is an error, not a signal. (The
//! service's unit adds systemd's list of allowed calls, which is kept up to date together with the system.)

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

use crate::needs::SystemCalls;
use crate::protection::Enforcement;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

pub(crate) fn confine(calls: SystemCalls) -> Enforcement {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
        return Enforcement::Off(format!("no filter for {}", std::env::consts::ARCH));
    };
    let programs = match programs(calls, arch) {
        Ok(programs) => programs,
        Err(error) => return Enforcement::Off(format!("seccomp: {error}")),
    };
    for program in programs {
        // There is one thread. If there ever are more, none may be left out.
        if let Err(error) = apply_filter_all_threads(&program) {
            return Enforcement::Off(format!("seccomp: {error}"));
        }
    }
    Enforcement::On
}

/// Builds the filters; each has its own error for refused calls.
fn programs(calls: SystemCalls, arch: TargetArch) -> Result<Vec<BpfProgram>, BackendError> {
    let filter = |rules: Rules, errno: libc::c_int| {
        let refuse = SeccompAction::Errno(errno.unsigned_abs());
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()
    };
    let mut refused = everywhere(NEVER);
    if calls.threads || calls.programs {
        refused.extend(with_rules(libc::SYS_clone, &new_namespace()?));
    } else {
        refused.extend(everywhere(PROCESSES));
    }
    if !calls.programs {
        refused.extend(everywhere(PROGRAMS));
    }
    if !calls.open_files {
        refused.extend(everywhere(FILES));
    }
    if !calls.key_rings && !calls.programs {
        refused.extend(everywhere(KEY_RINGS));
    }
    let mut out = vec![filter(refused, libc::EPERM)?];
    if calls.threads || calls.programs {
        // The flags of clone3 lie in memory, where no filter sees them. The C library takes this error for an
        // old kernel and uses clone, whose flags a filter sees.
        out.push(filter(everywhere(&[libc::SYS_clone3]), libc::ENOSYS)?);
    }
    Ok(out)
}

/// Calls that no program of ours makes, nor any program that it starts.
const NEVER: &[libc::c_long] = &[
    // Memory and files of other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Mounts, and files by handle, which Landlock does not check.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_unshare,
    libc::SYS_setns,
    // The kernel itself and the whole machine.
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_mknodat,
    // Parts of the kernel with a history of vulnerabilities.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    libc::SYS_personality,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
];

/// Starting other programs, and changing the user, as such programs do.
const PROGRAMS: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_setuid,
    libc::SYS_setreuid,
    libc::SYS_setresuid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
];

/// Making processes and threads.
const PROCESSES: &[libc::c_long] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
];

/// Opening, making, renaming and removing files.
const FILES: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_renameat2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    libc::SYS_renameat,
];

/// The kernel's key rings.
const KEY_RINGS: &[libc::c_long] = &[libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl];

/// Returns rules that refuse these calls whatever their arguments are.
fn everywhere(calls: &[libc::c_long]) -> Rules {
    calls.iter().flat_map(|it| with_rules(*it, &[])).collect()
}

/// Returns the rules under each number of the call: x86-64 has a second set (x32), which a kernel may serve
/// too.
fn with_rules(call: libc::c_long, rules: &[SeccompRule]) -> Vec<(i64, Vec<SeccompRule>)> {
    let mut out = vec![(call, rules.to_vec())];
    #[cfg(target_arch = "x86_64")]
    out.push((x32(call), rules.to_vec()));
    out
}

/// Returns the number in the second set. Most differ by one bit; calls that pass pointers to pointers have
/// numbers of their own.
#[cfg(target_arch = "x86_64")]
fn x32(call: libc::c_long) -> i64 {
    let number = match call {
        libc::SYS_execve => 520,
        libc::SYS_ptrace => 521,
        libc::SYS_kexec_load => 528,
        libc::SYS_process_vm_readv => 539,
        libc::SYS_process_vm_writev => 540,
        libc::SYS_execveat => 545,
        other => other,
    };
    number | 0x4000_0000
}

/// Returns rules that match `clone` with any flag that makes a namespace.
fn new_namespace() -> Result<Vec<SeccompRule>, BackendError> {
    [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ]
    .into_iter()
    .map(|flag| {
        let flag = u64::from(flag.unsigned_abs());
        let set = SeccompCmpOp::MaskedEq(flag);
        SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Qword, set, flag)?])
    })
    .collect()
}
