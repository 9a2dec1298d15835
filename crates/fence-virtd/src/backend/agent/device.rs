// SPDX-License-Identifier: GPL-2.0-or-later
//! One device: an agent, its options, and what is known of them.
//!
//! Runs the agent for one action at a time a call, within the limits of [`Slots`]; several calls may run
//! beside each other. It decides what an exit code is worth: 2 of `status` is "off" only where `monitor` has
//! succeeded with the same program and the same options, and something ended well a moment ago: what a
//! program needs can go away while the program stays the same, and a shell without its library ends with 2,
//! Python without its script too. And only of a plug that its list has, where it has a list. It never acts
//! unless it is told to, never puts an option on a command line, and lets nothing out of an agent's output
//! before the secrets are masked.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fence_config::{AgentDevice, AgentProgram, OptionValue, is_secret_option};
use fence_wire::escaped;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;
use tracing::{debug, warn};
use zeroize::Zeroizing;

use super::secret::{self, SecretMask};
use super::slots::{RunPurpose, RunSlots};
use crate::observe::agent_runs::AgentRuns;
use crate::process as program;
use crate::process::ProcessEnd;
use crate::request::lease::Lease;
use crate::request::trail::{AgentRun, AgentRunEnd};
use crate::util::locks::lock;
use fence_core::agent::listing::{self, PlugList, SEPARATOR};
use fence_core::agent::metadata::{Metadata, one_spelling};
use fence_core::agent::plan::{ActionReport, DeviceLimits, StatusReading, power};
use fence_core::domain::{ActionError, PowerState};

/// Where agents are looked for by their names.
pub(crate) const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin"];
/// Bytes of each output that are kept: of what is read, and of what is only shown.
const MAX_PARSED_OUTPUT: usize = 1 << 20;
const MAX_SHOWN_OUTPUT: usize = 16 << 10;
/// How long a list stands, and how long it does that there is none.
const LIST_TTL: Duration = Duration::from_secs(5);
/// How long it stands that `monitor` failed, and that there is no metadata.
const FAILURE_TTL: Duration = Duration::from_secs(5);
/// A run that was killed earlier says nothing of its device.
const MIN_CONCLUSIVE_RUN: Duration = Duration::from_secs(1);
/// How long a device that hung comes after the others.
const TIMED_OUT_PENALTY: Duration = Duration::from_secs(60);
/// Looks at a device's files that may be under way at once: one that hangs keeps a thread.
const MAX_LOOKS_AT_FILES: usize = 8;
/// How long ago something may have ended with 0 when "off" is believed for a request, and for a list. One
/// that complained when it said so, as interpreters do, is believed for a request only with a `monitor`
/// since.
const OFF_EVIDENCE_TTL: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(60));
/// Programs and options with which `monitor` succeeded that are remembered.
const MAX_PROVEN: usize = 4096;

/// See the module's head.
pub(super) struct FenceDevice {
    pub(super) name: String,
    /// Its agent, as the configuration has it.
    agent: String,
    place: usize,
    program: AgentProgram,
    plug_option: Option<String>,
    /// It has more than one plug, or a list of them.
    serves_several: bool,
    options: Vec<(String, OptionValue)>,
    /// How long a look may take.
    pub(super) status_timeout: Duration,
    pub(super) limits: DeviceLimits,
    slots: RunSlots,
    runs: AgentRuns,
    metadata: tokio::sync::Mutex<Option<Cached<Arc<Metadata>>>>,
    /// How `monitor` failed with which program and options. Taken while it runs: others wait for what comes
    /// of it.
    monitors: Mutex<HashMap<u64, CachedFailure>>,
    listing: tokio::sync::Mutex<Option<(Instant, ListResult)>>,
    /// Who looks at its files.
    files: Arc<Semaphore>,
    memory: Mutex<DeviceMemory>,
}

/// When something failed, and why.
type CachedFailure = Arc<tokio::sync::Mutex<Option<(Instant, String)>>>;

/// A list, or why there is none.
type ListResult = Result<Arc<PlugList>, ListUnavailable>;

/// Why there is no list.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ListUnavailable {
    /// The agent said that it has none, or failed.
    #[error("{0}")]
    Refused(String),
    /// It could not be asked, or did not answer.
    #[error("{0}")]
    Unheard(String),
}

