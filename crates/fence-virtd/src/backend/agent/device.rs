// SPDX-License-Identifier: GPL-2.0-or-later
//! One device: an agent, its options, and the facts that earlier runs showed.
//!
//! Runs the agent, one action for each call, within the limits of [`RunSlots`]. Calls may overlap. Decides
//! whether an exit code is evidence. Exit code 2 of `status` means "off" only if all of this holds:
//!
//! * `monitor` has succeeded with the same program and the same options;
//! * `monitor` or `status` ended well a moment ago. A program may lose what it needs while it stays the same:
//!   a shell without its library ends with 2, and so does Python without its script;
//! * the plug is in the device's list, if the device has one.
//!
//! Must never act without an order, put an option on a command line, or pass on output of an agent before its
//! secrets are masked.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_config::{AgentDevice, AgentProgram, OptionValue};
use fence_core::agent::listing::{self, PlugList};
use fence_core::agent::metadata::Metadata;
use fence_core::agent::plan::{ActionReport, DeviceLimits, StatusReading, power};
use fence_core::domain::{PowerAction, PowerState};
use fence_wire::escaped;
use tokio::sync::Semaphore;
use tracing::{debug, warn};
use zeroize::Zeroizing;

use super::cached::{CachedRun, RunResult};
use super::not_ready::{NotReady, NotRunCause};
use super::run::{AgentAction, FinishedRun, PreparedRun, RunContext, StatusReply};
use super::slots::{RunPurpose, RunSlots};
use crate::observe::agent_runs::AgentRuns;
use crate::request::lease::Lease;
use crate::request::trail::AgentRunEnd;
use crate::util::locks::lock;

mod execute;

/// Longest wait for a slot after which a run that was killed counts as one that had its whole time.
const MAX_SLOT_WAIT: Duration = Duration::from_millis(100);
/// Looks at a device's files that may be under way at once: one that hangs keeps a thread.
const MAX_LOOKS_AT_FILES: usize = 8;
/// Time for which a list is used, and for which its absence is assumed.
const LIST_TTL: Duration = Duration::from_secs(5);
/// Time for which a failed `monitor` or missing metadata is not tried again.
const FAILURE_TTL: Duration = Duration::from_secs(5);
/// Time for which it counts that a list can't be had, where a list of this moment is asked for.
const NO_LIST_TTL: Duration = Duration::from_secs(1);
/// Age up to which it is believed that an agent has no metadata.
const NO_METADATA_TTL: Duration = Duration::from_secs(1);
/// A run that was killed earlier says nothing of its device.
const MIN_CONCLUSIVE_RUN: Duration = Duration::from_secs(1);
/// Time for which a device that timed out comes after the others.
const TIMED_OUT_PENALTY: Duration = Duration::from_secs(60);
/// Age of the last success with which "off" is believed, for a request and for a list. If the agent
/// complained, as interpreters do, a request needs a `monitor` since.
const OFF_EVIDENCE_TTL: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(60));
/// Programs and options with which `monitor` succeeded that are remembered.
const MAX_PROVEN: usize = 4096;
/// Words of the fence agents' library, in small letters, for an action that was ordered, and whose effect did
/// not come while the agent waited.
const WAITED_IN_VAIN: &str = "waiting to power";

/// See the module's head.
pub(super) struct FenceDevice {
    pub(super) name: String,
    /// Agent, as in the configuration.
    agent: String,
    /// Place of the device in the configuration.
    pub(super) place: usize,
    program: AgentProgram,
    plug_option: Option<String>,
    /// True if the device has several plugs, or a list of them.
    serves_several: bool,
    options: Vec<(String, OptionValue)>,
    /// Time limit of a status run.
    pub(super) status_timeout: Duration,
    /// Time for which an action may still take effect after its agent ended.
    pub(super) effect_timeout: Duration,
    pub(super) limits: DeviceLimits,
    slots: RunSlots,
    runs: AgentRuns,
    /// Metadata, and the fingerprint of the program that has it.
    metadata: CachedRun<(u64, Result<Arc<Metadata>, NotReady>)>,
    /// Results of `monitor`, by the fingerprint of program and options.
    monitors: Mutex<HashMap<u64, Arc<MonitorRun>>>,
    listing: CachedRun<ListResult>,
    /// Permits to read the files of the device.
    files: Arc<Semaphore>,
    memory: Mutex<DeviceMemory>,
}

