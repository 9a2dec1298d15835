// SPDX-License-Identifier: GPL-2.0-or-later
//! A summary of the metrics for people: `fence_virtd --status`, and the event that SIGUSR1 writes to the log.
//!
//! Both are made of the text that is served as metrics, so that they never differ from it. `--status` runs in
//! its own process and must never change anything.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fence_cli::config_file;
use fence_config::MAX_FILE_SIZE;
use fence_wire::escaped;

use crate::observe::metrics_reader::{self, MetricSample, samples};
use crate::util::heard::heard_ago;

/// Time for the daemon to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Reason why there is no summary. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatusError {
    #[error("can't read {path}: {source}; -f names another file")]
    Config { path: String, source: io::Error },
    #[error("{0} has errors: fence_virtd --check shows them")]
    BadConfig(String),
    #[error(
        "{0} has no metrics, by which a running daemon could be asked: set metrics = \"127.0.0.1:9229\" in \
         its fence_virtd block and restart the daemon. Or: kill -USR1 PID writes the same to the daemon's log"
    )]
    NoMetrics(String),
    #[error(
        "no daemon answers at {address}: {source}; is it running? It must have been restarted since metrics \
         was set"
    )]
    Silent { address: String, source: io::Error },
    #[error(
        "the daemon at {0} does not answer within {limit} s: it stands still, or this host is overloaded; \
         fence_virtd --check tells more", limit = LIMIT.as_secs()
    )]
    Stands(String),
    #[error("what answers at {0} is no fence_virtd")]
    OtherProgram(String),
}

/// Reads the metrics of the daemon that runs with this configuration file, and returns them as lines.
///
/// # Errors
/// The metrics can't be read.
pub(crate) fn ask(file: &Path) -> Result<String, StatusError> {
    let path = fence_cli::shown(file);
    let read = config_file::read(file, MAX_FILE_SIZE);
    let read = read.map_err(|source| StatusError::Config { path: path.clone(), source })?;
    let config =
        fence_config::load(&read.source).config.ok_or_else(|| StatusError::BadConfig(path.clone()))?;
    let address = config.daemon.metrics.ok_or(StatusError::NoMetrics(path))?;
    let answer = metrics_reader::fetch(&address, LIMIT).map_err(|source| match () {
        () if metrics_reader::is_time_out(&source) => StatusError::Stands(address.to_string()),
        () => StatusError::Silent { address: address.to_string(), source },
    })?;
    let other_program = || StatusError::OtherProgram(address.to_string());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(other_program)?;
    let samples = samples(body);
    if !head.starts_with("HTTP/1.0 200 ") || !samples.iter().any(|it| it.name == "build_info") {
        return Err(other_program());
    }
    Ok(lines(&samples).into_iter().map(|it| escaped(&it).to_string() + "\n").collect())
}

/// Returns the summary of a text of metrics in one line.
pub(crate) fn one_line(text: &str) -> String {
    lines(&samples(text)).join("; ")
}