#[derive(Default)]
struct DeviceMemory {
    /// With which `monitor` succeeded, and when that or a `status` ended with 0.
    proven: HashMap<u64, Instant>,
    /// Plugs that were on.
    seen_on: HashSet<String>,
    /// When it did not answer.
    hung: Option<Instant>,
    /// When something was done last.
    changed: Option<Instant>,
    /// Its last list.
    listed: Option<Arc<PlugList>>,
}

/// Something that is known of a program and its options.
struct Cached<T> {
    fingerprint: u64,
    when: Instant,
    what: Result<T, String>,
}

/// What the agent is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AgentAction {
    Metadata,
    Monitor,
    List,
    ListStatus,
    Status,
    On,
    Off,
}

impl AgentAction {
    fn name(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Monitor => "monitor",
            Self::List => "list",
            Self::ListStatus => "list-status",
            Self::Status => "status",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// Whom runs are for.
#[derive(Clone, Copy)]
pub(super) struct RunContext<'a> {
    pub(super) purpose: RunPurpose,
    /// Where they are noted; without it nothing is done but looked at.
    pub(super) lease: Option<&'a Lease>,
    pub(super) until: Instant,
}

impl RunContext<'_> {
    /// The same, by `limit` at the latest.
    pub(super) fn within(self, limit: Instant) -> Self {
        Self { until: self.until.min(limit), ..self }
    }
}

/// What came of a look, and how to say it.
pub(super) struct StatusReply {
    pub(super) heard: StatusReading,
    pub(super) words: String,
}

/// A run that is over.
struct FinishedRun {
    ended: AgentRunEnd,
    output: Zeroizing<Vec<u8>>,
    is_cut: bool,
    /// The last line of what it said, secrets masked, escaped.
    complaint: String,
    /// It wrote to standard error.
    complained: bool,
    /// Of the program and the options that it was run with.
    print: u64,
    /// Of the program alone.
    program: u64,
}

impl FinishedRun {
    fn words(&self) -> String {
        let colon = if self.complaint.is_empty() { "" } else { ": " };
        format!("{}{colon}{}", self.ended, self.complaint)
    }
}