/// Success of `monitor`, or its failure in words.
type MonitorRun = CachedRun<Result<(), String>>;

/// A list, or the reason why there is none.
type ListResult = Result<Arc<PlugList>, ListUnavailable>;

/// Reason why there is no list.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ListUnavailable {
    /// The agent said that it has none, or failed.
    #[error("{0}")]
    Refused(String),
    /// The device could not be asked, or did not answer.
    #[error("{0}")]
    Unheard(String),
}

#[derive(Default)]
struct DeviceMemory {
    /// With which `monitor` succeeded, and when that or a `status` ended with 0.
    proven: HashMap<u64, Instant>,
    /// Plugs that were on.
    seen_on: HashSet<String>,
    /// Last results of its status checks, by plug.
    heard: HashMap<String, StatusMemory>,
    /// The same for plugs that it may have, whichever they are.
    heard_at_all: Option<StatusMemory>,
    /// The agent could not be run here when it was asked last, whatever the plug.
    is_unusable: bool,
    /// The agent has told no metadata when it was asked last.
    lacks_metadata: bool,
    /// When it did not answer.
    hung: Option<Instant>,
    /// When something was done last.
    changed: Option<Instant>,
    /// Last list of the device.
    listed: Option<Arc<PlugList>>,
}

/// Memory of the status checks of a plug.
#[derive(Clone, Copy)]
enum StatusMemory {
    /// The device told the state then.
    Told(Instant),
    /// The device could not tell the state for all of its time, and has not told it since.
    FailedThroughout,
}

impl DeviceMemory {
    /// Returns what is known of a plug; without one, of those that the device may have.
    fn heard_of(&self, plug: Option<&str>) -> Option<StatusMemory> {
        plug.map_or(self.heard_at_all, |it| self.heard.get(it).copied())
    }

    fn note_heard(&mut self, plug: Option<&str>, heard: StatusMemory) {
        if plug.is_none() || matches!(heard, StatusMemory::Told(_)) {
            self.heard_at_all = Some(heard);
        }
        let Some(plug) = plug else { return };
        if self.heard.len() >= MAX_PROVEN {
            self.heard.clear();
        }
        self.heard.insert(plug.to_owned(), heard);
    }
}

impl FenceDevice {
    pub(super) fn new(place: usize, it: &AgentDevice, slots: RunSlots, runs: AgentRuns) -> Self {
        let agent = match &it.agent {
            AgentProgram::At(path) => path.display().to_string(),
            AgentProgram::Named(name) => name.clone(),
        };
        Self {
            name: it.name.clone(),
            agent,
            place,
            program: it.agent.clone(),
            plug_option: it.plug_option.clone(),
            serves_several: it.plugs.listed || it.plugs.named.len() > 1,
            options: it.options.clone(),
            status_timeout: it.status_timeout,
            effect_timeout: it.effect_timeout,
            // A look that says off may take a `monitor` and a list as well.
            limits: DeviceLimits {
                timeout: it.timeout,
                status: it.status_timeout * 3,
                answer: it.status_timeout,
                retries: it.retries,
                is_known_to_fail: false,
            },
            slots,
            runs,
            metadata: CachedRun::default(),
            monitors: Mutex::default(),
            listing: CachedRun::default(),
            files: Arc::new(Semaphore::new(MAX_LOOKS_AT_FILES)),
            memory: Mutex::default(),
        }
    }

    /// Returns whether the last run timed out a short while ago.
    pub(super) fn timed_out_recently(&self) -> bool {
        lock(&self.memory).hung.is_some_and(|it| it.elapsed() < TIMED_OUT_PENALTY)
    }

    /// Runs `status` for a plug, once.
    pub(super) async fn status(&self, plug: &str, context: RunContext<'_>) -> StatusReply {
        let reply = self.run_status(plug, context).await;
        if matches!(reply.reading, StatusReading::Is(_)) {
            lock(&self.memory).note_heard(Some(plug), StatusMemory::Told(Instant::now()));
        }
        reply
    }

