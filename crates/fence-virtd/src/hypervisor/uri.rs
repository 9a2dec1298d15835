// SPDX-License-Identifier: GPL-2.0-or-later
//! The parts of a libvirt URI, as far as they tell what a connection needs.
//!
//! Owns the knowledge of libvirt's drivers and transports. Values only; must never open a connection.

use std::ffi::OsStr;

/// A libvirt URI: `driver[+transport]://[host]/path[?query]`.
pub(crate) struct Uri<'a> {
    driver: &'a str,
    transport: Option<&'a str>,
    host: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Uri<'a> {
    pub(crate) fn of(uri: &'a str) -> Self {
        let (scheme, rest) = uri.split_once(':').unwrap_or((uri, ""));
        let (driver, transport) = scheme.split_once('+').map_or((scheme, None), |(d, t)| (d, Some(t)));
        let rest = rest.split('#').next().unwrap_or_default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Self { driver, transport, host, path, query }
    }

    /// Returns true where libvirt starts programs for this URI: ssh, a command of the user's, a hypervisor or
    /// a libvirtd of its own. Assumed of every driver that is not known to start none.
    pub(crate) fn starts_programs(&self) -> bool {
        let quiet = ["qemu", "xen", "lxc", "ch", "test", "esx", "vpx", "gsx", "hyperv"];
        let starts = |it: &str| !["unix", "tcp", "tls", "libssh", "libssh2"].contains(&it);
        !quiet.contains(&self.driver)
            || self.transport.is_some_and(starts)
            || ["/session", "/embed"].contains(&self.path)
    }

    /// Returns true where the hypervisor may be on another host.
    pub(crate) fn is_remote(&self) -> bool {
        !self.host.is_empty() || !matches!(self.transport, None | Some("unix"))
    }

    /// Returns true where libvirt is asked over a socket of this host, or without any.
    pub(crate) fn is_local(&self) -> bool {
        // An alias of libvirt's own configuration may mean any URI.
        self.path.starts_with('/') && !self.is_remote()
    }

    /// Returns whether the machines of the URI are processes of this host that the system's libvirtd made.
    pub(crate) fn has_processes_here(&self) -> bool {
        self.driver == "qemu" && self.path == "/system" && !self.is_remote()
    }

    /// Returns the files that the URI names: the test driver's domains, and every path in its query but
    /// sockets.
    pub(crate) fn files(&self) -> impl Iterator<Item = &'a OsStr> {
        let domains = Some(self.path).filter(|_| self.driver == "test" && self.path != "/default");
        let named = self.query.split(['&', ';']).filter_map(|it| it.split_once('='));
        let named = named.filter(|(name, value)| *name != "socket" && value.starts_with('/'));
        domains.into_iter().chain(named.map(|(_, value)| value)).map(OsStr::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_uri() {
        let files = |uri| Uri::of(uri).files().map(|it| it.to_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(files("test:///srv/domains.xml"), ["/srv/domains.xml"]);
        assert!(files("test:///default").is_empty());
        assert!(files("qemu+unix:///system?socket=/run/x").is_empty());
        let uri = "qemu+tls://h/system?no_verify=1&pkipath=/srv/pki/x&socket=/run/y";
        assert_eq!(files(uri), ["/srv/pki/x"]);
    }

    #[test]
    fn sockets_of_this_host() {
        for uri in ["qemu:///system", "qemu+unix:///system?socket=/run/x", "test+unix:///default"] {
            assert!(Uri::of(uri).is_local(), "{uri}");
        }
        for uri in ["qemu://host/system", "qemu+tcp:///system", "qemu+ssh://host/system", "alias", ""] {
            assert!(!Uri::of(uri).is_local(), "{uri}");
        }
    }

    #[test]
    fn machines_of_the_systems_libvirtd_are_processes_here() {
        for uri in ["qemu:///system", "qemu+unix:///system", "qemu+unix:///system?socket=/run/x"] {
            assert!(Uri::of(uri).has_processes_here(), "{uri}");
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
            assert!(!Uri::of(uri).has_processes_here(), "{uri}");
        }
    }
}