/// All that a run needs.
struct PreparedRun {
    path: PathBuf,
    input: Zeroizing<Vec<u8>>,
    mask: SecretMask,
    print: u64,
    program: u64,
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
            // A look that says off may take a `monitor` and a list as well.
            limits: DeviceLimits { timeout: it.timeout, status: it.status_timeout * 3, retries: it.retries },
            slots,
            runs,
            metadata: tokio::sync::Mutex::default(),
            monitors: Mutex::default(),
            listing: tokio::sync::Mutex::default(),
            files: Arc::new(Semaphore::new(MAX_LOOKS_AT_FILES)),
            memory: Mutex::default(),
        }
    }

    /// It did not answer when it was run last, a short while ago.
    pub(super) fn timed_out_recently(&self) -> bool {
        lock(&self.memory).hung.is_some_and(|it| it.elapsed() < TIMED_OUT_PENALTY)
    }

    /// Asks for the state of a plug.
    pub(super) async fn status(&self, plug: &str, context: RunContext<'_>) -> StatusReply {
        let began = Instant::now();
        let done =
            self.run(AgentAction::Status, Some(plug), context.within(began + self.status_timeout)).await;
        let code = match done.ended {
            AgentRunEnd::Exit(code) => code,
            AgentRunEnd::Killed(_) => {
                return StatusReply { heard: StatusReading::Silent, words: done.words() };
            }
            AgentRunEnd::Signal(_) | AgentRunEnd::NotRun(_) => {
                return StatusReply { heard: StatusReading::CantTell, words: done.words() };
            }
        };
        match power(code) {
            None => StatusReply { heard: StatusReading::CantTell, words: done.words() },
            Some(PowerState::On) => {
                let mut memory = lock(&self.memory);
                if let Some(when) = memory.proven.get_mut(&done.print) {
                    *when = Instant::now();
                }
                if memory.seen_on.len() >= MAX_PROVEN {
                    memory.seen_on.clear();
                }
                memory.seen_on.insert(plug.to_owned());
                StatusReply { heard: StatusReading::Is(PowerState::On), words: "on".to_owned() }
            }
            Some(PowerState::Off) => {
                let why = match self.verify_off(plug, &done, began, context).await {
                    Ok(()) => match self.is_known(plug, context).await {
                        Ok(()) => {
                            return StatusReply {
                                heard: StatusReading::Is(PowerState::Off),
                                words: "off".to_owned(),
                            };
                        }
                        Err(why) => why,
                    },
                    Err(why) => format!("its monitor has not succeeded ({why})"),
                };
                StatusReply {
                    heard: StatusReading::CantTell,
                    words: format!("exit 2, which is not believed: {why}"),
                }
            }
        }
    }

    /// Whether the endpoint knows the plug, as far as its list tells. An agent that does not understand what
    /// its endpoint says may take everything for off: `fence_virsh` does where there is no virsh, with
    /// `monitor` and an empty list in order.
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
                if has_it || list.noise > 0 || lock(&self.memory).seen_on.contains(plug) {
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

    /// Has it act on a plug. Also gives what it said.
    pub(super) async fn act(
        &self,
        to: PowerState,
        plug: &str,
        context: RunContext<'_>,
    ) -> (ActionReport, String) {
        let action = if to == PowerState::On { AgentAction::On } else { AgentAction::Off };
        let done = self.run(action, Some(plug), context).await;
        let acted = match done.ended {
            AgentRunEnd::Exit(0) => ActionReport::Claimed,
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
                memory.proven.insert(done.print, began);
                Ok(())
            }
            _ => Err(format!("monitor: {}", done.words())),
        }
    }

    /// Whether each plug is to be monitored by itself.
    pub(super) fn is_monitored_by_plug(&self) -> bool {
        self.plug_option.is_some()
    }

    /// Its plugs, by a list that is no older than `age`. Whoever asks while it is made waits for it.
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
        let waiting = timeout_at(context.until.into(), self.listing.lock()).await;
        let mut known =
            waiting.map_err(|_| ListUnavailable::Unheard("its list is not there in time".to_owned()))?;
        if let Some((when, plugs)) = &*known {
            let age = age.min(if plugs.is_ok() { LIST_TTL } else { FAILURE_TTL });
            // One that was made while we waited is new enough.
            if *when >= asked || when.elapsed() < age {
                return plugs.clone();
            }
        }
        let plugs = self.list(context).await.map(Arc::new);
        if let Ok(plugs) = &plugs {
            lock(&self.memory).listed = Some(Arc::clone(plugs));
        }
        *known = Some((Instant::now(), plugs.clone()));
        plugs
    }

    /// Whether its list could not be had when it was asked for last, or is being asked for.
    pub(super) fn has_no_list(&self) -> bool {
        self.listing.try_lock().map_or(true, |it| !matches!(&*it, Some((_, Ok(_)))))
    }

    /// Its last list, however old.
    pub(super) fn last_listing(&self) -> Option<Arc<PlugList>> {
        lock(&self.memory).listed.clone()
    }

    /// Whether its agent says that it can tell the state of all plugs at once.
    pub(super) async fn lists_states(&self, context: RunContext<'_>) -> bool {
        self.metadata(context).await.is_ok_and(|it| it.has_action("list-status"))
    }

    /// What it was asked was dropped after so long without an answer: somebody else had one.
    pub(super) fn record_abandoned(&self, began: Instant, lease: &Lease) {
        let took = began.elapsed();
        if took >= MIN_CONCLUSIVE_RUN {
            lock(&self.memory).hung = Some(Instant::now());
        }
        let context = RunContext { purpose: RunPurpose::Request, lease: Some(lease), until: began };
        let ended = AgentRunEnd::Killed("another device had answered".to_owned());
        self.note(AgentAction::Status, ended, took, String::new(), context);
    }

    /// Something was done here: what its list said before of states is old.
    pub(super) fn states_changed(&self) {
        lock(&self.memory).changed = Some(Instant::now());
    }

    /// How old a list may be for the states in it.
    pub(super) fn age_of_states(&self, age: Duration) -> Duration {
        lock(&self.memory).changed.map_or(age, |it| age.min(it.elapsed()))
    }

    /// The next one who asks gets a new list.
    #[cfg(test)]
    pub(super) async fn forget_list(&self) {
        *self.listing.lock().await = None;
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

    /// Whether exit code 2 of this run, which was begun at `began`, may be believed.
    async fn verify_off(
        &self,
        plug: &str,
        done: &FinishedRun,
        began: Instant,
        context: RunContext<'_>,
    ) -> Result<(), String> {
        const CHANGED: &str = "the agent or its options changed meanwhile";
        let print = done.print;
        let stands = if context.lease.is_some() { OFF_EVIDENCE_TTL.0 } else { OFF_EVIDENCE_TTL.1 };
        let is_new = |when: &Instant| {
            if context.lease.is_some() && done.complained { *when >= began } else { when.elapsed() < stands }
        };
        let is_proven = || lock(&self.memory).proven.get(&print).is_some_and(is_new);
        // It may have been replaced while the run waited for its place: then another one ended so.
        if self.find(context.until).await?.1 != done.program {
            return Err(CHANGED.to_owned());
        }
        if is_proven() {
            return Ok(());
        }
        let failure = {
            let mut all = lock(&self.monitors);
            if all.len() >= MAX_PROVEN {
                all.clear();
            }
            Arc::clone(all.entry(print).or_default())
        };
        let waiting = timeout_at(context.until.into(), failure.lock()).await;
        let mut failed = waiting.map_err(|_| "it did not end in time".to_owned())?;
        if is_proven() {
            return Ok(());
        }
        if let Some((when, why)) = &*failed
            && when.elapsed() < FAILURE_TTL
        {
            return Err(why.clone());
        }
        let result = self.monitor(Some(plug), context).await;
        *failed = result.as_ref().err().map(|why| (Instant::now(), why.clone()));
        result?;
        if is_proven() { Ok(()) } else { Err(CHANGED.to_owned()) }
    }

    /// The plug that `monitor` is run with.
    fn monitored<'p>(&self, plug: Option<&'p str>) -> Option<&'p str> {
        plug.filter(|_| self.is_monitored_by_plug())
    }

    /// What the agent says of itself; known as long as its program is the same.
    pub(super) async fn metadata(&self, context: RunContext<'_>) -> Result<Arc<Metadata>, String> {
        let context = context.within(Instant::now() + self.status_timeout);
        let (path, print) = self.find(context.until).await?;
        let waiting = timeout_at(context.until.into(), self.metadata.lock()).await;
        let mut known = waiting.map_err(|_| "its metadata is not there in time".to_owned())?;
        if let Some(known) = &*known
            && known.fingerprint == print
            && (known.what.is_ok() || known.when.elapsed() < FAILURE_TTL)
        {
            return known.what.clone();
        }
        let ready = PreparedRun {
            path,
            input: Zeroizing::new(b"action=metadata\n".to_vec()),
            mask: self.mask(&[]),
            print,
            program: print,
        };
        let done = self.run_ready(AgentAction::Metadata, ready, context).await;
        let what = match &done.ended {
            // No time, no place: that says nothing of the agent.
            AgentRunEnd::NotRun(_) => return Err(done.words()),
            AgentRunEnd::Exit(0) if !done.is_cut => {
                Metadata::parse(&done.output).map_err(|it| it.to_string())
            }
            _ => Err(format!("metadata: {}", done.words())),
        };
        if let Err(why) = &what {
            warn!(device = self.name, agent = self.agent, "the agent says nothing of its options: {why}");
        }
        // An agent of somebody's own need not have any: then it is told the plug by every name.
        let what = what.or_else(|why| {
            if matches!(done.ended, AgentRunEnd::Exit(_)) { Ok(Metadata::default()) } else { Err(why) }
        });
        let what = what.map(Arc::new);
        *known = Some(Cached { fingerprint: print, when: Instant::now(), what: what.clone() });
        what
    }

    async fn run(&self, action: AgentAction, plug: Option<&str>, context: RunContext<'_>) -> FinishedRun {
        match self.prepare_run(action, plug, context).await {
            Ok(ready) => self.run_ready(action, ready, context).await,
            Err(why) => self.not_run(action, why, 0, context),
        }
    }

    async fn run_ready(
        &self,
        action: AgentAction,
        ready: PreparedRun,
        context: RunContext<'_>,
    ) -> FinishedRun {
        let PreparedRun { path, input, mask, print, program } = ready;
        let place = self.slots.take(self.place, context.purpose, self.timed_out_recently());
        let Ok(Some(slot)) = timeout_at(context.until.into(), place).await else {
            return self.not_run(action, "as many agents as may run at once did".to_owned(), print, context);
        };
        // The place may have come late: nothing is begun for who does not wait any more.
        if matches!(action, AgentAction::On | AgentAction::Off)
            && let Some(why) = context.lease.map_or(Some(ActionError::Gone), |it| it.check().err())
        {
            return self.not_run(action, why.to_string(), print, context);
        }
        let begun = Instant::now();
        let keep = if matches!(action, AgentAction::Metadata | AgentAction::List | AgentAction::ListStatus) {
            MAX_PARSED_OUTPUT
        } else {
            MAX_SHOWN_OUTPUT
        };
        let result = program::run_contained(&path, input, keep, context.until).await;
        drop(slot);
        let took = begun.elapsed();
        let (whole, ended) = match result {
            Ok(whole) => {
                let ended = match whole.end {
                    ProcessEnd::Exit(code) => AgentRunEnd::Exit(code),
                    ProcessEnd::Signal(number) => AgentRunEnd::Signal(number),
                    ProcessEnd::TooLong => AgentRunEnd::Killed("did not end in time".to_owned()),
                };
                (whole, ended)
            }
            Err(error) => return self.not_run(action, error.to_string(), print, context),
        };
        match ended {
            // The request's time was nearly up: that says nothing of the device.
            AgentRunEnd::Killed(_) if took < MIN_CONCLUSIVE_RUN => {}
            AgentRunEnd::Killed(_) => lock(&self.memory).hung = Some(Instant::now()),
            _ => lock(&self.memory).hung = None,
        }
        let complained = !whole.complaints.bytes.trim_ascii().is_empty();
        let complaints = mask.shown(&whole.complaints.bytes, whole.complaints.is_cut);
        // A list is not for records: it may be long, and what is wrong with it is said.
        let is_list = keep == MAX_PARSED_OUTPUT && ended == AgentRunEnd::Exit(0);
        let output = if is_list {
            format!("({} bytes)", whole.output.bytes.len())
        } else {
            mask.shown(&whole.output.bytes, whole.output.is_cut)
        };
        let last = |text: &str| {
            text.lines().rfind(|it| !it.trim().is_empty()).map(|it| escaped(it.trim()).to_string())
        };
        let complaint = last(&complaints).or_else(|| last(&output).filter(|_| !is_list)).unwrap_or_default();
        let read = match action {
            AgentAction::List | AgentAction::ListStatus => Zeroizing::new(mask.names(&whole.output.bytes)),
            _ => whole.output.bytes,
        };
        let between = if output.is_empty() || complaints.is_empty() { "" } else { "\n" };
        let output = format!("{output}{between}{complaints}");
        debug!(device = self.name, action = action.name(), %ended, ms = took.as_millis(), "ran {}", self.agent);
        self.note(action, ended.clone(), took, output, context);
        FinishedRun {
            ended,
            output: read,
            is_cut: whole.output.is_cut,
            complaint,
            complained,
            print,
            program,
        }
    }

    fn not_run(&self, action: AgentAction, why: String, print: u64, context: RunContext<'_>) -> FinishedRun {
        let ended = AgentRunEnd::NotRun(why);
        self.note(action, ended.clone(), Duration::ZERO, String::new(), context);
        FinishedRun {
            ended,
            output: Zeroizing::default(),
            is_cut: false,
            complaint: String::new(),
            complained: false,
            print,
            program: 0,
        }
    }

    fn note(
        &self,
        action: AgentAction,
        ended: AgentRunEnd,
        took: Duration,
        output: String,
        context: RunContext<'_>,
    ) {
        let (device, agent) = (self.name.clone(), self.agent.clone());
        let ran = AgentRun { device, agent, action: action.name(), ended, took, output };
        self.runs.note(&ran);
        if let Some(lease) = context.lease {
            lease.trail().note(ran);
        }
    }

    /// Finds the program and puts together what it is told.
    async fn prepare_run(
        &self,
        action: AgentAction,
        plug: Option<&str>,
        context: RunContext<'_>,
    ) -> Result<PreparedRun, String> {
        let metadata = self.metadata(context).await?;
        if self.is_on("missing_as_off") {
            // What is not there would be "off already": a slip of the pen, or a machine that moved away.
            return Err(
                "missing_as_off makes every plug that it does not know \"off\": take it out".to_owned()
            );
        }
        if let Some(option) = self.stray_secret(&metadata) {
            return Err(format!(
                "its agent has no option {option}, and would write its value into the system's log"
            ));
        }
        if !self.takes_plug(&metadata) && self.serves_several {
            return Err("its agent takes no plug, so all its domains would be one machine: name plug_option, or give each \
                        domain a device"
                .to_owned());
        }
        let (path, program) = self.find(context.until).await?;
        let files: Vec<(String, PathBuf)> =
            self.options.iter().filter_map(|it| file_of(it, &metadata)).collect();
        let secrets = blocking(&self.files, context.until, move || {
            files
                .into_iter()
                .map(|(name, path)| Ok((name, secret::read(&path).map_err(|it| it.to_string())?)))
                .collect()
        });
        let secrets: Result<Vec<(String, Zeroizing<String>)>, String> = secrets.await?;
        let secrets = secrets?;
        let plain = self.options.iter().filter(|it| file_of(it, &metadata).is_none());
        let plain = plain.map(|(name, value)| (name.as_str(), value.as_str()));
        let read = secrets.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let quotes = metadata.is_of_the_library();
        let mut lines = OptionLines { text: Zeroizing::default(), quotes };
        lines.add("action", action.name())?;
        let mut own = DefaultHasher::new();
        program.hash(&mut own);
        for (name, value) in plain.chain(read) {
            lines.add(name, value)?;
            (name, value).hash(&mut own);
        }
        if let Some(plug) = plug {
            let options = match &self.plug_option {
                Some(it) => {
                    // It may say which endpoint it is.
                    plug.hash(&mut own);
                    vec![it.as_str()]
                }
                None => metadata.plug_options(|it| self.is_on(it)),
            };
            if !quotes && plug.trim() != plug {
                return Err("its plug begins or ends with a blank, which agents don't see".to_owned());
            }
            for option in options {
                lines.add(option, plug)?;
            }
        }
        // A comma in a name does not make two plugs of it.
        for option in ["plug_separator", "separator"] {
            if metadata.has_option(option) && self.option(option).is_none() {
                lines.add(option, &SEPARATOR.to_string())?;
            }
        }
        let mask = self.mask(&secrets);
        Ok(PreparedRun { path, input: lines.text, mask, print: own.finish(), program })
    }

    /// A secret that the agent does not take: those that are built on the library tell the syslog what they
    /// were given.
    fn stray_secret(&self, metadata: &Metadata) -> Option<String> {
        let options = self.options.iter().filter(|_| metadata.is_of_the_library());
        let secrets = options.filter_map(|it| match file_of(it, metadata) {
            Some((option, _)) => Some(option),
            None => Some(it.0.clone()).filter(|_| is_secret_option(&it.0) && !is_a_word(it.1.as_str())),
        });
        secrets.into_iter().find(|it| !metadata.has_option(it))
    }

    /// Whether there is an option that tells its machines apart.
    fn takes_plug(&self, metadata: &Metadata) -> bool {
        self.plug_option.is_some() || !metadata.plug_options(|it| self.is_on(it)).is_empty()
    }

    fn mask(&self, read: &[(String, Zeroizing<String>)]) -> SecretMask {
        let own = self.options.iter().filter(|(name, _)| is_secret_option(name) && !name.ends_with("file"));
        let own = own.map(|(_, value)| value.as_str()).filter(|it| !is_a_word(it));
        SecretMask::new(own.chain(read.iter().map(|(_, value)| value.as_str())))
    }

    /// The program, and what tells it from another one in its place.
    async fn find(&self, until: Instant) -> Result<(PathBuf, u64), String> {
        let program = self.program.clone();
        blocking(&self.files, until, move || find(&program)).await?
    }

    fn option(&self, name: &str) -> Option<&str> {
        let is_it = |it: &&(String, OptionValue)| one_spelling(&it.0) == name;
        self.options.iter().find(is_it).map(|(_, value)| value.as_str())
    }

    pub(super) fn is_on(&self, option: &str) -> bool {
        let value = self.option(option).unwrap_or_default();
        ["1", "yes", "on", "true"].iter().any(|it| value.eq_ignore_ascii_case(it))
    }
}

