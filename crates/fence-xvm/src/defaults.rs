// SPDX-License-Identifier: GPL-2.0-or-later
//! The task that all options together ask for: defaults, and options that do not go together.
//!
//! Owns the defaults. Pure: no environment, no files, no clock. Must never weaken what the user asked for
//! without an error.

use std::net::SocketAddr;
use std::time::Duration;

use fence_net::Family;
use fence_wire::{
    Action, CHANNEL_ADDRESS, DEFAULT_GROUP_V4, DEFAULT_GROUP_V6, DEFAULT_KEY_FILE, DEFAULT_PORT, HashType,
    Target,
};

use crate::host::TcpHost;
use crate::options::ClientProgram;
use crate::plan::{ClientTask, MulticastSettings, RequestPlan, Transport};
use crate::settings::{ClientSettings, RequestedAction};
use crate::usage::UsageError;

/// Default quiet time in tenths of a second.
const QUIET_TIME: u64 = 3;

impl ClientSettings {
    /// Returns the task that all options together ask for.
    ///
    /// # Errors
    /// Option that is missing, or options that do not go together.
    pub fn into_task(self, program: ClientProgram) -> Result<ClientTask, UsageError> {
        if self.help {
            return Ok(ClientTask::Help);
        }
        if self.version {
            return Ok(ClientTask::Version);
        }
        let requested = self.requested_action()?;
        // The action itself is never asked for by a diagnosis, only what it would do.
        let dry_run = match requested {
            RequestedAction::Ask(action) if self.diagnose && action.changes_state() => Some(action),
            _ => None,
        };
        let (action, needs_target) = match requested {
            RequestedAction::Ask(action) if dry_run.is_some() => (Action::Status, Some(action.name())),
            RequestedAction::Metadata => return Ok(ClientTask::Metadata),
            RequestedAction::Validate => (Action::Null, Some("validate-all")),
            RequestedAction::Ask(action) => (action, action.needs_target().then(|| action.name())),
        };
        let given = self.targets.chosen()?;
        if let (Some(action), None) = (needs_target, given) {
            return Err(UsageError::NoTarget(action));
        }
        let target = match given {
            Some(target) => Target::new(target, self.use_uuid)?,
            None => Target::none(),
        };
        let transport = self.transport(program)?;
        let own_hash = self.packet_hash(&transport)?;
        let hash = match dry_run {
            Some(action) => self.dry_run_hash(action, own_hash, &transport)?,
            None => own_hash,
        };
        let delay = if action.changes_state() { self.delay.unwrap_or(0) } else { 0 };
        let plan = RequestPlan {
            action,
            target,
            timeout: Duration::from_secs(self.timeout.unwrap_or(if self.diagnose { 5 } else { 30 })),
            may_take_longer: self.diagnose && self.timeout.is_none(),
            delay: Duration::from_secs(delay),
            hash,
            auth: self.auth.unwrap_or(HashType::Sha256),
            wants_reason: self.diagnose,
            dry_run,
            own_hash,
            key_file_named: self.key_file.is_some(),
            debug: self.debug,
            transport,
            key_file: self.key_file.unwrap_or_else(|| DEFAULT_KEY_FILE.into()),
        };
        Ok(match requested {
            RequestedAction::Validate => ClientTask::Validate(plan),
            _ if self.diagnose => ClientTask::Diagnose(plan),
            _ => ClientTask::Ask(plan),
        })
    }

    /// Returns the action, if it may be asked for.
    fn requested_action(&self) -> Result<RequestedAction, UsageError> {
        match self.action {
            _ if !self.diagnose => Ok(self.action.unwrap_or(RequestedAction::Ask(Action::Reboot))),
            None if self.targets.chosen()?.is_some() => Ok(RequestedAction::Ask(Action::Status)),
            None => Ok(RequestedAction::Ask(Action::Monitor)),
            Some(
                action @ RequestedAction::Ask(
                    Action::Status | Action::Monitor | Action::Off | Action::On | Action::Reboot,
                ),
            ) => Ok(action),
            Some(other) => Err(UsageError::DiagnoseAction(match other {
                RequestedAction::Ask(action) => action.name().to_owned(),
                RequestedAction::Validate => "validate-all".to_owned(),
                RequestedAction::Metadata => "metadata".to_owned(),
            })),
        }
    }

    /// Returns the hash of the packet, if it goes together with the challenge and the transport.
    fn packet_hash(&self, transport: &Transport) -> Result<HashType, UsageError> {
        let hash = self.hash.unwrap_or(HashType::Sha256);
        let is_line = matches!(transport, Transport::Serial { .. } | Transport::Channel(_));
        match self.auth {
            // A user who asks for a sealed request must not get less without an error.
            _ if hash.sealed().is_some() && is_line => Err(UsageError::SealedLine(hash)),
            Some(HashType::None) if hash.sealed().is_some() => Err(UsageError::SealedUnchallenged(hash)),
            Some(auth) if auth.sealed().is_some() && hash.sealed().is_none() => {
                Err(UsageError::SealedChallenge(auth))
            }
            _ => Ok(hash),
        }
    }