    /// Returns when the device told the state of a plug, whichever request asked; none if it failed for all
    /// of its time since. Without a plug: of any, or a list.
    pub(super) fn last_told(&self, plug: Option<&str>) -> Option<Instant> {
        match lock(&self.memory).heard_of(plug) {
            Some(StatusMemory::Told(when)) => Some(when),
            Some(StatusMemory::FailedThroughout) | None => None,
        }
    }

    /// Notes that the device could not tell the state of a plug for all of its time; without one, of a plug
    /// that it may have. `began`: of the last status check.
    pub(super) fn note_failed_throughout(&self, plug: Option<&str>, began: Instant) {
        let mut memory = lock(&self.memory);
        if !matches!(memory.heard_of(plug), Some(StatusMemory::Told(when)) if when >= began) {
            memory.note_heard(plug, StatusMemory::FailedThroughout);
            if memory.is_unusable {
                memory.note_heard(None, StatusMemory::FailedThroughout);
            }
        }
    }

    /// Returns the limits of a plan for a plug; without one, for a plug that the device may have.
    pub(super) fn limits_for(&self, plug: Option<&str>) -> DeviceLimits {
        let memory = lock(&self.memory);
        // One that never worked is set up wrong: that is told at once.
        let has_worked = !memory.proven.is_empty() || plug.is_some_and(|it| memory.seen_on.contains(it));
        let has_failed = |plug| matches!(memory.heard_of(plug), Some(StatusMemory::FailedThroughout));
        let has_failed = has_failed(plug) || memory.is_unusable && has_failed(None);
        DeviceLimits { is_known_to_fail: has_failed || !has_worked, ..self.limits }
    }

    async fn run_status(&self, plug: &str, context: RunContext<'_>) -> StatusReply {
        let began = Instant::now();
        let done = self
            .run(PowerAction::Status.into(), Some(plug), context.within(began + self.status_timeout))
            .await;
        let code = match done.ended {
            AgentRunEnd::Exit(code) => code,
            // Other runs had its time: the device itself was not heard out.
            AgentRunEnd::Killed(_) if done.waited > MAX_SLOT_WAIT => {
                return StatusReply { reading: StatusReading::NotAsked, words: done.words() };
            }
            AgentRunEnd::Killed(_) => {
                return StatusReply { reading: StatusReading::Silent, words: done.words() };
            }
            AgentRunEnd::Signal(_) => {
                return StatusReply { reading: StatusReading::CantTell, words: done.words() };
            }
            AgentRunEnd::NotRun(_) => {
                let reading = match done.not_run {
                    Some(NotRunCause::NoRoom) => StatusReading::NotAsked,
                    Some(NotRunCause::TooLate) => StatusReading::Silent,
                    Some(NotRunCause::Unusable) | None => {
                        lock(&self.memory).is_unusable = true;
                        StatusReading::Unusable
                    }
                };
                return StatusReply { reading, words: done.words() };
            }
        };
        match power(code) {
            None => StatusReply { reading: StatusReading::CantTell, words: done.words() },
            Some(PowerState::On) => {
                let mut memory = lock(&self.memory);
                if let Some(when) = memory.proven.get_mut(&done.fingerprint) {
                    *when = Instant::now();
                }
                if memory.seen_on.len() >= MAX_PROVEN {
                    memory.seen_on.clear();
                }
                memory.seen_on.insert(plug.to_owned());
                StatusReply { reading: StatusReading::Is(PowerState::On), words: "on".to_owned() }
            }
            Some(PowerState::Off) => {
                let why = match self.verify_off(plug, &done, began, context).await {
                    Ok(()) => match self.is_known(plug, context).await {
                        Ok(()) => {
                            return StatusReply {
                                reading: StatusReading::Is(PowerState::Off),
                                words: "off".to_owned(),
                            };
                        }
                        Err(why) => why,
                    },
                    Err(why) => format!("its monitor has not succeeded ({why})"),
                };
                StatusReply {
                    reading: StatusReading::CantTell,
                    words: format!("exit 2, which is not believed: {why}"),
                }
            }
        }
    }

