// SPDX-License-Identifier: GPL-2.0-or-later
//! Check of machines that libvirt lost: a process of this host has a machine that is off by libvirt's word,
//! or has it beside the one that libvirt knows.
//!
//! One search of /proc, before libvirt is asked, is enough for all domains: what was there before and after
//! libvirt's word was there with it. Whether that is a fault is looked at again a moment later, since a
//! machine may just start or end.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fence_core::domain::DomainId;
use fence_wire::escaped;
use libvirt_host::{Connection, Error};

use super::finding::Finding;
use super::hosts::{CheckedDomain, MAX_NAMED};
use crate::hypervisor::stray::{MachineProcess, MachineProcesses, RemnantWords, hidden};
use crate::hypervisor::uri::Uri;
use crate::hypervisor::uuid::{domain_id, libvirt_uuid};
use crate::util::counted;

const CHECK: &str = "domain";

/// Time after which a machine that just starts or ends has done so.
const SETTLED: Duration = Duration::from_secs(1);

/// Search of this host's processes for all domains.
#[derive(Clone)]
pub(super) struct MachineSearch {
    processes: Arc<MachineProcesses>,
    /// Reason why the processes could not be seen.
    blind: Option<String>,
}

/// Machine that is off by libvirt's word, and that a process has or may have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LostMachine {
    uuid: DomainId,
    name: String,
    words: RemnantWords,
    /// False: the process may have the machine.
    is_certain: bool,
}

/// Machine that has more processes than libvirt has instances.
#[derive(Clone, PartialEq, Eq, Debug)]
struct TwiceMachine {
    uuid: DomainId,
    name: String,
    pids: Vec<u32>,
}

impl MachineSearch {
    /// Searches, if the machines of one of these URIs are processes here.
    pub(super) fn make(uris: &[String]) -> Option<Self> {
        if !uris.iter().any(|it| Uri::of(it).has_processes_here()) {
            return None;
        }
        let processes = Arc::new(MachineProcesses::default());
        let blind = processes.search(Instant::now()).err().or_else(|| hidden().map(str::to_owned));
        Some(Self { processes, blind })
    }

    /// Returns the machines that are lost at this hypervisor, which has just listed these domains.
    pub(super) fn lost_at(
        &self,
        uri: &str,
        connection: &Connection,
        domains: &[CheckedDomain],
    ) -> Vec<LostMachine> {
        if !Uri::of(uri).has_processes_here() {
            return Vec::new();
        }
        let is_active = |uuid| -> Result<bool, Error> {
            connection.domain_by_uuid(libvirt_uuid(uuid))?.map_or(Ok(false), |it| it.is_active())
        };
        let off: Vec<_> = domains.iter().filter(|it| !it.is_on).collect();
        if off.iter().all(|it| self.lost(uri, it).is_none()) {
            return Vec::new();
        }
        thread::sleep(SETTLED);
        let lost = off.iter().filter_map(|it| self.lost(uri, it));
        lost.filter(|it| !is_active(it.uuid).unwrap_or(false)).collect()
    }

    fn lost(&self, uri: &str, domain: &CheckedDomain) -> Option<LostMachine> {
        let (words, is_certain) = self.processes.words_of_lost(
            &escaped(uri).to_string(),
            libvirt_uuid(domain.uuid),
            &domain.name,
        )?;
        Some(LostMachine { uuid: domain.uuid, name: domain.name.clone(), words, is_certain })
    }

    /// Returns what is to be said, and takes the machines that a process has for on. `is_whole`: each
    /// hypervisor has listed its domains.
    pub(super) fn judge(
        &self,
        lost: Vec<LostMachine>,
        own: &mut [CheckedDomain],
        is_whole: bool,
    ) -> Vec<Finding> {
        let unknown = if is_whole { self.unknown(own) } else { Vec::new() };
        let twice = self.twice(own);
        let mut found = findings(lost, own, &unknown);
        found.extend(twice.iter().take(MAX_NAMED).map(of_twice));
        if let Some(why) = &self.blind {
            let next = "find the process at which a look hangs, or let the daemon see all processes; until \
                        then libvirt's word counts alone here";
            found.push(Finding::warning(CHECK, "", why, next));
        }
        found
    }