fn lines(samples: &[MetricSample<'_>]) -> Vec<String> {
    let named = |name: &'static str| samples.iter().filter(move |it| it.name == name);
    let value = |name| named(name).map(|it| it.value).next_back().unwrap_or_default();
    let is_on = |it: &MetricSample<'_>| it.value > 0.0;
    let mut lines = Vec::new();
    let version = named("build_info").next().map(|it| it.label("version")).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let hours = (now - value("start_time_seconds")).max(0.0) / 3600.0;
    lines.push(format!("fence_virtd {version}, running for {hours:.1} h"));
    for it in named("listener_up") {
        let state = if is_on(it) { "serves" } else { "DOES NOT SERVE" };
        lines.push(format!("listener {}: {state}", it.label("listener")));
    }
    for it in named("libvirt_up") {
        let uri = it.label("uri");
        let state = if is_on(it) { "connected" } else { "NO CONNECTION" };
        let running = named("domains_running").find(|it| it.label("uri") == uri);
        // Nobody knows the number of now without a connection.
        let when = if is_on(it) { "" } else { " when last seen" };
        let running = running.map(|it| format!(", {} running{when}", with_noun(it.value, "domain")));
        let running = running.unwrap_or_default();
        lines.push(format!("libvirt {uri}: {state}{running}"));
    }
    for it in named("agent_device_up") {
        let device = it.label("device");
        let of_device = named("agent_runs_total").filter(|it| it.label("device") == device);
        let runs = of_device.fold(0.0, |sum, it| sum + it.value);
        let state = match (is_on(it), runs > 0.0) {
            (true, _) => "answers",
            (false, true) => "DOES NOT ANSWER",
            (false, false) => "not asked yet",
        };
        lines.push(format!("device {device}: {state}, {}", with_noun(runs, "run")));
    }
    if named("corosync_up").next().is_some() {
        let of = |kind: &str| {
            named("cluster_hosts").filter(|it| it.label("kind") == kind).map(|it| it.value).sum::<f64>()
        };
        let (new, old, silent) = (of("new"), of("old"), of("not_heard"));
        let state = if value("corosync_up") > 0.0 { "joined" } else { "NOT JOINED" };
        let silent = if silent > 0.0 { format!(", {silent} NOT HEARD") } else { String::new() };
        lines.push(format!(
            "corosync: {state}, {}, {old} of them with the C daemon{silent}",
            with_noun(new + old, "host")
        ));
        for it in named("cluster_asked_in_vain") {
            lines.push(format!("{}: ASKED LAST, AND DID NOT ANSWER OR COULD NOT TELL", it.label("node")));
        }
        let lost = value("lost_domains");
        if lost > 0.0 {
            lines.push(format!("domains last seen on at hosts that are not heard: {lost}"));
        }
    }
    lines.extend(of_peers(samples));
    lines.extend(of_audit_file(samples));
    let requests = named("requests_total").map(|it| {
        (format!("{} {} by {}", it.label("action"), it.label("result"), it.label("transport")), it.value)
    });
    lines.push(counted("requests", requests));
    let (now, waiting) = (value("requests_in_flight"), value("requests_waiting"));
    lines.push(format!("requests now: {now} in flight, {waiting} waiting"));
    let drops = named("drops_total")
        .map(|it| (format!("{} {}", it.label("transport"), it.label("reason")), it.value));
    lines.push(counted("dropped", drops));
    let kept = if value("remembered_on_disk") > 0.0 { "kept on disk" } else { "IN MEMORY ALONE" };
    let unwritten = value("remembered_unwritten_packets");
    let unwritten = if unwritten > 0.0 { format!(", {unwritten} NOT WRITTEN") } else { String::new() };
    lines.push(format!("packets remembered: {}, {kept}{unwritten}", value("remembered_packets")));
    lines
}

/// Returns the line of an audit file that did not get every record.
fn of_audit_file(samples: &[MetricSample<'_>]) -> Option<String> {
    let value = |name: &str| samples.iter().rfind(|it| it.name == name).map(|it| it.value);
    let missing = value("audit_records_missing_total").unwrap_or_default();
    let takes_records = value("audit_log_up")? > 0.0;
    match (takes_records, missing > 0.0) {
        (true, false) => None,
        (true, true) => {
            Some(format!("audit_log: written, {} in the log alone", with_noun(missing, "record")))
        }
        (false, _) => Some(format!(
            "audit_log: CAN'T BE WRITTEN, {} in the log alone; fence_virtd --check says what it lacks",
            with_noun(missing, "record")
        )),
    }
}

/// Returns the lines of the other hosts: each with its key, since two may have one name.
fn of_peers(samples: &[MetricSample<'_>]) -> Vec<String> {
    let named = |name: &'static str| samples.iter().filter(move |it| it.name == name);
    let mut lines = Vec::new();
    for it in named("peer_own_key") {
        lines.push(format!("this host to the others: key {}", it.label("key")));
    }
    for it in named("peer_last_heard_seconds") {
        let heard = Duration::try_from_secs_f64(it.value).map_or(0, |it| it.as_secs());
        let daemon = match it.label("key") {
            _ if it.label("kind") == "legacy" => " (C daemon)".to_owned(),
            "" => String::new(),
            key => format!(", key {key}"),
        };
        let is_same = |other: &&MetricSample<'_>| {
            ["host", "key"].iter().all(|label| other.label(label) == it.label(label))
        };
        let is_silent = named("peer_did_not_answer").any(|it| is_same(&it));
        let silent = if is_silent { ", DID NOT ANSWER when asked last" } else { "" };
        lines.push(format!(
            "other host {}{daemon}: last heard {}{silent}",
            it.label("host"),
            heard_ago(heard)
        ));
    }
    for it in named("peer_not_asked_seconds") {
        let heard = Duration::try_from_secs_f64(it.value).map_or(0, |it| it.as_secs());
        let (host, heard) = (it.label("host"), heard_ago(heard));
        lines.push(format!(
            "other host {host}: WAS HEARD, AND peers = \"none\" LEAVES IT OUT; last heard {heard}"
        ));
    }
    for it in named("peer_pinned_key") {
        lines.push(format!("peers {}: bound to key {}", it.label("address"), it.label("key")));
    }
    for it in named("peer_never_answered") {
        let address = it.label("address");
        let is_heard =
            named("peer_last_heard_seconds").any(|heard| has_address(heard.label("host"), address));
        let is_asked = named("peer_asked_in_vain").any(|it| it.label("address") == address);
        let state = match (is_heard, is_asked) {
            (true, false) => "heard, and not asked yet",
            (true, true) => "heard, ASKED, AND DID NOT ANSWER",
            (false, _) => "NEVER ANSWERED",
        };
        lines.push(format!("peers {address}: {state}"));
    }
    for it in named("peer_other_key") {
        lines.push(format!("other host at {}: USES ANOTHER KEY than this one", it.label("address")));
    }
    if named("peer_missing").any(|it| it.value > 0.0) {
        lines.push("other hosts: ONE MAY BE MISSING; the log says why".to_owned());
    }
    lines
}

/// Returns whether a host, shown as "NAME (ADDRESS, ...)", has the address of this socket address.
fn has_address(host: &str, address: &str) -> bool {
    let ip = address.parse::<std::net::SocketAddr>().map(|it| it.ip().to_string());
    let addresses = host.rsplit_once('(').map_or("", |(_, it)| it.trim_end_matches(')'));
    ip.is_ok_and(|ip| addresses.split(", ").any(|it| it == ip))
}

/// Returns the sum, and the parts in order.
fn counted(what: &str, parts: impl Iterator<Item = (String, f64)>) -> String {
    let mut parts: Vec<_> = parts.filter(|(_, count)| *count > 0.0).collect();
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    let mut text = format!("{what}: {}", parts.iter().fold(0.0, |sum, it| sum + it.1));
    for (place, (name, count)) in parts.iter().enumerate() {
        let _ = write!(text, "{} {name} {count}", if place == 0 { " -" } else { "," });
    }
    text
}

/// Returns a sample's value with its noun.
fn with_noun(value: f64, noun: &str) -> String {
    // Counts of metrics are whole.
    format!("{value} {noun}{}", if value.to_bits() == 1f64.to_bits() { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_stands_out() {
        let text = "fence_virtd_listener_up{listener=\"tcp\"} 0\nfence_virtd_libvirt_up{uri=\"u\"} 0\n\
                    fence_virtd_domains_running{uri=\"u\"} 2\n\
                    fence_virtd_requests_total{transport=\"tcp\",action=\"off\",result=\"success\"} 2\n";
        let text = format!(
            "{text}fence_virtd_agent_device_up{{device=\"a\"}} \
             0\nfence_virtd_agent_device_up{{device=\"b\"}} 1\n\
             fence_virtd_agent_device_up{{device=\"c\"}} 0\n\
             fence_virtd_agent_runs_total{{device=\"a\",action=\"off\",result=\"exit_1\"}} 2\n\
             fence_virtd_agent_runs_total{{device=\"b\",action=\"status\",result=\"exit_0\"}} 3\n\
             fence_virtd_agent_runs_total{{device=\"a\",action=\"status\",result=\"killed\"}} 5\n\
             fence_virtd_peer_own_key{{key=\"0a\"}} 1\n\
             fence_virtd_peer_pinned_key{{address=\"10.0.0.3:1229\",key=\"0b\"}} 1\n\
             fence_virtd_peer_last_heard_seconds{{host=\"h3 (10.0.0.3)\",key=\"0b\",kind=\"ours\"}} 5\n\
             fence_virtd_peer_last_heard_seconds{{host=\"h3 (10.0.0.3)\",key=\"0c\",kind=\"ours\"}} 5\n\
             fence_virtd_peer_last_heard_seconds{{host=\"h2 (10.0.0.2)\",key=\"\",kind=\"legacy\"}} 5\n\
             fence_virtd_peer_never_answered{{address=\"10.0.0.4:1229\"}} 1\n\
             fence_virtd_peer_never_answered{{address=\"10.0.0.2:1229\"}} 1\n\
             fence_virtd_peer_last_heard_seconds{{host=\"h7 (10.0.0.7)\",key=\"0d\",kind=\"ours\"}} 5\n\
             fence_virtd_peer_never_answered{{address=\"10.0.0.7:1229\"}} 1\n\
             fence_virtd_peer_asked_in_vain{{address=\"10.0.0.7:1229\"}} 1\n\
             fence_virtd_peer_did_not_answer{{host=\"h7 (10.0.0.7)\",key=\"0d\"}} 1\n\
             fence_virtd_corosync_up 1\n\
             fence_virtd_lost_domains 1\n\
             fence_virtd_cluster_asked_in_vain{{node=\"node 2 (h2)\"}} 1\n\
             fence_virtd_peer_not_asked_seconds{{host=\"h5 (10.0.0.5)\"}} 5\n\
             fence_virtd_peer_other_key{{address=\"10.0.0.6\"}} 1\n\
             fence_virtd_peer_missing 1\n\
             fence_virtd_audit_log_up 0\n\
             fence_virtd_audit_records_missing_total 2\n"
        );
        let said = one_line(&text);
        for wanted in [
            "tcp: DOES NOT SERVE",
            "u: NO CONNECTION, 2 domains running when last seen",
            "device a: DOES NOT ANSWER, 7 runs; device b: answers, 3 runs; device c: not asked yet, 0 runs",
            "requests: 2 - off success by tcp 2",
            "dropped: 0;",
            "other host h2 (10.0.0.2) (C daemon): last heard ",
            "this host to the others: key 0a",
            "other host h3 (10.0.0.3), key 0b: last heard ",
            "other host h3 (10.0.0.3), key 0c: last heard ",
            "peers 10.0.0.3:1229: bound to key 0b",
            "peers 10.0.0.4:1229: NEVER ANSWERED",
            "peers 10.0.0.2:1229: heard, and not asked yet",
            "peers 10.0.0.7:1229: heard, ASKED, AND DID NOT ANSWER",
            "domains last seen on at hosts that are not heard: 1",
            "node 2 (h2): ASKED LAST, AND DID NOT ANSWER OR COULD NOT TELL",
            "other host h5 (10.0.0.5): WAS HEARD, AND peers = \"none\" LEAVES IT OUT; last heard ",
            "other host at 10.0.0.6: USES ANOTHER KEY than this one",
            "ONE MAY BE MISSING",
            " ago, DID NOT ANSWER when asked last; ",
            "audit_log: CAN'T BE WRITTEN, 2 records in the log alone",
        ] {
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
    }
}