    /// Checks that the endpoint knows the plug, as far as its list says. An agent that does not understand
    /// its endpoint may report everything as off: `fence_virsh` does so without virsh, with a successful
    /// `monitor` and an empty list.
    async fn is_known(&self, plug: &str, context: RunContext<'_>) -> Result<(), String> {
        // One that has none is known to have none: an error is that it could not be had.
        let metadata = self.metadata(context).await?;
        if !self.takes_plug(&metadata) || !metadata.has_action("list") {
            return Ok(());
        }
        match self.plugs(LIST_TTL, context).await {
            Ok(list) if list.entries.is_empty() && list.noise == 0 => Err("its list is empty".to_owned()),
            Ok(list) => {
                let has_it = list
                    .entries
                    .iter()
                    .any(|it| it.plug == plug || it.alias.as_deref().is_some_and(|it| it == plug));
                // Some take more names than they list, such as a UUID.
                if has_it || list.noise > 0 || self.has_seen_on(plug) {
                    Ok(())
                } else {
                    Err(format!("its list does not name the plug {}", escaped(plug)))
                }
            }
            // That says nothing of the plug.
            Err(ListUnavailable::Refused(_)) => Ok(()),
            Err(ListUnavailable::Unheard(why)) => Err(why),
        }
    }

    /// Runs an action on a plug. Also returns its description.
    pub(super) async fn act(
        &self,
        to: PowerState,
        plug: &str,
        context: RunContext<'_>,
    ) -> (ActionReport, String) {
        let action = AgentAction::from(PowerAction::to_reach(to));
        let done = self.run(action, Some(plug), context).await;
        let acted = match done.ended {
            AgentRunEnd::Exit(0) => ActionReport::Claimed,
            AgentRunEnd::Exit(_) if done.complaint.to_lowercase().contains(WAITED_IN_VAIN) => {
                ActionReport::GaveUp
            }
            AgentRunEnd::Exit(_) => ActionReport::Failed,
            AgentRunEnd::Signal(_) | AgentRunEnd::Killed(_) => ActionReport::Unknown,
            AgentRunEnd::NotRun(_) => ActionReport::NotRun,
        };
        (acted, format!("{} {}", action.name(), done.words()))
    }

    /// Runs `monitor`; a plug is needed where the plug's option may be what says which endpoint it is.
    pub(super) async fn monitor(&self, plug: Option<&str>, context: RunContext<'_>) -> Result<(), String> {
        let began = Instant::now();
        let context = context.within(began + self.status_timeout);
        let done = self.run(AgentAction::Monitor, self.monitored(plug), context).await;
        match done.ended {
            AgentRunEnd::Exit(0) => {
                let mut memory = lock(&self.memory);
                if memory.proven.len() >= MAX_PROVEN {
                    memory.proven.clear();
                }
                memory.proven.insert(done.fingerprint, began);
                Ok(())
            }
            _ => Err(format!("monitor: {}", done.words())),
        }
    }

    /// Returns whether each plug needs a `monitor` of its own.
    pub(super) fn is_monitored_by_plug(&self) -> bool {
        self.plug_option.is_some()
    }

    /// Returns the plugs, by a list that is no older than `age`. Concurrent callers share one run.
    pub(super) async fn listing(
        &self,
        age: Duration,
        context: RunContext<'_>,
    ) -> Result<Arc<PlugList>, String> {
        self.plugs(age, context).await.map_err(|it| it.to_string())
    }

    async fn plugs(&self, age: Duration, context: RunContext<'_>) -> ListResult {
        let context = context.within(Instant::now() + self.status_timeout);
        let asked = Instant::now();
        let is_valid = |when: Instant, plugs: &ListResult| {
            // That a list can't be had denies nothing.
            let age = if plugs.is_ok() { age.min(LIST_TTL) } else { age.max(NO_LIST_TTL).min(FAILURE_TTL) };
            // A list that was made while we waited is new enough.
            when >= asked || when.elapsed() < age
        };
        let run = async {
            let plugs = self.list(context).await.map(Arc::new);
            if let Ok(plugs) = &plugs {
                let mut memory = lock(&self.memory);
                memory.listed = Some(Arc::clone(plugs));
                memory.note_heard(None, StatusMemory::Told(Instant::now()));
            }
            RunResult::Keep(plugs)
        };
        let plugs = self.listing.get(context.until, is_valid, run).await;
        plugs.ok_or_else(|| ListUnavailable::Unheard("its list is not there in time".to_owned()))?
    }

