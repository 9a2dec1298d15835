// SPDX-License-Identifier: GPL-2.0-or-later
//! Texts about a probable cause: one sentence, the next step, and the lines of the host's log that confirm
//! it.
//!
//! Owns the texts; `verdict` owns the causes. Pure. Must never quote a log line that the daemon does not
//! write, nor advise a guest to do without authentication.

use std::borrow::Cow;
use std::net::IpAddr;

use fence_wire::{Action, FORECAST_UNCERTAIN, HashType, Response};

use crate::verdict::{AgreementCause, HostCause, NetworkCause, ProbableCause, UntoldHosts};

/// Lines of the host's log, each with its meaning.
type LogLines = &'static [(&'static str, &'static str)];

const KEY_LINE: (&str, &str) = (
    "does not fit: another key on the sender's side",
    "this guest and the host have different keys: compare the fingerprints, copy the host's key here",
);
const HASH_LINE: (&str, &str) =
    ("is weaker than", "the host asks for a stronger hash: use the one that the line names (-c, hash=)");
const REPLAY_LINE: (&str, &str) = (
    "the very same packet was here before",
    "a packet came twice: a loop in the network, or somebody replays it",
);

/// Words of a host that another one has the domain on.
const ON_AT: &str = ": the domain is on at host ";

/// Words of a host that does not know the domain.
const UNKNOWN: &str = "no such domain on this host";
/// Words of a host whose libvirtd hangs.
const HANGS: &str = "answers nothing any more";

/// Returns whether a host told that another one has the domain on, and not another domain of this name.
fn is_on_elsewhere(words: &str) -> bool {
    words.contains(ON_AT)
        && !words.contains("another domain with this name")
        && !words.contains(FORECAST_UNCERTAIN)
}

/// Returns addresses of hosts in one line.
fn addresses(hosts: &[IpAddr]) -> String {
    let hosts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
    hosts.join(", ")
}

impl ProbableCause {
    /// Returns the cause in one sentence.
    pub(crate) fn sentence(&self) -> Cow<'static, str> {
        match self {
            Self::Network(cause) => cause.sentence(),
            Self::Agreement(cause) => cause.sentence(),
            Self::Host(cause) => cause.sentence(),
        }
    }

    /// Returns the next step.
    pub(crate) fn next_step(&self) -> Cow<'static, str> {
        match self {
            Self::Network(cause) => cause.next_step(),
            Self::Agreement(cause) => cause.next_step(),
            Self::Host(cause) => cause.next_step(),
        }
    }

    /// Returns the lines that the host's log has for this cause.
    pub(crate) fn log_lines(&self) -> LogLines {
        match self {
            Self::Network(cause) => cause.log_lines(),
            Self::Agreement(cause) => cause.log_lines(),
            Self::Host(cause) => cause.log_lines(),
        }
    }

    /// Returns what to check, in a few words, after an ordinary time-out.
    pub(crate) fn short_advice(&self) -> Cow<'static, str> {
        match self {
            Self::Network(NetworkCause::NotSent { .. }) => {
                "nothing could be sent: look at this guest's addresses, routes, interfaces and firewall"
                    .into()
            }
            Self::Network(NetworkCause::Silence { .. }) => {
                "no host called back: is fence_virtd running, does it listen on this guest's network, same \
                 multicast address and port, same key (the host's log says when not), does the firewall \
                 here let that TCP port in? The same command with --diagnose and without -o looks closer"
                    .into()
            }
            Self::Agreement(AgreementCause::OtherKey) | Self::Host(HostCause::Odd) => {
                "a host called back: do key and auth type agree with the host's (compare the fingerprint in \
                 its log)?"
                    .into()
            }
            other if other.may_have_run() => format!(
                "an off, on or reboot may have been executed, or may still be: ask for the status. An off \
                 may be asked again; a reboot that is asked again may happen twice. {}: {}",
                other.sentence(),
                other.next_step()
            )
            .into(),
            other => format!("{}: {}", other.sentence(), other.next_step()).into(),
        }
    }
}