    /// Returns the hash of a question what an action would do: sealed, whatever the cluster uses. So a
    /// host that does not know such questions can't take it for anything but a status.
    fn dry_run_hash(
        &self,
        action: Action,
        hash: HashType,
        transport: &Transport,
    ) -> Result<HashType, UsageError> {
        let action = action.name();
        if matches!(transport, Transport::Serial { .. } | Transport::Channel(_)) {
            let why = "a serial line or VM channel has no seal";
            return Err(UsageError::DryRun { action, why });
        }
        if hash == HashType::None && self.auth == Some(HashType::None) {
            return Err(UsageError::DryRun { action, why: "there is no seal without a key" });
        }
        Ok(if hash.sealed().is_some() { hash } else { HashType::HmacSha256 })
    }

    /// Returns the transport that the options choose.
    fn transport(&self, program: ClientProgram) -> Result<Transport, UsageError> {
        let port = self.port.unwrap_or(DEFAULT_PORT);
        if program == ClientProgram::Xvm {
            return self.multicast_settings(port).map(Transport::Multicast);
        }
        Ok(if let Some(name) = self.tcp.clone() {
            Transport::Tcp(TcpHost { name, port })
        } else if let Some(cid) = self.vsock {
            Transport::Vsock { cid, port }
        } else if let Some(device) = self.serial_device.clone() {
            Transport::Serial { device, format: self.serial_format.unwrap_or_default() }
        } else {
            Transport::Channel(SocketAddr::new(self.channel.unwrap_or(CHANNEL_ADDRESS.into()), port))
        })
    }