    /// Returns the last list, however old.
    pub(super) fn last_listing(&self) -> Option<Arc<PlugList>> {
        lock(&self.memory).listed.clone()
    }

    /// Returns whether the agent can report the states of all plugs in one run.
    pub(super) async fn lists_states(&self, context: RunContext<'_>) -> bool {
        self.metadata(context).await.is_ok_and(|it| it.has_action("list-status"))
    }

    /// Returns whether a plug was on at this device.
    pub(super) fn has_seen_on(&self, plug: &str) -> bool {
        lock(&self.memory).seen_on.contains(plug)
    }

    /// Records a status run that was abandoned because another device had answered.
    pub(super) fn record_abandoned(&self, began: Instant, lease: &Lease) {
        let took = began.elapsed();
        if took >= MIN_CONCLUSIVE_RUN {
            lock(&self.memory).hung = Some(Instant::now());
        }
        let context = RunContext { purpose: RunPurpose::Request, lease: Some(lease), until: began };
        let ended = AgentRunEnd::Killed("another device had answered".to_owned());
        self.note(PowerAction::Status.into(), ended, took, String::new(), context);
    }

    /// Records an action: states in earlier lists are stale.
    pub(super) fn states_changed(&self) {
        lock(&self.memory).changed = Some(Instant::now());
    }

    /// Returns the age up to which the states in a list are valid.
    pub(super) fn age_of_states(&self, age: Duration) -> Duration {
        lock(&self.memory).changed.map_or(age, |it| age.min(it.elapsed()))
    }

    /// Forgets the list, so that the next caller gets a new one.
    #[cfg(test)]
    pub(super) async fn forget_list(&self) {
        self.listing.forget().await;
    }

    async fn list(&self, context: RunContext<'_>) -> Result<PlugList, ListUnavailable> {
        let states = self.lists_states(context).await;
        let action = if states { AgentAction::ListStatus } else { AgentAction::List };
        let done = self.run(action, None, context).await;
        let words = || format!("{}: {}", action.name(), done.words());
        match done.ended {
            AgentRunEnd::Exit(0) => {}
            AgentRunEnd::Exit(_) => return Err(ListUnavailable::Refused(words())),
            AgentRunEnd::Signal(_) | AgentRunEnd::Killed(_) | AgentRunEnd::NotRun(_) => {
                return Err(ListUnavailable::Unheard(words()));
            }
        }
        let refused = |it: listing::ListError| ListUnavailable::Refused(it.to_string());
        if done.is_cut {
            return Err(refused(listing::ListError::TooLong));
        }
        let separator = self.option("separator").unwrap_or(",");
        let plugs = listing::parse(&done.output, separator, states).map_err(refused)?;
        if plugs.noise > 0 {
            debug!(device = self.name, lines = plugs.noise, "its list has lines that name no plug");
        }
        Ok(plugs)
    }

    /// Checks that exit code 2 of this run, which began at `began`, may be believed.
    async fn verify_off(
        &self,
        plug: &str,
        done: &FinishedRun,
        began: Instant,
        context: RunContext<'_>,
    ) -> Result<(), String> {
        const CHANGED: &str = "the agent or its options changed meanwhile";
        let fingerprint = done.fingerprint;
        let stands = if context.lease.is_some() { OFF_EVIDENCE_TTL.0 } else { OFF_EVIDENCE_TTL.1 };
        let is_new = |when: &Instant| {
            if context.lease.is_some() && done.complained { *when >= began } else { when.elapsed() < stands }
        };
        let is_proven = || lock(&self.memory).proven.get(&fingerprint).is_some_and(is_new);
        // It may have been replaced while the run waited for its place: then another one ended so.
        if self.find(context.until).await?.1 != done.program {
            return Err(CHANGED.to_owned());
        }
        if is_proven() {
            return Ok(());
        }
        let last = {
            let mut all = lock(&self.monitors);
            if all.len() >= MAX_PROVEN {
                all.clear();
            }
            Arc::clone(all.entry(fingerprint).or_default())
        };
        // A success counts by the evidence that it left, which grows old.
        let is_valid = |when: Instant, result: &Result<(), String>| {
            !is_proven() && result.is_err() && when.elapsed() < FAILURE_TTL
        };
        let run = async {
            if is_proven() {
                return RunResult::Discard(Ok(()));
            }
            match self.monitor(Some(plug), context).await {
                Ok(()) if !is_proven() => RunResult::Discard(Err(CHANGED.to_owned())),
                result => RunResult::Keep(result),
            }
        };
        last.get(context.until, is_valid, run).await.ok_or_else(|| "it did not end in time".to_owned())?
    }

