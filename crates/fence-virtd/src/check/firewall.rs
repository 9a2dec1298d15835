// SPDX-License-Identifier: GPL-2.0-or-later
//! Hints at a firewall that may block requests. Rules can say anything in any order, so these are never more
//! than hints: a rule drops the port, or a rule drops all and no rule names the port. Runs in the process of
//! `--check`, with one thread for each tool. Must never change a rule or load a module.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use fence_config::{Config, Listener, Peers};
use fence_wire::escaped;

use super::finding::Finding;
use crate::peers::settings::call_back_port;

const CHECK: &str = "firewall";
/// Time for one tool.
const LIMIT: Duration = Duration::from_secs(5);

/// Returns hints at rules that may drop requests or call-backs.
pub(super) fn hints(config: &Config) -> Vec<Finding> {
    let mut wanted = BTreeSet::new();
    for it in &config.listeners {
        match it {
            Listener::Multicast(it) => wanted.insert(("udp", it.port)),
            Listener::Tcp(it) if !it.address.is_loopback() => wanted.insert(("tcp", it.port)),
            Listener::Tcp(_) | Listener::Vsock(_) | Listener::Serial(_) => false,
        };
    }
    let calls_back = config.multicasts().next().is_some();
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    let (mut rules_of_hosts, of_hosts) = (None, port_of_hosts(config));
    let bridges = config.multicasts().map(|it| it.interface.as_deref());
    let bridges: Vec<_> = bridges.collect::<Option<_>>().unwrap_or_default();
    let mut look = |tool: &str, rules: &FirewallRules, found: &mut Vec<Finding>| {
        found.extend(judge(tool, rules, &wanted, calls_back, &bridges));
        if of_hosts.is_some_and(|port| rules.drop("tcp", port) && !names_port(&rules.text, "tcp", port)) {
            rules_of_hosts = of_hosts;
        }
    };
    // Rules of iptables-nft are seen here too.
    match output("nft", &["list", "ruleset"]) {
        Ok(rules) => look("nft", &nft(&rules), &mut found),
        Err(ToolFailure::Failed(why)) => {
            let next = "run this as root, or look by hand: nft list ruleset";
            found.push(Finding::warning(CHECK, "nft", format!("the rules can't be seen: {why}"), next));
        }
        Err(ToolFailure::NoTool) => {}
    }
    // Not without need: the tool would load the module.
    let is_loaded =
        std::fs::read_to_string("/proc/net/ip_tables_names").is_ok_and(|it| it.contains("filter"));
    if is_loaded && let Ok(rules) = output("iptables-save", &["-t", "filter"]) {
        look("iptables", &iptables(&rules), &mut found);
    }
    if found.is_empty() {
        found.push(Finding::ok(CHECK, "", all_clear(&wanted, calls_back, rules_of_hosts)));
    }
    found
}

/// Returns the port at which hosts with the C daemon call this one back; none where nobody is asked, or
/// where a listener has it and another one is drawn.
fn port_of_hosts(config: &Config) -> Option<u16> {
    let port = call_back_port(config);
    let is_asked = config.daemon.peers != Peers::Nobody && config.multicasts().next().is_some();
    (is_asked && port != 0).then_some(port)
}

/// Returns what was looked at, where no rule is in its way. `of_hosts`: the port for call-backs of other
/// hosts, where rules may drop these. A host alone needs none.
fn all_clear(wanted: &BTreeSet<(&str, u16)>, calls_back: bool, of_hosts: Option<u16>) -> String {
    let mut looked: Vec<_> = wanted.iter().map(|(kind, port)| format!("{kind} port {port} in")).collect();
    looked.extend(calls_back.then(|| "tcp to the guests out".to_owned()));
    let mut text = format!("no rules are in the way, as far as can be seen, of: {}", looked.join(", "));
    if let Some(port) = of_hosts {
        let _ = write!(
            text,
            "; rules may drop tcp port {port} in: only hosts with the C daemon, and --check, need it, to be \
             called back by other hosts"
        );
    }
    text
}

/// Rough summary of a set of rules.
#[derive(Default, PartialEq, Eq, Debug)]
struct FirewallRules {
    /// Lines by which incoming packets are dropped.
    input: Vec<String>,
    /// Lines of other chains that drop packets. Such a chain may be part of what comes in.
    inner: Vec<String>,
    /// Some outgoing packets are dropped.
    output: bool,
    /// The rules as text.
    text: String,
}

impl FirewallRules {
    /// Returns whether a line may drop what comes in to this port.
    fn drop(&self, kind: &str, port: u16) -> bool {
        self.input.iter().any(|it| may_drop(it, kind, port))
    }