impl NetworkCause {
    fn sentence(&self) -> Cow<'static, str> {
        match self {
            Self::NotSent { forbidden: true } => {
                "this guest's own firewall forbids to send the request".into()
            }
            Self::NotSent { forbidden: false } => "nothing could be sent".into(),
            Self::NoTurn => "the call-back ports of this guest were in use all the time".into(),
            Self::LoopbackAlone => {
                "no network interface is up but lo, or none but lo has an address: no host \
                                    can be reached"
                    .into()
            }
            Self::Silence { watched: true, .. } => {
                "no host took the request: none called back, and nothing of a call-back reached this guest"
                    .into()
            }
            Self::Silence { watched: false, .. } => {
                "no host called back, or this guest's firewall kept the call-back out (only root can see \
                 that)"
                    .into()
            }
            Self::Firewall { host, port, .. } => {
                format!("{host} called back to port {port}/tcp, and this guest's firewall did not let it in")
                    .into()
            }
        }
    }

    fn next_step(&self) -> Cow<'static, str> {
        match self {
            Self::NotSent { forbidden: true } => {
                "let UDP to the multicast address and port out (nft list ruleset, firewall-cmd --list-all)"
                    .into()
            }
            Self::NoTurn => "find who has them (ss -ltnp 'sport >= :1229'), end an agent that hangs (ps -C \
                             fence_xvm,fence_virt -o pid,etime,args), and give requests more time (-t)"
                .into(),
            Self::NotSent { forbidden: false } => {
                "look at this guest's addresses and routes: ip addr, ip route".into()
            }
            Self::LoopbackAlone => "bring this guest's network up: ip addr, ip link; then ask again".into(),
            Self::Silence { from, .. } => format!(
                "look for lines about {} in the log of fence_virtd on the host (journalctl -u fence_virtd); \
                 if there is none, the datagrams do not arrive: fence_virtd --check on the host names why, \
                 as far as it is seen there: is fence_virtd running, does it listen on the bridge of this \
                 guest (`interface`), same multicast address and port, does the host's firewall let them in, \
                 has the bridge's multicast snooping a querier?",
                from.map_or("this guest's addresses".to_owned(), |address| address.to_string())
            )
            .into(),
            Self::Firewall { port, wanted, .. } if port != wanted => format!(
                "another program of this guest has port {wanted}/tcp, so the call-back was awaited on \
                 another port. Find it: ss -ltnp sport = :{wanted}. If it must stay, let TCP port {port} and \
                 those up to {} in as well",
                wanted + 15
            )
            .into(),
            Self::Firewall { port, .. } => format!(
                "let TCP port {port} in, from every host: firewall-cmd --permanent --add-port={port}/tcp && \
                     firewall-cmd --reload, or with nftables: tcp dport {port} accept"
            )
            .into(),
        }
    }

    fn log_lines(&self) -> LogLines {
        const CALL_BACK: (&str, &str) = (
            "does not answer; is TCP port",
            "the host's call-back is lost on the way: a firewall of the host, or between",
        );
        const CALL_BACK_REFUSED: (&str, &str) =
            ("can't call the client back", "the host's call-back is refused on the way");
        match self {
            Self::NotSent { .. } | Self::NoTurn | Self::LoopbackAlone => &[],
            Self::Silence { .. } => &[KEY_LINE, HASH_LINE, CALL_BACK, CALL_BACK_REFUSED, REPLAY_LINE],
            Self::Firewall { .. } => &[
                ("does not answer; is TCP port", "the firewall here drops it"),
                ("can't call the client back", "the firewall here rejects it"),
            ],
        }
    }
}

