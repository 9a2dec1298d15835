// SPDX-License-Identifier: GPL-2.0-or-later
//! One run of a device's agent: its input is put together, a slot is taken, and the result is recorded.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fence_config::{OptionValue, is_secret_option};
use fence_core::agent::listing::SEPARATOR;
use fence_core::agent::metadata::{Metadata, one_spelling};
use fence_core::domain::{ActionError, PowerAction};
use fence_wire::escaped;
use tokio::time::timeout_at;
use tracing::debug;
use zeroize::Zeroizing;

use super::{FenceDevice, MIN_CONCLUSIVE_RUN};
use crate::backend::agent::not_ready::{NotReady, NotRunCause};
use crate::backend::agent::options::{OptionLines, file_of, is_a_word};
use crate::backend::agent::program::{blocking, find};
use crate::backend::agent::run::{AgentAction, FinishedRun, PreparedRun, RunContext};
use crate::backend::agent::secret::{self, SecretError, SecretMask};
use crate::process::run::{ProcessEnd, ProcessError, run_contained};
use crate::request::trail::{AgentRun, AgentRunEnd};
use crate::util::locks::lock;

/// Bytes of output that are kept: of output to parse, and of output only to show.
const MAX_PARSED_OUTPUT: usize = 1 << 20;
const MAX_SHOWN_OUTPUT: usize = 16 << 10;

impl FenceDevice {
    pub(super) async fn run(
        &self,
        action: AgentAction,
        plug: Option<&str>,
        context: RunContext<'_>,
    ) -> FinishedRun {
        match self.prepare_run(action, plug, context).await {
            Ok(ready) => self.run_ready(action, ready, context).await,
            Err(why) => self.not_run(action, why, 0, context),
        }
    }

    pub(super) async fn run_ready(
        &self,
        action: AgentAction,
        ready: PreparedRun,
        context: RunContext<'_>,
    ) -> FinishedRun {
        let PreparedRun { path, input, mask, fingerprint, program } = ready;
        let queued = Instant::now();
        let place = self.slots.take(self.place, context.purpose, self.timed_out_recently());
        let Ok(Some(slot)) = timeout_at(context.until.into(), place).await else {
            let why = NotReady::new(NotRunCause::NoRoom, "agent limit reached (max_running)");
            return self.not_run(action, why, fingerprint, context);
        };
        // The place may have come late: nothing is begun for who does not wait any more.
        if matches!(action, AgentAction::Power(action) if action != PowerAction::Status)
            && let Some(why) = context.lease.map_or(Some(ActionError::Gone), |it| it.check().err())
        {
            return self.not_run(action, why.to_string().into(), fingerprint, context);
        }
        let begun = Instant::now();
        let waited = begun.saturating_duration_since(queued);
        let keep = output_limit(action);
        let result = run_contained(&path, input, keep, context.until).await;
        drop(slot);
        let took = begun.elapsed();
        let whole = match result {
            Ok(whole) => whole,
            Err(error) => {
                let is_passing = matches!(error, ProcessError::NoRoom(_));
                let cause = if is_passing { NotRunCause::NoRoom } else { NotRunCause::Unusable };
                return self.not_run(action, NotReady::new(cause, error.to_string()), fingerprint, context);
            }
        };
        let ended = ended_as(whole.end);
        if matches!(action, AgentAction::Power(_)) {
            lock(&self.memory).is_unusable = false;
        }
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
        let ms = took.as_millis();
        debug!(device = self.name, action = action.name(), %ended, ms, "ran {}", self.agent);
        self.note(action, ended.clone(), took, output, context);
        FinishedRun {
            ended,
            output: read,
            is_cut: whole.output.is_cut,
            complaint,
            complained,
            not_run: None,
            waited,
            fingerprint,
            program,
        }
    }

    fn not_run(
        &self,
        action: AgentAction,
        NotReady { cause, why }: NotReady,
        fingerprint: u64,
        context: RunContext<'_>,
    ) -> FinishedRun {
        let ended = AgentRunEnd::NotRun(why);
        self.note(action, ended.clone(), Duration::ZERO, String::new(), context);
        FinishedRun {
            ended,
            output: Zeroizing::default(),
            is_cut: false,
            complaint: String::new(),
            complained: false,
            not_run: Some(cause),
            waited: Duration::ZERO,
            fingerprint,
            program: 0,
        }
    }