    /// Returns the first line that drops just this port, and before which no line lets it in. A line about
    /// other interfaces than the guests' `bridges` does not count.
    fn line_against(&self, kind: &str, port: u16, bridges: &[&str]) -> Option<&str> {
        let is_it = |line: &str| is_about(line, kind) && ports_of(line).is_some_and(|it| has_port(it, port));
        let is_elsewhere = |line: &str| {
            let has = |word: &str| line.split([' ', '"']).any(|it| it == word);
            ["iif", "iifname", "-i"].into_iter().any(has) && !bridges.iter().copied().any(has)
        };
        let lets_in = |it: &str| it.split(' ').any(|word| word.eq_ignore_ascii_case("accept")) && is_it(it);
        let mut lines = self.input.iter().chain(&self.inner).map(String::as_str);
        lines.find(|line| {
            let mut before = self.text.lines().map(str::trim).take_while(|it| it != line);
            is_it(line)
                && !is_negated(line)
                && (bridges.is_empty() || !is_elsewhere(line))
                && !before.any(lets_in)
        })
    }
}

fn judge(
    tool: &str,
    rules: &FirewallRules,
    wanted: &BTreeSet<(&str, u16)>,
    calls_back: bool,
    bridges: &[&str],
) -> Vec<Finding> {
    let mut found = Vec::new();
    let firewalld = is_firewalld(&rules.text);
    for (kind, port) in wanted {
        if let Some(line) = rules.line_against(kind, *port, bridges) {
            let text = format!(
                "a rule drops {kind} port {port} in: {}. Requests that it meets do not arrive",
                escaped(line)
            );
            let next = format!(
                "take that rule out, or let {kind} port {port} in from the guests' bridge before it. If it \
                 is for another network than that of the guests, nothing has to be done"
            );
            found.push(Finding::warning(CHECK, tool, text, next));
        } else if rules.drop(kind, *port) && !names_port(&rules.text, kind, *port) {
            let next = if firewalld {
                format!(
                    "firewall-cmd --permanent --zone=ZONE --add-port={port}/{kind} && firewall-cmd --reload \
                     (ZONE: \
                         that of the guests' bridge)"
                )
            } else {
                format!("allow {kind} port {port} to this host, from the guests' bridge")
            };
            let text = format!(
                "rules drop what comes in, and none names {kind} port {port}: requests may be dropped"
            );
            found.push(Finding::warning(CHECK, tool, text, next));
        }
    }
    if calls_back && rules.output {
        let text = "rules drop what goes out: call-backs (TCP, to any port of a guest) may be dropped";
        found.push(Finding::warning(CHECK, tool, text, "allow TCP from this host to the guests"));
    }
    found
}

/// Returns whether a line that drops may do so with what comes in to this port: it names no port and not
/// the other protocol alone, or it names this port.
fn may_drop(line: &str, kind: &str, port: u16) -> bool {
    let has_digits = |it: &&str| it.contains(|c: char| c.is_ascii_digit());
    let named = ports_of(line).filter(has_digits);
    is_about(line, kind) && named.is_none_or(|it| has_port(it, port) != is_negated(line))
}

/// Returns the ports to which a line is limited: what stands between `dport` and the next word.
fn ports_of(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("dport")?;
    let rest = rest.trim_start_matches('s');
    Some(rest.split_once(|c: char| c.is_ascii_alphabetic() || c == '@').map_or(rest, |it| it.0))
}

/// Returns true if a line is about all ports but those that it names.
fn is_negated(line: &str) -> bool {
    ["dport !=", "! --dport"].into_iter().any(|it| line.contains(it))
}

fn is_firewalld(rules: &str) -> bool {
    rules.contains("table inet firewalld")
}

/// Returns true where a line of the rules names a port, in a word or a range, and not for the other protocol
/// alone.
fn names_port(rules: &str, kind: &str, port: u16) -> bool {
    rules.lines().filter(|it| is_about(it, kind)).any(|it| has_port(it, port))
}

/// Returns true if a line is not about the other protocol alone.
fn is_about(line: &str, kind: &str) -> bool {
    let words = line.split(|c: char| !c.is_ascii_alphanumeric());
    let named: BTreeSet<_> = words.filter(|it| ["tcp", "udp"].contains(it)).collect();
    named.is_empty() || named.contains(kind)
}