    /// Returns group and times of a multicast request.
    fn multicast_settings(&self, port: u16) -> Result<MulticastSettings, UsageError> {
        let group = match (self.group, self.family) {
            (None, None | Some(Family::V4)) => DEFAULT_GROUP_V4.into(),
            (None, Some(Family::V6)) => DEFAULT_GROUP_V6.into(),
            (Some(group), Some(Family::V4)) if !group.is_ipv4() => {
                return Err(UsageError::Family { group, family: "ipv4" });
            }
            (Some(group), Some(Family::V6)) if !group.is_ipv6() => {
                return Err(UsageError::Family { group, family: "ipv6" });
            }
            (Some(group), _) => group,
        };
        let tenths = |given: Option<u64>, default| Duration::from_millis(100 * given.unwrap_or(default));
        Ok(MulticastSettings {
            group,
            port,
            retransmit: tenths(self.retransmit, 20),
            quiet: tenths(self.quiet, QUIET_TIME),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use fence_net::LineFormat;
    use fence_wire::{ClientAuth, Key, Request};

    use super::*;

    fn task_of(program: ClientProgram, line: &str) -> Result<ClientTask, UsageError> {
        let mut settings = ClientSettings::default();
        let arguments = line.split_whitespace().map(OsString::from);
        for option in
            fence_cli::getopt::parse(program.getopt_string(), &program.long_options(), arguments)?.options
        {
            settings.set_option(option.name, option.value)?;
        }
        settings.into_task(program)
    }

    fn plan_of(program: ClientProgram, line: &str) -> RequestPlan {
        match task_of(program, line) {
            Ok(ClientTask::Ask(plan)) => plan,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn defaults() {
        let plan = plan_of(ClientProgram::Xvm, "-n vm1");
        assert_eq!(
            (plan.action, plan.timeout, plan.delay),
            (Action::Reboot, Duration::from_secs(30), Duration::ZERO)
        );
        assert_eq!((plan.hash, plan.auth), (HashType::Sha256, HashType::Sha256));
        assert_eq!(plan.key_file.to_str(), Some("/etc/cluster/fence_xvm.key"));
        let (group, retransmit) = ([225, 0, 0, 12].into(), Duration::from_secs(2));
        let quiet = Duration::from_millis(300);
        assert_eq!(
            plan.transport,
            Transport::Multicast(MulticastSettings { group, port: 1229, retransmit, quiet })
        );
        assert!(!plan.target.is_uuid());
    }

    #[test]
    fn transports() {
        let tcp = |name: &str, port| Transport::Tcp(TcpHost { name: name.parse().unwrap(), port });
        let transport = |line: &str| plan_of(ClientProgram::Virt, line).transport;
        assert_eq!(transport("-o list"), Transport::Channel(([10, 0, 2, 179], 1229).into()));
        assert_eq!(transport("-o list -A 10.1.1.1 -p 7"), Transport::Channel(([10, 1, 1, 1], 7).into()));
        assert_eq!(transport("-o list -T::1"), tcp("::1", 1229));
        assert_eq!(transport("-o list --ip=kvm1.example.com -p 7"), tcp("kvm1.example.com", 7));
        assert!(task_of(ClientProgram::Virt, "-o list -T 10.0.0.256").is_err());
        assert_eq!(transport("-o list -S"), Transport::Vsock { cid: 2, port: 1229 });
        assert_eq!(transport("-o list -S3 -p9"), Transport::Vsock { cid: 3, port: 9 });
        let serial = Transport::Serial { device: "/dev/ttyS2".into(), format: LineFormat::default() };
        assert_eq!(transport("-o list -D /dev/ttyS2"), serial);
        let serial = Transport::Serial { device: "/dev/ttyS2".into(), format: "9600,7E1".parse().unwrap() };
        assert_eq!(transport("-o list -P9600,7E1 -D /dev/ttyS2"), serial);
        assert!(task_of(ClientProgram::Virt, "-o list -D /dev/ttyS2 -P fast").is_err());
        assert!(!plan_of(ClientProgram::Virt, "-o list").needs_key());
        assert!(plan_of(ClientProgram::Virt, "-o list -T 1.2.3.4 -c none").needs_key());
        assert!(!plan_of(ClientProgram::Virt, "-o list -T 1.2.3.4 -c none -C none").needs_key());
    }

    #[test]
    fn sealed_requests() {
        let key = Key::new(b"a key").unwrap();
        for (line, hash) in [
            ("-c hmac-sha256", HashType::HmacSha256),
            ("-c HMAC-SHA512", HashType::HmacSha512),
            // The auth type has no meaning here, so it does no harm.
            ("-c hmac-sha256 -C sha1", HashType::HmacSha256),
            ("-c hmac-sha256 -C hmac-sha256", HashType::HmacSha256),
        ] {
            let plan = plan_of(ClientProgram::Xvm, &format!("-n a {line}"));
            assert_eq!(plan.hash, hash, "{line}");
            assert!(plan.needs_key());
            assert!(matches!(plan.client_auth(Some(&key)), ClientAuth::Sealed(..)), "{line}");
        }
        for (line, expected) in [
            ("-c hmac-sha256 -C none", "leave auth out"),
            ("-C hmac-sha256", "goes only with hash hmac-sha256"),
            ("-c sha512 -C hmac-sha512", "goes only with hash hmac-sha512"),
            ("-c hmac-md5", "not none, sha1, sha256, sha512, hmac-sha256 or hmac-sha512"),
        ] {
            let error = task_of(ClientProgram::Xvm, &format!("-n a {line}")).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
        assert!(matches!(
            plan_of(ClientProgram::Virt, "-n a -T ::1 -c hmac-sha256").hash,
            HashType::HmacSha256
        ));
        for line in ["-D /dev/ttyS1", ""] {
            let error = task_of(ClientProgram::Virt, &format!("-n a -c hmac-sha256 {line}")).unwrap_err();
            assert!(matches!(error, UsageError::SealedLine(_)), "{line}: {error}");
        }
    }

    #[test]
    fn the_family_of_the_group() {
        let group = |line: &str| match plan_of(ClientProgram::Xvm, line).transport {
            Transport::Multicast(to) => to.group.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(group("-o list -i ipv6"), "ff05::3:1");
        assert_eq!(group("-o list -i auto -a ff02::7"), "ff02::7");
        assert_eq!(group("-o list -a 239.1.2.3"), "239.1.2.3");
        for wrong in ["-i ipv4 -a ff05::1", "-i ipv6 -a 225.0.0.1", "-a 10.0.0.1", "-a host", "-i ipv5"] {
            assert!(task_of(ClientProgram::Xvm, &format!("-o list {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_actions_that_change_something_are_delayed() {
        for (action, delay) in [("off", 5), ("on", 5), ("reboot", 5), ("status", 0), ("null", 0)] {
            let plan = plan_of(ClientProgram::Xvm, &format!("-w 5 -n a -o {action}"));
            assert_eq!(plan.delay, Duration::from_secs(delay), "{action}");
        }
    }

    #[test]
    fn values_that_are_not_valid() {
        for wrong in [
            "-t 0",
            "-t -1",
            "-t abc",
            "-t 99999999999999999999",
            "-p 0",
            "-p 65536",
            "-p -1",
            "-r 0",
            "-q -1",
            "-w -1",
            "-c md5",
            "-C hmac",
            "-o explode",
            "-n a -n b",
            "-M x",
        ] {
            assert!(task_of(ClientProgram::Xvm, &format!("-n a {wrong}")).is_err(), "{wrong}");
        }
        for action in ["off", "on", "reboot", "status", "validate-all"] {
            let wrong = task_of(ClientProgram::Xvm, &format!("-o {action}"));
            assert!(matches!(wrong, Err(UsageError::NoTarget(name)) if name == action), "{action}");
        }
        let name = "x".repeat(64);
        assert!(task_of(ClientProgram::Xvm, &format!("-n {name}")).is_err());
        assert!(task_of(ClientProgram::Xvm, &format!("-n {}", &name[1..])).is_ok());
    }

    #[test]
    fn a_diagnosis_is_harmless() {
        let asked_action = |line: &str| match task_of(ClientProgram::Xvm, line) {
            Ok(ClientTask::Diagnose(plan)) => plan.action,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(asked_action("--diagnose"), Action::Monitor);
        assert_eq!(asked_action("--diagnose -n a"), Action::Status);
        assert_eq!(asked_action("-n a -o monitor --diagnose"), Action::Monitor);
        for action in ["list", "null", "metadata", "validate-all"] {
            let wrong = task_of(ClientProgram::Xvm, &format!("-n a -o {action} --diagnose"));
            assert!(matches!(wrong, Err(UsageError::DiagnoseAction(_))), "{action}: {wrong:?}");
        }
    }

    #[test]
    fn a_dry_run_is_a_sealed_status_and_nothing_else() {
        let key = Key::new(b"the key of a test").unwrap();
        for (word, action) in [("off", Action::Off), ("on", Action::On), ("reboot", Action::Reboot)] {
            for hash in ["", "-c sha1", "-c sha512", "-c none", "-c hmac-sha512", "-C none"] {
                let line = format!("-n a -o {word} --diagnose {hash} -w 30");
                let Ok(ClientTask::Diagnose(plan)) = task_of(ClientProgram::Xvm, &line) else {
                    panic!("{line}")
                };
                assert_eq!((plan.action, plan.dry_run), (Action::Status, Some(action)), "{line}");
                assert!(plan.hash.sealed().is_some() && plan.delay.is_zero(), "{line}");
                // Asked in another way than the cluster asks, it asks in that way first.
                let plain = plan.as_cluster_asks().map(|it| (it.action, it.dry_run, it.hash.to_string()));
                let own = hash.strip_prefix("-c ").unwrap_or("sha256");
                let wanted = (Action::Status, None, own.to_owned());
                assert_eq!(plain, (!own.starts_with("hmac")).then_some(wanted), "{line}");
                let target = plan.target.clone();
                let request =
                    Request { action: plan.action, target, call_back: None, nonce: [1; 6], sequence: 2 };
                let packet = plan.encode_packet(&request, Some(&key));
                assert_eq!(packet[0], Action::Status.number(), "{line}");
                let received =
                    Request::decode(&packet, HashType::HmacSha256, std::slice::from_ref(&key)).unwrap();
                assert_eq!((received.request.action, received.dry_run), (Action::Status, Some(action)));
            }
            for wrong in ["-D /dev/ttyS1", ""] {
                let wrong = task_of(ClientProgram::Virt, &format!("-n a -o {word} --diagnose {wrong}"));
                assert!(matches!(wrong, Err(UsageError::DryRun { .. })), "{wrong:?}");
            }
            let open = task_of(ClientProgram::Xvm, &format!("-n a -o {word} --diagnose -c none -C none"));
            assert!(matches!(open, Err(UsageError::DryRun { .. })), "{open:?}");
            let unnamed = task_of(ClientProgram::Xvm, &format!("-o {word} --diagnose"));
            assert!(matches!(unnamed, Err(UsageError::NoTarget(name)) if name == word), "{unnamed:?}");
        }
    }

    #[test]
    fn tasks_that_ask_no_host() {
        assert!(matches!(task_of(ClientProgram::Xvm, "-h -n a"), Ok(ClientTask::Help)));
        assert!(matches!(task_of(ClientProgram::Xvm, "-?"), Ok(ClientTask::Help)));
        assert!(matches!(task_of(ClientProgram::Virt, "-V"), Ok(ClientTask::Version)));
        assert!(matches!(task_of(ClientProgram::Virt, "-o metadata"), Ok(ClientTask::Metadata)));
        assert!(matches!(task_of(ClientProgram::Virt, "-o VALIDATE-ALL -n a"), Ok(ClientTask::Validate(_))));
        assert_eq!(plan_of(ClientProgram::Xvm, "-o list-status").action, Action::List);
        assert!(plan_of(ClientProgram::Xvm, "-u -n a").target.is_uuid());
    }
}