impl AgreementCause {
    fn sentence(&self) -> Cow<'static, str> {
        match self {
            Self::HashTooWeak(_) => {
                "the host asks for a stronger hash than this guest uses; the key is the same".into()
            }
            Self::ClassicHost { hosts, .. } => {
                let who = if hosts.is_empty() { String::new() } else { format!(" {}", addresses(hosts)) };
                format!(
                    "the host{who} takes no sealed requests: a fence_virtd of the C programs; the key is the \
                     same"
                )
                .into()
            }
            Self::SealUnanswered { hash, is_ours: true } => format!(
                "a fence_virtd of this project took the request with hash {hash}, and none has answered the \
                 sealed one in time; the key is the same"
            )
            .into(),
            Self::SealUnanswered { hash, is_ours: false } => format!(
                "a host took the request with hash {hash}, and none has answered the sealed one in time; the \
                 key is the same"
            )
            .into(),
            Self::OtherAuth(HashType::None) => {
                "the host is set to auth none: it answers without proving that it holds the key".into()
            }
            Self::OtherAuth(auth_of_host) => {
                format!("the host has another auth type, {auth_of_host}; the key is the same").into()
            }
            Self::NoAuth => {
                "the host waits for a challenge, or did not take the request: this guest is set to auth none"
                    .into()
            }
            Self::OtherKey => "the peer that called back did not prove that it holds this guest's key".into(),
            Self::Dropped { tried_hashes: true } => {
                "the host was reached and dropped the request, whatever its hash: another key, most probably"
                    .into()
            }
            Self::Dropped { tried_hashes: false } => {
                "the host was reached and dropped the request: another key, or a hash that is too weak".into()
            }
            Self::ProofRefused => "the host did not take this guest's proof, or died".into(),
            Self::NoListener => {
                "what took the connection answered as no listener with this guest's key does: no listener \
                 for this way (tcp, vsock) is set at that host, and something else has the port (fence_virtd \
                 or an agent that waits for a call-back), or the key is another"
                    .into()
            }
            Self::SilentStream => {
                "what took the connection was silent: fence_virtd stands still there, or something else than \
                 its listener has the port"
                    .into()
            }
        }
    }

    fn next_step(&self) -> Cow<'static, str> {
        match self {
            Self::HashTooWeak(HashType::HmacSha512) => {
                "ask sealed, with -c hmac-sha256 (hash=hmac-sha256); the host's log names its minimum".into()
            }
            Self::HashTooWeak(hash) => {
                format!("-c {hash} (hash={hash}) is taken; the host's log names its minimum").into()
            }
            Self::ClassicHost { hash, is_dry_run: true, .. } => format!(
                "such a host can't be asked what an action would do, with any hash: look at the domain there \
                 (virsh list), or send the real request (with -c {hash}, hash={hash}). For a dry run put \
                 this project's fence_virtd on that host"
            )
            .into(),
            Self::ClassicHost { hash, .. } => format!(
                "-c {hash} (hash={hash}) is taken; for sealed requests put this project's fence_virtd on the \
                 host"
            )
            .into(),
            Self::SealUnanswered { is_ours: true, .. } => {
                "ask again, with a longer -t; the host's log says how the sealed request was treated".into()
            }
            Self::SealUnanswered { is_ours: false, .. } => {
                "ask again, with a longer -t; look which fence_virtd runs on the host: one of the C programs \
                 takes no sealed requests"
                    .into()
            }
            Self::OtherAuth(HashType::None) => {
                "set `auth` on the host to this guest's (sha256), rather than this guest to -C none".into()
            }
            Self::OtherAuth(auth_of_host) => format!(
                "use -C {auth_of_host} (auth={auth_of_host}) here, or set `auth` on the host to this guest's"
            )
            .into(),
            Self::NoAuth => "leave -C none (auth=none) out".into(),
            Self::OtherKey | Self::Dropped { .. } => {
                "compare the fingerprints of the key, here and in the host's log: fence_virtd --check on the \
                 host shows that of each key"
                    .into()
            }
            Self::ProofRefused => "the host's log says why".into(),
            Self::NoListener => {
                "look at `listener` in that host's fence_virt.conf: does it have tcp (vsock)? ss -ltnp there \
                 shows who has the port. Then compare the fingerprints of the key, here and in the host's log"
                    .into()
            }
            Self::SilentStream => {
                "systemctl status fence_virtd at that host; ss -ltnp there shows who has the port".into()
            }
        }
    }

    fn log_lines(&self) -> LogLines {
        match self {
            Self::HashTooWeak(_) => &[HASH_LINE],
            Self::Dropped { tried_hashes: true } => &[KEY_LINE, REPLAY_LINE],
            Self::Dropped { tried_hashes: false } => &[KEY_LINE, HASH_LINE, REPLAY_LINE],
            Self::OtherAuth(HashType::None) => &[],
            Self::SealUnanswered { .. } => &[REPLAY_LINE],
            Self::OtherAuth(_) => &[(
                "the client did not prove that it holds the key",
                "this guest did not accept the host's proof",
            )],
            Self::NoAuth => {
                &[("the client sent no challenge", "the host's auth type is not none"), KEY_LINE, HASH_LINE]
            }
            Self::ProofRefused => {
                &[("the client did not prove that it holds the key", "the proof came too late or was wrong")]
            }
            Self::ClassicHost { .. } | Self::OtherKey | Self::NoListener | Self::SilentStream => &[],
        }
    }
}