fn has_port(line: &str, port: u16) -> bool {
    let words = line.split(|c: char| !c.is_ascii_digit() && c != '-' && c != ':');
    words.filter(|it| !it.is_empty()).any(|word| match word.split_once(['-', ':']) {
        None => word.parse() == Ok(port),
        Some((from, to)) => match (from.parse::<u16>(), to.parse::<u16>()) {
            (Ok(from), Ok(to)) => (from..=to).contains(&port),
            _ => false,
        },
    })
}

/// Summarises `nft list ruleset`: chains whose hook is input or output and that drop, by policy or by rule.
fn nft(text: &str) -> FirewallRules {
    let mut rules = FirewallRules { text: text.to_owned(), ..FirewallRules::default() };
    let mut hook = "";
    for line in text.lines().map(str::trim) {
        if line.starts_with("chain ") || line == "}" {
            hook = "";
        } else if line.contains("hook input") {
            hook = "input";
        } else if line.contains("hook output") {
            hook = "output";
        } else if line.contains(" hook ") {
            hook = "other";
        }
        let mut words = line.split([' ', ';']);
        let drops = words.any(|it| it == "drop" || it == "reject")
            && !line.contains("ct state invalid")
            && !line.contains("ct state { invalid }");
        match hook {
            "input" if drops => rules.input.push(line.to_owned()),
            "" if drops => rules.inner.push(line.to_owned()),
            "output" => rules.output |= drops && is_about(line, "tcp"),
            _ => {}
        }
    }
    rules
}

/// Summarises `iptables-save -t filter`.
fn iptables(text: &str) -> FirewallRules {
    let mut rules = FirewallRules { text: text.to_owned(), ..FirewallRules::default() };
    for line in text.lines().map(str::trim) {
        let mut words = line.split([' ', ':']);
        let chain = words.find(|it| !["", "-A"].contains(it)).unwrap_or_default();
        let drops = !line.contains("INVALID") && words.any(|it| it == "DROP" || it == "REJECT");
        match chain {
            _ if !drops => {}
            "INPUT" => rules.input.push(line.to_owned()),
            "OUTPUT" => rules.output |= is_about(line, "tcp"),
            "FORWARD" => {}
            _ => rules.inner.push(line.to_owned()),
        }
    }
    rules
}

enum ToolFailure {
    NoTool,
    Failed(String),
}