/// What an agent reads from its standard input.
struct OptionLines {
    text: Zeroizing<Vec<u8>>,
    /// It strips blanks and a pair of quotes from values.
    quotes: bool,
}

/// Some agents read lines as Python's `splitlines` does.
fn ends_a_line(it: char) -> bool {
    it.is_control() || matches!(it, '\u{2028}' | '\u{2029}')
}

impl OptionLines {
    fn add(&mut self, name: &str, value: &str) -> Result<(), String> {
        // A line end in a value would be the next option.
        if value.contains(|it: char| it != SEPARATOR && ends_a_line(it)) {
            return Err(format!("the value of its option {name} has a control character in it"));
        }
        let is_quoted = value.len() > 1 && value.starts_with('"') && value.ends_with('"');
        let quote = if self.quotes && (is_quoted || value.trim() != value) { "\"" } else { "" };
        for part in [name, "=", quote, value, quote, "\n"] {
            self.text.extend_from_slice(part.as_bytes());
        }
        Ok(())
    }
}

/// The option that is read from a file, and the file, if this option means one.
pub(super) fn file_of(
    (name, value): &(String, OptionValue),
    metadata: &Metadata,
) -> Option<(String, PathBuf)> {
    let option = name.strip_suffix("_file").or_else(|| name.strip_suffix("-file"))?;
    (!option.is_empty() && !metadata.has_option(name))
        .then(|| (option.to_owned(), PathBuf::from(value.as_str())))
}

