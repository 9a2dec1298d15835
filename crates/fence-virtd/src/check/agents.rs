// SPDX-License-Identifier: GPL-2.0-or-later
//! Check of the agent backend's devices: their agents and options, their secrets, and the output of a real
//! `monitor` and `list`. Runs in the process of `--check`, on a runtime of its own. Must never act on a
//! machine.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use fence_cli::shown;
use fence_config::{AgentBackend, AgentDevice, Config};
use fence_core::agent::domains;
use fence_core::domain::DomainId;
use fence_wire::escaped;
use nix::unistd::{User, geteuid};

use super::finding::{Finding, USER};
use crate::backend::agent::examine::{AgentCapabilities, DeviceExamination, examine};
use crate::util::{counted, first_names};

const CHECK: &str = "agent";
/// Names that are shown of a longer list.
const MAX_SHOWN: usize = 10;

pub(super) fn all(config: &Config) -> Vec<Finding> {
    config.agent().map(of).unwrap_or_default()
}

fn of(backend: &AgentBackend) -> Vec<Finding> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let next = "look at the limits of this shell: ulimit -a";
            return vec![Finding::failed(CHECK, "", format!("agents can't be run: {error}"), next)];
        }
    };
    let seen = runtime.block_on(examine(backend));
    // A file that can't be read in time keeps a thread.
    runtime.shutdown_background();
    let both = || backend.devices.iter().zip(&seen);
    both()
        .flat_map(|(device, seen)| {
            let is_other =
                |it: &&(&AgentDevice, &DeviceExamination)| it.0.name != device.name && it.1.is_well();
            let stands_in = both().filter(|it| is_other(&it)).find(|it| serves(it.0, device));
            findings(device, seen, stands_in.map(|it| it.0))
        })
        .chain(sources(backend))
        .collect()
}

/// Says whose requests are recognised by their cards.
fn sources(backend: &AgentBackend) -> Option<Finding> {
    let known = domains::sources(&backend.devices);
    let shown = |(name, _, cards): &(String, DomainId, BTreeSet<String>)| {
        let cards: Vec<_> = cards.iter().map(String::as_str).collect();
        format!("{} ({})", escaped(name), cards.join(", "))
    };
    let named: Vec<_> = known.iter().map(shown).collect();
    let named = first_names(&named, MAX_SHOWN);
    let others = "any other machine may be the source of a request, and waits for every other one";
    let text = format!("known by the network card, by multicast: {named}; {others}");
    (!known.is_empty()).then(|| Finding::ok("source", "", text))
}

/// Returns true where a device serves all domains of another: members of a pool, of which one is its master.
fn serves(device: &AgentDevice, other: &AgentDevice) -> bool {
    let lists_the_same = device.plugs.listed && device.agent == other.agent;
    let names = |domain: &str| device.plugs.named.iter().any(|it| it.domain == domain);
    (lists_the_same || !other.plugs.listed)
        && other.plugs.named.iter().all(|it| lists_the_same || names(&it.domain))
}

fn findings(device: &AgentDevice, seen: &DeviceExamination, stands_in: Option<&AgentDevice>) -> Vec<Finding> {
    let name = escaped(&device.name).to_string();
    let mut found = vec![agent(&name, device, seen, stands_in)];
    if let Ok(about) = &seen.about {
        found.extend(options(&name, about));
        found.extend(about.own_files.iter().map(|(option, path)| own_file(&name, option, path)));
        found.extend(plugs(&name, device, about, seen));
    }
    found.extend(seen.open_secrets.iter().map(|option| {
        let next =
            format!("{option}_file = \"/etc/fence_virt/…\"; names a file of mode 0600 that it is read from");
        Finding::warning("secret", format!("{name}: {option}"), "stands in the configuration itself", next)
    }));
    found.extend(seen.secret_files.iter().map(|(option, path, read)| secret(&name, option, path, read)));
    found
}

/// Checks whether the device can carry requests out. `stands_in` serves the same domains and is well.
fn agent(
    name: &str,
    device: &AgentDevice,
    seen: &DeviceExamination,
    stands_in: Option<&AgentDevice>,
) -> Finding {
    let program = match &seen.program {
        Ok(path) => shown(path),
        Err(why) => {
            let next = "Debian has most of them in fence-agents; one of your own belongs to root, mode 0755";
            return Finding::failed(CHECK, name, why, next);
        }
    };
    let failed = |why: &str| {
        let text = format!("{program}: {why}");
        if seen.secret_files.iter().any(|(_, _, read)| read.is_err()) {
            return Finding::failed(CHECK, name, text, "mend the file that is named below");
        }
        if let Some(other) = stands_in {
            let next = format!(
                "{} serves the same and is well; a member of a pool that is not its master says no",
                escaped(&other.name)
            );
            return Finding::warning(CHECK, name, text, next);
        }
        let next = if why.contains("killed") {
            format!(
                "does this host reach its endpoint, within {} s (status_timeout)? see agent.md, \"When it \
                 fails\"",
                device.status_timeout.as_secs()
            )
        } else {
            "run the agent by hand with the same options on its standard input: agent.md, \"When it fails\""
                .to_owned()
        };
        Finding::failed(CHECK, name, text, next)
    };
    match (&seen.about, &seen.monitor) {
        (Err(why), _) => failed(why),
        (Ok(_), Some(Err(why))) => failed(why),
        (Ok(about), _) if about.is_silent => {
            let next = "have its action metadata print its options and actions; until then it is told the \
                        plug by every name";
            Finding::warning(CHECK, name, format!("{program}: monitor is well, but it has no metadata"), next)
        }
        (Ok(_), Some(Ok(took))) => {
            Finding::ok(CHECK, name, format!("{program}: monitor is well, {} ms", took.as_millis()))
        }
        (Ok(_), None) => Finding::ok(CHECK, name, format!("{program}: there")),
    }
}