/// Returns the output of a tool. The tool gets neither input nor a terminal, and its time is limited.
fn output(tool: &str, arguments: &[&str]) -> Result<String, ToolFailure> {
    let path = ["/usr/sbin", "/sbin", "/usr/bin"].map(|it| std::path::Path::new(it).join(tool));
    let path = path.iter().find(|it| it.exists()).ok_or(ToolFailure::NoTool)?;
    let failed = |it: std::io::Error| ToolFailure::Failed(it.to_string());
    let mut child = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let (tell, told) = mpsc::channel();
    if let Some(mut pipe) = child.stdout.take() {
        thread::spawn(move || {
            let mut text = Vec::new();
            let read = pipe.read_to_end(&mut text);
            let _ = tell.send(read.map(|_| String::from_utf8_lossy(&text).into_owned()));
        });
    }
    let text = told.recv_timeout(LIMIT);
    if text.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    match text {
        Ok(Ok(text)) if status.success() => Ok(text),
        Ok(Ok(_)) => Err(ToolFailure::Failed(format!("{tool} ended with {status}"))),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(ToolFailure::Failed(format!("{tool} took longer than {} s", LIMIT.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DROPS: &str = "\
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		tcp dport 22 accept
	}

	chain forward {
		type filter hook forward priority filter; policy drop;
	}

	chain output {
		type filter hook output priority filter; policy accept;
	}
}
";

    fn texts(rules: &FirewallRules) -> Vec<String> {
        let found = judge("nft", rules, &BTreeSet::from([("udp", 1229)]), true, &["br0"]);
        found.into_iter().map(|it| it.text).collect()
    }

    #[test]
    fn a_policy_that_drops() {
        let [text] = &texts(&nft(DROPS))[..] else { panic!("one hint") };
        assert!(text.contains("port 1229") && text.contains("udp"), "{text}");
        let open = DROPS.replace("tcp dport 22", "udp dport { 22, 1200-1300 }");
        assert_eq!(texts(&nft(&open)), [""; 0]);
        let out = open.replace("policy accept", "policy drop");
        assert!(texts(&nft(&out))[0].contains("call-backs"));
    }

    #[test]
    fn forwarding_and_what_is_invalid_are_no_matter() {
        let rules = nft(&DROPS.replacen("policy drop", "policy accept", 1));
        assert!(rules.input.is_empty() && !rules.output);
        let invalid = DROPS.replacen("policy drop;", "policy accept;\n\t\tct state invalid drop", 1);
        assert!(nft(&invalid).input.is_empty());
        let rejects = "policy accept;\n\t\treject with icmpx admin-prohibited";
        assert_eq!(nft(&DROPS.replacen("policy drop;", rejects, 1)).input.len(), 1);
    }

    #[test]
    fn rules_of_iptables() {
        let rules = iptables(
            "*filter\n:INPUT DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\n",
        );
        assert_eq!((rules.input.len(), rules.output), (1, false));
        let rules =
            iptables("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j REJECT --reject-with icmp-host-prohibited\n");
        assert!(rules.drop("udp", 1229));
        assert!(!iptables("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n").drop("udp", 1229));
    }

    #[test]
    fn a_port_is_a_word_or_in_a_range() {
        assert!(names_port("udp dport 1229 accept", "udp", 1229));
        assert!(names_port("--dports 1000:1300 ", "udp", 1229));
        assert!(!names_port("udp dport 12290 accept", "udp", 1229) && !names_port("12.29", "udp", 1229));
    }

    #[test]
    fn a_rule_for_one_protocol_lets_no_other_in() {
        for (line, udp, tcp) in [
            ("udp dport 1229 accept", true, false),
            ("tcp dport { 22, 1229 } accept", false, true),
            ("-A INPUT -p udp -m udp --dport 1229 -j ACCEPT", true, false),
            ("meta l4proto { tcp, udp } th dport 1229 accept", true, true),
            ("elements = { 1229 }", true, true),
        ] {
            assert_eq!((names_port(line, "udp", 1229), names_port(line, "tcp", 1229)), (udp, tcp), "{line}");
        }
        let open = nft(&DROPS.replace("tcp dport 22", "udp dport 1229"));
        let tcp = judge("nft", &open, &BTreeSet::from([("tcp", 1229)]), false, &[]);
        assert!(tcp.len() == 1 && tcp[0].text.contains("tcp port 1229"), "{tcp:?}");
    }

    #[test]
    fn a_rule_against_the_port_is_named_and_one_against_another_is_no_matter() {
        let open = DROPS.replacen("policy drop", "policy accept", 1);
        let nft_with = |rules: &str| nft(&open.replace("tcp dport 22 accept", rules));
        let iptables_with =
            |rules: &str| iptables(&format!("*filter\n:INPUT ACCEPT [0:0]\n{rules}\nCOMMIT\n"));
        for (rules, line) in [
            (nft_with("udp dport 1229 drop"), "udp dport 1229 drop"),
            (nft_with("udp dport { 53, 1000-1300 } counter packets 9 bytes 9 reject"), "udp dport { 53"),
            (nft_with("iifname \"br0\" udp dport 1229 drop"), "iifname"),
            (nft_with("tcp dport 1229 accept\nudp dport 1229 drop\nudp dport 1229 accept"), "udp dport"),
            (nft_with("jump own\n}\nchain own {\nmeta l4proto { tcp, udp } th dport 1229 drop"), "meta"),
            (iptables_with("-A INPUT -p udp -m udp --dport 1229 -j DROP"), "-A INPUT"),
            (iptables_with("-A ufw-user-input -p udp -m multiport --dports 9,1229 -j REJECT"), "-A ufw"),
        ] {
            let [text] = &texts(&rules)[..] else { panic!("one hint: {rules:?}") };
            assert!(text.starts_with(&format!("a rule drops udp port 1229 in: {line}")), "{text}");
            assert_eq!(rules.drop("tcp", 1229), line == "meta" && !rules.input.is_empty(), "{rules:?}");
        }
        for rules in [
            nft_with("tcp dport 1229 drop"),
            nft_with("udp dport 5353 counter packets 1229 bytes 1229 drop"),
            nft_with("udp dport != { 22, 1229 } drop"),
            nft_with("iifname \"br0\" udp dport 1229 accept\nudp dport 1229 drop"),
            nft_with("iifname \"eth0\" udp dport 1229 drop"),
            iptables_with("-A INPUT -p udp ! --dport 1229 -j DROP"),
            iptables_with("-A FORWARD -p udp --dport 1229 -j DROP"),
        ] {
            assert_eq!(texts(&rules), [""; 0], "{rules:?}");
        }
    }

    #[test]
    fn it_is_said_what_was_looked_at() {
        let wanted = BTreeSet::from([("udp", 1229)]);
        let text = all_clear(&wanted, true, None);
        assert!(text.ends_with("of: udp port 1229 in, tcp to the guests out"), "{text}");
        assert!(all_clear(&wanted, true, Some(1229)).contains("rules may drop tcp port 1229 in"));
    }
}