impl HostCause {
    fn sentence(&self) -> Cow<'static, str> {
        let fixed = match self {
            Self::Told { reasons, is_backend: false } => return reasons.clone().into(),
            Self::Told { reasons, is_backend: true } => {
                return format!("fence_virtd cannot do its work; {reasons}").into();
            }
            Self::SilentOwner { told, words } => return silent_owner(told, words).into(),
            Self::WouldFail { action, words } if words.contains(FORECAST_UNCERTAIN) => {
                return format!("{action} would be tried, and nobody can say what comes of it; {words}")
                    .into();
            }
            Self::WouldFail { action, words } => {
                return format!("{action} would not be carried out; {words}").into();
            }
            Self::OthersCantSay { action, others, words } => {
                return format!(
                    "{}. It may have the domain and carry the {action} out, whatever others say: {words}",
                    others.sentence(*action)
                )
                .into();
            }
            Self::NoForecast { action, status } => {
                let status = match status {
                    Response::Success => "the domain is on".to_owned(),
                    Response::Off => "the domain is off".to_owned(),
                    other => other.to_string(),
                };
                return format!(
                    "the host can't say what {action} would do: it answered the status alone ({status}), \
                     as an \
                     older fence_virtd does"
                )
                .into();
            }
            Self::Held => {
                "the host holds the same key and has not let the request run: it is busy, another request is \
                 in its way, or it waits for another host"
            }
            Self::NoResponse => {
                "the host took the request and has not answered: its hypervisor is slow or hangs, or it \
                 waits for another host that is silent"
            }
            Self::Denied { hosts } => return denied(hosts).into(),
            Self::Backend => {
                "fence_virtd cannot do its work, libvirt at the host does not answer the daemon; key and \
                 network are in order"
            }
            Self::Domain => {
                "the host does not know the domain, or cannot tell its state; key, network and hypervisor \
                 are in order"
            }
            Self::DomainOfOthers => {
                "the host does not know the domain, or cannot tell its state; the key is in order. There are \
                 several hosts, and that one of them can work tells nothing of the others"
            }
            Self::Failed => "the host does not know the domain, or its hypervisor does not answer",
            Self::Odd => "the answer is none that a host gives",
        };
        fixed.into()
    }

    fn next_step(&self) -> Cow<'static, str> {
        let fixed = match self {
            Self::OthersCantSay { others, .. } => return others.next_step().into(),
            Self::SilentOwner { words, .. } => {
                let find = match words.contains(ON_AT) {
                    true => "go to the host that the reason names",
                    false => "find the host that runs the domain (virsh list)",
                };
                return format!(
                    "{find}, and look there for lines about this guest in the log of fence_virtd (journalctl \
                     -u fence_virtd). No line: this guest's request does not arrive there (firewall for UDP \
                     port 1229, `interface`, multicast snooping; or fence_virtd does not run): fence_virtd \
                     --check on that host names it. A line: compare the fingerprints of the key, here and \
                     there; then look at `groups` in its fence_virt.conf"
                )
                .into();
            }
            Self::Held => {
                "ask again later, with a longer -t (30 where corosync or peer_down_command is used: a host \
                 may wait for a proof that another is down); the host's log says what runs"
            }
            Self::NoResponse => {
                "check on the host that virsh list answers, and run fence_virtd --check there: it names a \
                 silent host"
            }
            Self::Denied { .. } => {
                "fence_xvm -o list shows the domains that this guest may fence; look at `groups` in the \
                 host's fence_virt.conf: this guest's address and the domain must stand in one group. A \
                 group with `key_file` takes its own key alone: is it the one that this guest uses?"
            }
            Self::Backend => {
                "check on the host that libvirt runs (virsh list) and is the one of `uri` in fence_virt.conf"
            }
            Self::Domain | Self::DomainOfOthers => {
                "fence_xvm -o list shows the domains that the host knows; is the name right, has the domain \
                 moved to another host? If the domain is off, another host may be silent: fence_virtd \
                 --check on the host names it"
            }
            Self::Told { reasons: words, .. } | Self::WouldFail { words, .. }
                if let Some(step) = step_for(words) =>
            {
                step
            }
            Self::Told { .. } => {
                "do what the reason says. Where it names no step: fence_virtd --check on that host looks \
                 closer, and -o list instead of --diagnose shows the domains that this guest may fence"
            }
            Self::WouldFail { words, .. } if words.contains(FORECAST_UNCERTAIN) => {
                "send the real request: it succeeds only if the domain is seen off everywhere, and else \
                 fails with the reason. Or do what the reason says, and ask again"
            }
            Self::WouldFail { .. } => {
                "do what the reason says, and ask again. Where it names no step: fence_virtd --check on that \
                 host looks closer, and -o list shows the domains that this guest may fence"
            }
            Self::NoForecast { .. } => {
                "put this project's newer fence_virtd on all hosts; until then look at `groups` there, \
                 and at the \
                 status and the list (-o status, -o list)"
            }
            Self::Failed => {
                "ask for the list (-o list), and check on the host that libvirt runs (virsh list)"
            }
            Self::Odd => "does fence_virtd answer there? The host's log says how the request was treated",
        };
        fixed.into()
    }

    fn log_lines(&self) -> LogLines {
        match self {
            Self::Backend | Self::Told { is_backend: true, .. } => &[("monitor: ", "why")],
            Self::Failed => &[("can't look for the domain", "libvirt does not answer")],
            Self::SilentOwner { .. } => &[KEY_LINE, HASH_LINE],
            Self::Held
            | Self::NoResponse
            | Self::Denied { .. }
            | Self::Domain
            | Self::DomainOfOthers
            | Self::Told { .. }
            | Self::WouldFail { .. }
            | Self::NoForecast { .. }
            | Self::OthersCantSay { .. }
            | Self::Odd => &[],
        }
    }
}