fn options(name: &str, about: &AgentCapabilities) -> impl Iterator<Item = Finding> {
    about.unknown.iter().map(move |(option, meant)| {
        let next = match meant {
            Some(meant) => format!("did you mean {meant}?"),
            None => "its metadata lists those that it has: run it with -o metadata".to_owned(),
        };
        Finding::warning(
            "option",
            format!("{name}: {}", escaped(option)),
            "its agent has no such option",
            next,
        )
    })
}

/// Checks a file that the agent reads, which has none of the daemon's rights.
fn own_file(name: &str, option: &str, path: &Path) -> Finding {
    const CHECK: &str = "file";
    let subject = format!("{name}: {option}");
    let file = shown(path);
    match fs::metadata(path) {
        Err(error) => {
            let next = "name a file that is there";
            Finding::failed(CHECK, subject, format!("{file}: {error}"), next)
        }
        Ok(it) => {
            let user = User::from_name(USER).ok().flatten().filter(|_| geteuid().is_root());
            let is_for = |user: &User| it.uid() == user.uid.as_raw() || it.mode() & 0o004 != 0;
            if user.as_ref().is_none_or(is_for) {
                return Finding::ok(CHECK, subject, format!("{file} is there"));
            }
            let next = format!("chown {USER} {file}; not needed where the daemon runs as root");
            Finding::warning(
                CHECK,
                subject,
                format!("{file} is read by the agent itself, which runs as {USER} under systemd"),
                next,
            )
        }
    }
}

/// Checks a file that the daemon reads.
fn secret(name: &str, option: &str, path: &Path, read: &Result<(), String>) -> Finding {
    const CHECK: &str = "secret";
    let subject = format!("{name}: {option}_file");
    let file = shown(path);
    match read {
        Ok(()) => Finding::ok(CHECK, subject, format!("{file} can be read")),
        Err(why) => {
            let next = if why.contains("first line") {
                format!(
                    "write the value, such as the password, into the first line of {file}, with an editor"
                )
            } else {
                format!(
                    "chown root {file}; chmod 600 {file}; its first line is the value. One that is not \
                     there: install -m 600 /dev/null {file}, then write the value into it, with an editor"
                )
            };
            Finding::failed(CHECK, subject, why, next)
        }
    }
}

/// Checks whether the device can serve its configured domains.
fn plugs(
    name: &str,
    device: &AgentDevice,
    about: &AgentCapabilities,
    seen: &DeviceExamination,
) -> Option<Finding> {
    const CHECK: &str = "plugs";
    let failed = |text: String, next: &str| Some(Finding::failed(CHECK, name, text, next));
    let warning = |text: String, next: &str| Some(Finding::warning(CHECK, name, text, next));
    let (listed, named) = (device.plugs.listed, device.plugs.named.len());
    if !about.takes_plug && listed {
        return failed(
            "its agent takes no plug, so it has no list".to_owned(),
            "name its domain: plugs = \"node1\";",
        );
    }
    if !about.takes_plug && named > 1 {
        return failed(
            format!("its agent takes no plug, so one machine would be fenced for each of {named} domains"),
            "a device for each, or the option that tells machines apart: plug_option = \"systems_uri\";",
        );
    }
    if listed && !about.lists {
        return failed(
            "plugs = \"*\", but its agent has no list".to_owned(),
            "name its domains, each with its plug: plugs = \"web1:101, web2:102\";",
        );
    }
    match seen.list.as_ref()? {
        Err(why) if listed => failed(
            why.clone(),
            "without it the device serves nothing: what may its user see at the endpoint?",
        ),
        Err(_) => None,
        Ok(list) if !list.missing.is_empty() => warning(
            format!("not in its list: {}", few(&list.missing)),
            "correct the plug; or its user may not see it at the endpoint",
        ),
        Ok(list) if listed && list.count == 0 => warning(
            "its list is empty".to_owned(),
            "if there should be some: what may its user see at the endpoint?",
        ),
        Ok(list) if listed && list.is_noisy => warning(
            format!("its list has {}, and lines that name none", counted(list.count, "plug")),
            "run its action list by hand and look",
        ),
        Ok(list) => Some(Finding::ok(CHECK, name, format!("its list has {}", counted(list.count, "plug")))),
    }
}

fn few(names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(MAX_SHOWN).map(|it| escaped(it).to_string()).collect();
    let more = if names.len() > MAX_SHOWN { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_for_a_secret_without_a_value_is_to_write_it() {
        let next = |why: &str| {
            let read = Err(why.to_owned());
            secret("one", "password", Path::new("/p"), &read).next.unwrap_or_default()
        };
        let empty = next("the first line of /p is empty");
        assert!(empty.starts_with("write the value") && !empty.contains("chmod"), "{empty}");
        assert!(next("others can read /p, or write it: chmod 600 it").contains("chmod 600 /p"));
        assert!(next("can't read /p: No such file").contains("then write the value into it"));
    }
}