/// What is nobody's secret, whatever the option is called.
pub(super) fn is_a_word(value: &str) -> bool {
    ["0", "1", "yes", "no", "on", "off", "true", "false"].iter().any(|it| value.eq_ignore_ascii_case(it))
}

/// Where its program is, and what tells it from another one in its place.
pub(super) fn find(program: &AgentProgram) -> Result<(PathBuf, u64), String> {
    match program {
        AgentProgram::At(path) => about(path).map(|it| (path.clone(), it)),
        AgentProgram::Named(name) => {
            let places = DIRECTORIES.iter().map(|it| Path::new(it).join(name));
            let Some(path) = places.into_iter().find(|it| it.exists()) else {
                return Err(format!("no {name} in {}: install it, or give its path", DIRECTORIES.join(", ")));
            };
            about(&path).map(|it| (path, it))
        }
    }
}

/// What tells this program from another one; an error for one that is not to be run.
fn about(path: &Path) -> Result<u64, String> {
    let shown = path.display();
    let about = std::fs::metadata(path).map_err(|it| format!("can't look at {shown}: {it}"))?;
    if !about.is_file() || about.mode() & 0o111 == 0 {
        return Err(format!("{shown} is no program"));
    }
    if !secret::is_ours(&about) {
        return Err(format!("{shown} belongs to user {}: chown it to root", about.uid()));
    }
    if about.mode() & 0o022 != 0 {
        return Err(format!("others can write {shown}: chmod go-w it"));
    }
    let mut print = DefaultHasher::new();
    (
        path,
        about.dev(),
        about.ino(),
        about.size(),
        about.mtime(),
        about.mtime_nsec(),
        about.ctime(),
        about.ctime_nsec(),
    )
        .hash(&mut print);
    Ok(print.finish())
}

