// SPDX-License-Identifier: GPL-2.0-or-later
//! Place of a hypervisor, by its URI.

/// Returns whether the URI has no host in it: `qemu:///system`, `qemu+unix:///system?socket=…`.
pub(super) fn is_local(uri: &str) -> bool {
    uri.split_once("://").is_none_or(|(_, rest)| rest.is_empty() || rest.starts_with(['/', '?']))
}

/// Returns whether the machines of this URI are processes of this host, which the system's libvirtd made.
pub(super) fn has_processes_here(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once("://") else { return false };
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    matches!(scheme, "qemu" | "qemu+unix") && path == "/system"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_of_the_systems_libvirtd_are_processes_here() {
        for uri in ["qemu:///system", "qemu+unix:///system", "qemu+unix:///system?socket=/run/x"] {
            assert!(has_processes_here(uri) && is_local(uri), "{uri}");
        }
        for uri in [
            "qemu:///session",
            "qemu:///embed?root=/x",
            "qemu://host/system",
            "qemu+ssh:///system",
            "qemu+tcp:///system",
            "test:///default",
            "test+unix:///default?socket=/run/x",
            "xen:///system",
            "lxc:///system",
            "qemu",
            "",
        ] {
            assert!(!has_processes_here(uri), "{uri}");
        }
    }
}