    /// Returns the machines with more processes than instances. One that was just powered off and started
    /// again has two for a moment.
    fn twice(&self, own: &[CheckedDomain]) -> Vec<TwiceMachine> {
        let look = || {
            let all = self.processes.all();
            twice(all.iter().map(|it| (domain_id(it.uuid), it.pid)), own)
        };
        if look().is_empty() {
            return Vec::new();
        }
        thread::sleep(SETTLED);
        look()
    }

    /// Returns the processes whose machines none of these domains is.
    fn unknown(&self, own: &[CheckedDomain]) -> Vec<MachineProcess> {
        let known: HashSet<DomainId> = own.iter().map(|it| it.uuid).collect();
        let mut unknown = self.processes.all();
        unknown.retain(|it| !known.contains(&domain_id(it.uuid)));
        if !unknown.is_empty() {
            thread::sleep(SETTLED);
            unknown.retain(MachineProcess::exists);
        }
        unknown
    }
}

/// Returns a finding for each lost machine, and for each process whose machine no hypervisor of this host
/// knows (`unknown`). One that is on at another URI is not lost: its process is that one's.
fn findings(lost: Vec<LostMachine>, own: &mut [CheckedDomain], unknown: &[MachineProcess]) -> Vec<Finding> {
    let on: HashSet<DomainId> = own.iter().filter(|it| it.is_on).map(|it| it.uuid).collect();
    let lost: BTreeMap<_, _> =
        lost.into_iter().filter(|it| !on.contains(&it.uuid)).map(|it| (it.uuid, it)).collect();
    for domain in own {
        domain.is_on |= lost.get(&domain.uuid).is_some_and(|it| it.is_certain);
    }
    let count = lost.len();
    let mut found: Vec<_> = lost.into_values().take(MAX_NAMED).map(of_lost).collect();
    if count > MAX_NAMED {
        let text = format!("the same holds for {} more", counted(count - MAX_NAMED, "domain"));
        found.push(Finding::failed(CHECK, "", text, "as above"));
    }
    found.extend(unknown.iter().take(MAX_NAMED).map(of_unknown));
    found
}

/// Returns the machines with more processes than instances, where libvirt has an instance at all.
/// `processes`: machine and pid.
fn twice(processes: impl Iterator<Item = (DomainId, u32)>, own: &[CheckedDomain]) -> Vec<TwiceMachine> {
    let mut by_machine: BTreeMap<DomainId, Vec<u32>> = BTreeMap::new();
    processes.for_each(|(uuid, pid)| by_machine.entry(uuid).or_default().push(pid));
    let machine = |(uuid, pids): (DomainId, Vec<u32>)| {
        let on: Vec<_> = own.iter().filter(|it| it.is_on && it.uuid == uuid).collect();
        let name = on.first()?.name.clone();
        (pids.len() > on.len()).then_some(TwiceMachine { uuid, name, pids })
    };
    by_machine.into_iter().filter_map(machine).collect()
}

fn of_twice(machine: &TwiceMachine) -> Finding {
    let pids: Vec<_> = machine.pids.iter().map(u32::to_string).collect();
    let (count, pids) = (pids.len(), pids.join(", "));
    let text = format!(
        "{count} processes of this host have this machine: {pids}. libvirt knows of fewer: it lost \
         the status file of one, and the machine was started again. They write to one disk, and off \
         and reboot of the domain fail"
    );
    let next = format!(
        "/run/libvirt/qemu/{}.pid has the process that libvirt knows. See ps -fp {pids}, then kill the other \
         one, and look at the disk of the machine",
        escaped(&machine.name)
    );
    Finding::failed(CHECK, subject(&machine.name, machine.uuid), text, next)
}

fn of_lost(lost: LostMachine) -> Finding {
    let RemnantWords { fact, step: mut next } = lost.words;
    let text = format!("{fact}. Status, off, on and reboot of the domain fail");
    if let Some(first) = next.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    Finding::failed(CHECK, subject(&lost.name, lost.uuid), text, next)
}