/// Looks at files, which can hang.
async fn blocking<T: Send + 'static>(
    files: &Arc<Semaphore>,
    until: Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let looks = async {
        // A look that hangs keeps its thread: no more of them than this.
        let permit = Arc::clone(files).acquire_owned().await.ok()?;
        let work = move || (work(), permit);
        tokio::task::spawn_blocking(work).await.ok().map(|(it, _)| it)
    };
    match timeout_at(until.into(), looks).await {
        Ok(Some(it)) => Ok(it),
        Ok(None) => Err("the daemon ends".to_owned()),
        Err(_) => Err("files can't be read in time".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(quotes: bool, value: &str) -> Result<String, String> {
        let mut lines = OptionLines { text: Zeroizing::default(), quotes };
        lines.add("x", value).map(|()| String::from_utf8(lines.text.to_vec()).unwrap())
    }

    /// The library strips blanks and one pair of quotes; others take all that comes after the `=`.
    #[test]
    fn an_agent_reads_what_is_meant() {
        for (value, quoted) in [
            ("a=b", "a=b"),
            ("", ""),
            (" a ", "\" a \""),
            ("\"a\"", "\"\"a\"\""),
            ("a\"", "a\""),
            ("\"", "\""),
        ] {
            assert_eq!(line(true, value), Ok(format!("x={quoted}\n")));
            assert_eq!(line(false, value), Ok(format!("x={value}\n")));
        }
    }

    #[test]
    fn no_value_makes_a_second_line() {
        for value in ["a\nb", "a\rb", "a\0", "\n", "\u{85}", "\u{b}"] {
            let error = line(true, value).unwrap_err();
            assert_eq!(error, "the value of its option x has a control character in it");
        }
    }
}