    pub(super) fn note(
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

    /// Finds the program and puts its input together.
    async fn prepare_run(
        &self,
        action: AgentAction,
        plug: Option<&str>,
        context: RunContext<'_>,
    ) -> Result<PreparedRun, NotReady> {
        let metadata = self.metadata(context).await?;
        if self.is_on("missing_as_off") {
            // What is not there would be "off already": a slip of the pen, or a machine that moved away.
            return Err("missing_as_off makes every plug that it does not know \"off\": take it out"
                .to_owned()
                .into());
        }
        if let Some(option) = self.stray_secret(&metadata) {
            return Err(format!(
                "its agent has no option {option}, and would write its value into the system's log"
            )
            .into());
        }
        if !self.takes_plug(&metadata) && self.serves_several {
            return Err(
                "its agent takes no plug, so all its domains would be one machine: name plug_option, \
                        or give each domain a device"
                    .to_owned()
                    .into(),
            );
        }
        let (path, program) = self.find(context.until).await?;
        let files: Vec<(String, PathBuf)> =
            self.options.iter().filter_map(|it| file_of(it, &metadata)).collect();
        let secrets = blocking(&self.files, context.until, move || {
            files
                .into_iter()
                .map(|(name, path)| Ok((name, secret::read(&path).map_err(SecretError::not_ready)?)))
                .collect()
        });
        let secrets: Result<Vec<(String, Zeroizing<String>)>, NotReady> = secrets.await?;
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
                return Err("its plug begins or ends with a blank, which agents don't see".to_owned().into());
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
        Ok(PreparedRun { path, input: lines.text, mask, fingerprint: own.finish(), program })
    }

    /// Returns an option that is a secret and that the agent does not have: agents built on the library
    /// write such values to the syslog.
    fn stray_secret(&self, metadata: &Metadata) -> Option<String> {
        let options = self.options.iter().filter(|_| metadata.is_of_the_library());
        let secrets = options.filter_map(|it| match file_of(it, metadata) {
            Some((option, _)) => Some(option),
            None => Some(it.0.clone()).filter(|_| is_secret_option(&it.0) && !is_a_word(it.1.as_str())),
        });
        secrets.into_iter().find(|it| !metadata.has_option(it))
    }

    /// Returns whether an option tells the machines of the device apart.
    pub(super) fn takes_plug(&self, metadata: &Metadata) -> bool {
        self.plug_option.is_some() || !metadata.plug_options(|it| self.is_on(it)).is_empty()
    }

    pub(super) fn mask(&self, read: &[(String, Zeroizing<String>)]) -> SecretMask {
        let own = self.options.iter().filter(|(name, _)| is_secret_option(name) && !name.ends_with("file"));
        let own = own.map(|(_, value)| value.as_str()).filter(|it| !is_a_word(it));
        SecretMask::new(own.chain(read.iter().map(|(_, value)| value.as_str())))
    }

    /// Returns the path of the program, and its fingerprint.
    pub(super) async fn find(&self, until: Instant) -> Result<(PathBuf, u64), NotReady> {
        let program = self.program.clone();
        blocking(&self.files, until, move || find(&program)).await?
    }

    pub(super) fn option(&self, name: &str) -> Option<&str> {
        let is_it = |it: &&(String, OptionValue)| one_spelling(&it.0) == name;
        self.options.iter().find(is_it).map(|(_, value)| value.as_str())
    }

    pub(in crate::backend::agent) fn is_on(&self, option: &str) -> bool {
        let value = self.option(option).unwrap_or_default();
        ["1", "yes", "on", "true"].iter().any(|it| value.eq_ignore_ascii_case(it))
    }
}

/// Returns the number of bytes of output that are kept.
fn output_limit(action: AgentAction) -> usize {
    if matches!(action, AgentAction::Metadata | AgentAction::List | AgentAction::ListStatus) {
        MAX_PARSED_OUTPUT
    } else {
        MAX_SHOWN_OUTPUT
    }
}

fn ended_as(end: ProcessEnd) -> AgentRunEnd {
    match end {
        ProcessEnd::Exit(code) => AgentRunEnd::Exit(code),
        ProcessEnd::Signal(number) => AgentRunEnd::Signal(number),
        ProcessEnd::TooLong => AgentRunEnd::Killed("did not end in time".to_owned()),
        ProcessEnd::Unseen => AgentRunEnd::Killed("how the agent ended could not be seen".to_owned()),
    }
}