/// Returns the step for reasons that name none, as far as their cause has one.
fn step_for(words: &str) -> Option<&'static str> {
    if is_on_elsewhere(words) {
        return Some(
            "ask the host that has the domain: with TCP name that host in the request (-T, ipaddr=). By \
             multicast that host has the request too; if the request fails all the same, look for lines \
             about this guest in the log of fence_virtd there (journalctl -u fence_virtd), and run \
             fence_virtd --check there",
        );
    }
    // Another host may say something else, or one that is down may have the only definition: then the reasons
    // have the step.
    let count = |it: &str| words.matches(it).count();
    if words.contains(UNKNOWN) && count(UNKNOWN) == count(" says: ") && count("The only definition") == 0 {
        return Some(
            "compare the name with those that the hosts know (fence_xvm -o list), and with pcmk_host_map of \
             the device in the cluster: pcs stonith config, or crm configure show. Is it right: fence_virtd \
             --check on the host of the domain looks closer",
        );
    }
    words.contains(HANGS).then_some(
        "restart libvirtd on that host: systemctl restart libvirtd (or virtqemud); guests go on running. \
         fence_virtd --check there looks closer",
    )
}

/// Returns the sentence about a domain at a host that does not answer, with the words of the others.
fn silent_owner(told: &str, words: &str) -> String {
    let words = if words.is_empty() { String::new() } else { format!("; {words}") };
    format!(
        "the domain is on at a host that does not answer this guest, or does not let it see the domain: \
         {told} told the status, and has it from that host. An off or a reboot fails, since the host that \
         has the domain does it{words}"
    )
}

/// Returns the sentence about hosts that do not let this guest fence the domain.
fn denied(hosts: &[IpAddr]) -> String {
    let at = if hosts.is_empty() { String::new() } else { format!("at {} ", addresses(hosts)) };
    format!("{at}the host's groups do not let this guest fence that domain; key and network are in order")
}

impl UntoldHosts {
    /// Returns what is known of each kind of host, and why it tells nothing.
    fn sentence(&self, action: Action) -> String {
        let clauses = [
            (
                &self.classic,
                format!(
                    "can't say what {action} would do: it takes no sealed request, and its call-backs are \
                     those of a host of the C programs"
                ),
            ),
            (
                &self.older,
                format!(
                    "can't say what {action} would do: it answered the status alone, as an older fence_virtd \
                     does"
                ),
            ),
            (&self.silent, format!("has not answered what {action} would do, and answers another question")),
        ];
        joined(&clauses)
    }