    /// Returns the plug for `monitor`.
    fn monitored<'p>(&self, plug: Option<&'p str>) -> Option<&'p str> {
        plug.filter(|_| self.is_monitored_by_plug())
    }

    /// Returns the metadata of the agent; kept as long as the program is the same.
    pub(super) async fn metadata(&self, context: RunContext<'_>) -> Result<Arc<Metadata>, NotReady> {
        let context = context.within(Instant::now() + self.status_timeout);
        let (path, fingerprint) = self.find(context.until).await?;
        let is_valid = |when: Instant, last: &(u64, Result<Arc<Metadata>, NotReady>)| {
            let is_young = match &last.1 {
                // It failed. An agent that says nothing of itself, or a library that was away for a moment.
                Ok(it) if **it == Metadata::default() => when.elapsed() < NO_METADATA_TTL,
                Ok(_) => true,
                Err(_) => when.elapsed() < FAILURE_TTL,
            };
            last.0 == fingerprint && is_young
        };
        let run = self.run_metadata(path, fingerprint, context);
        let metadata = self.metadata.get(context.until, is_valid, run).await;
        let late = || NotReady::new(NotRunCause::TooLate, "its metadata is not there in time");
        metadata.ok_or_else(late)?.1
    }

    /// Runs `metadata` of the program with this path and fingerprint.
    async fn run_metadata(
        &self,
        path: PathBuf,
        fingerprint: u64,
        context: RunContext<'_>,
    ) -> RunResult<(u64, Result<Arc<Metadata>, NotReady>)> {
        let ready = PreparedRun {
            path,
            input: Zeroizing::new(b"action=metadata\n".to_vec()),
            mask: self.mask(&[]),
            fingerprint,
            program: fingerprint,
        };
        let began = Instant::now();
        let done = self.run_ready(AgentAction::Metadata, ready, context).await;
        let failed = |cause| Err::<Metadata, _>(NotReady::new(cause, format!("metadata: {}", done.words())));
        let what = match &done.ended {
            // No time, no place: that says nothing of the agent.
            AgentRunEnd::NotRun(_) => {
                let cause = done.not_run.unwrap_or(NotRunCause::Unusable);
                return RunResult::Discard((fingerprint, Err(NotReady::new(cause, done.words()))));
            }
            // It had not all of its time.
            AgentRunEnd::Killed(_) if began.elapsed() + MIN_CONCLUSIVE_RUN < self.status_timeout => {
                return RunResult::Discard((fingerprint, failed(NotRunCause::TooLate).map(Arc::new)));
            }
            AgentRunEnd::Killed(_) => failed(NotRunCause::TooLate),
            AgentRunEnd::Signal(_) => failed(NotRunCause::Unusable),
            AgentRunEnd::Exit(0) if !done.is_cut => {
                Metadata::parse(&done.output).map_err(|it| it.to_string().into())
            }
            AgentRunEnd::Exit(_) => failed(NotRunCause::Unusable),
        };
        let was_missing = std::mem::replace(&mut lock(&self.memory).lacks_metadata, what.is_err());
        if let Err(why) = &what
            && !was_missing
        {
            warn!(
                device = self.name,
                agent = self.agent,
                "the agent says nothing of its options: {}",
                why.why
            );
        }
        // An agent of somebody's own need not have any: then it is told the plug by every name.
        let what = what.or_else(|why| {
            if matches!(done.ended, AgentRunEnd::Exit(_)) { Ok(Metadata::default()) } else { Err(why) }
        });
        RunResult::Keep((fingerprint, what.map(Arc::new)))
    }
}