fn of_unknown(process: &MachineProcess) -> Finding {
    let pid = process.pid;
    let text = format!(
        "process {pid} of this host has a machine with this name and UUID, and libvirt knows no such domain: \
         libvirt lost a transient machine, or the process is another program's. Requests for a domain with \
         this name or UUID fail here"
    );
    let next = format!(
        "see ps -fp {pid}. If that is a machine of this host that libvirt lost: kill {pid}. If another \
         program runs the machine, nothing has to be done"
    );
    Finding::warning(CHECK, subject(&process.name, domain_id(process.uuid)), text, next)
}

fn subject(name: &str, uuid: DomainId) -> String {
    format!("{} ({uuid})", escaped(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::FindingLevel;

    fn domain(number: u8, uri: &str, is_on: bool) -> CheckedDomain {
        let uuid = DomainId::from_bytes([number; 16]);
        CheckedDomain { uri: uri.to_owned(), uuid, name: format!("vm{number}"), is_on }
    }

    fn lost(number: u8, is_certain: bool) -> LostMachine {
        let CheckedDomain { uuid, name, .. } = domain(number, "", false);
        let words = RemnantWords { fact: "It is here".to_owned(), step: "See ps".to_owned() };
        LostMachine { uuid, name, words, is_certain }
    }

    #[test]
    fn a_lost_machine_is_a_failure_and_counts_as_on() {
        let mut own = [domain(1, "a", false), domain(2, "a", false), domain(3, "a", false)];
        let found = findings(vec![lost(1, true), lost(2, false)], &mut own, &[]);
        assert_eq!(own.each_ref().map(|it| it.is_on), [true, false, false], "one may be another's");
        assert_eq!(found.len(), 2, "{found:?}");
        let first = &found[0];
        assert_eq!((first.result, first.check), (FindingLevel::Failed, "domain"));
        assert_eq!(first.subject, "vm1 (01010101-0101-0101-0101-010101010101)");
        assert!(first.text.starts_with("It is here. Status, off"), "{first:?}");
        assert_eq!(first.next.as_deref(), Some("see ps"));
    }

    #[test]
    fn one_that_is_on_at_another_uri_is_not_lost() {
        let mut own = [domain(1, "a", false), domain(1, "b", true)];
        assert!(findings(vec![lost(1, true)], &mut own, &[]).is_empty());
        assert!(!own[0].is_on);
    }

    #[test]
    fn one_more_process_than_instances_is_a_failure_with_both_pids() {
        let uuid = |it: u8| DomainId::from_bytes([it; 16]);
        // Powered on at two URIs, at one, and at none: the last is lost, which is said elsewhere.
        let own = [domain(1, "a", true), domain(1, "b", true), domain(2, "a", true), domain(3, "a", false)];
        let processes = [(1, 10), (1, 11), (2, 20), (2, 21), (3, 30), (3, 31)];
        let found = twice(processes.into_iter().map(|(it, pid)| (uuid(it), pid)), &own);
        assert_eq!(found, [TwiceMachine { uuid: uuid(2), name: "vm2".to_owned(), pids: vec![20, 21] }]);
        let said = of_twice(&found[0]);
        assert_eq!(said.result, FindingLevel::Failed);
        assert!(said.text.starts_with("2 processes of this host have this machine: 20, 21."), "{said:?}");
    }

    #[test]
    fn many_are_counted() {
        let most = u8::try_from(MAX_NAMED).unwrap();
        let all = (0..most + 2).map(|it| lost(it, true)).collect();
        let found = findings(all, &mut [], &[]);
        assert_eq!(found.len(), MAX_NAMED + 1);
        assert_eq!(found[MAX_NAMED].text, "the same holds for 2 domains more");
    }

    #[test]
    fn hypervisors_elsewhere_need_no_search() {
        assert!(MachineSearch::make(&["test:///default".to_owned()]).is_none());
        assert!(MachineSearch::make(&["qemu:///system".to_owned()]).is_some());
    }
}