    /// Returns a step for each kind of host.
    fn next_step(&self) -> String {
        let steps = [
            (&self.classic, "put this project's fence_virtd on that host too".to_owned()),
            (&self.older, "put this project's newer fence_virtd on that host too".to_owned()),
            (
                &self.silent,
                "ask again, with a longer -t; fence_virtd --check on that host looks closer".to_owned(),
            ),
        ];
        let steps: Vec<_> = steps.into_iter().filter(|(it, _)| !it.is_empty()).map(|(_, it)| it).collect();
        format!(
            "{}; until then send the real request, or look at the domain there (virsh list)",
            steps.join("; ")
        )
    }
}

/// Returns the clauses about hosts, without those about none.
fn joined(clauses: &[(&Vec<IpAddr>, String)]) -> String {
    let with_hosts = |(hosts, clause): &(&Vec<IpAddr>, String)| format!("{} {clause}", addresses(hosts));
    let clauses: Vec<_> = clauses.iter().filter(|(hosts, _)| !hosts.is_empty()).map(with_hosts).collect();
    clauses.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn would_fail(words: &str) -> String {
        let words = format!("the host says: off vm1 (1111): {words}");
        HostCause::WouldFail { action: Action::Off, words }.next_step().into_owned()
    }

    #[test]
    fn a_domain_at_another_host_is_asked_for_there() {
        let step = would_fail("the domain is on at host h2 (10.77.0.2)");
        assert!(step.contains("with TCP name that host in the request (-T, ipaddr=)"), "{step}");
        let reasons = "the host says: off vm1 (1111): the domain is on at host h2 (10.77.0.2)".to_owned();
        assert_eq!(HostCause::Told { reasons, is_backend: false }.next_step(), step);
        // Neither is about this domain at one other host.
        for words in [
            "can't tell whether the domain is off: another domain with this name, UUID 2: the domain \
             is on at host h2",
            "host h2 (10.77.0.2) does not answer",
        ] {
            assert!(!would_fail(words).contains("-T"), "{words}");
        }
        let doubt = format!("{FORECAST_UNCERTAIN}: the domain is on at host h1, and at host h2 as well");
        assert!(would_fail(&doubt).starts_with("send the real request"), "{doubt}");
    }

    #[test]
    fn a_reason_without_a_step_gets_one() {
        for (words, step) in [
            (UNKNOWN, "pcmk_host_map"),
            ("libvirtd answers nothing any more: it hangs", "systemctl restart libvirtd (or virtqemud)"),
        ] {
            let told = HostCause::Told { reasons: format!("the host says: {words}"), is_backend: true };
            assert!(told.next_step().contains(step) && would_fail(words).contains(step), "{words}");
        }
        let two = format!("{UNKNOWN}; the host 10.0.0.2 says: host h3 does not answer");
        assert!(would_fail(&two).starts_with("do what the reason says"));
    }

    #[test]
    fn a_silent_owner_may_not_be_reached_at_all() {
        for (words, find) in [
            (
                "the host says: off vm1: the domain is on at host h1 (10.0.0.1)",
                "go to the host that the reason names",
            ),
            ("", "find the host that runs the domain"),
        ] {
            let cause = HostCause::SilentOwner { told: "10.0.0.2".to_owned(), words: words.to_owned() };
            assert!(cause.sentence().contains(words), "{}", cause.sentence());
            let step = cause.next_step().into_owned();
            assert!(
                step.starts_with(find) && step.contains("No line: this guest's request does not arrive"),
                "{step}"
            );
            assert!(step.contains("fence_virtd --check"), "{step}");
        }
    }

    #[test]
    fn hosts_are_named() {
        let hosts = vec![[10, 0, 0, 2].into()];
        let denied = HostCause::Denied { hosts: hosts.clone() };
        assert!(denied.sentence().starts_with("at 10.0.0.2 the host's groups do not let this guest"));
        assert!(HostCause::Denied { hosts: Vec::new() }.sentence().starts_with("the host's groups"));
        let classic = |is_dry_run| AgreementCause::ClassicHost {
            hash: HashType::Sha256,
            hosts: hosts.clone(),
            is_dry_run,
        };
        let said = classic(true).sentence().into_owned();
        assert!(
            said.starts_with("the host 10.0.0.2 takes no sealed requests: a fence_virtd of the C"),
            "{said}"
        );
        assert!(classic(false).next_step().starts_with("-c sha256 (hash=sha256) is taken"));
        // No hash helps where only a sealed question would.
        assert!(classic(true).next_step().starts_with("such a host can't be asked what an action would do"));
    }
}
