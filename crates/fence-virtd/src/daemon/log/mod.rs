// SPDX-License-Identifier: GPL-2.0-or-later
//! Where the log goes: the journal under systemd, standard error otherwise.
//!
//! Once the daemon is confined a thread of its own writes, and nobody waits for a pipe that nobody reads or a
//! journald that hangs; what finds no room is counted, and that is written when lines are taken again.

mod journal;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::journal::Journal;
use crate::util::outlet::{Outlet, Sink};

/// Lines that may wait.
const QUEUE: usize = 16_384;
/// How long the end waits for them to be written.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// Where there is one, nothing goes to standard error.
static JOURNAL: OnceLock<Journal> = OnceLock::new();
static OUTLET: OnceLock<Outlet<Vec<u8>>> = OnceLock::new();

/// Starts logging. `debug` is the level of `-d`: 0 what an administrator needs, 1 to 4 each step of a
/// request, above that everything, libraries included.
pub(crate) fn start(debug: u32) {
    let level = match debug {
        0 => LevelFilter::INFO,
        1..=4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    if runs_under_systemd()
        && let Ok(journal) = Journal::at(Path::new(journal::SOCKET))
    {
        let first = JOURNAL.set(journal).is_ok();
        debug_assert!(first, "logging started twice");
    }
    let journal = JOURNAL.get().cloned();
    // Without a journal everything goes to standard error; systemd sets no time there, so we do.
    let stderr = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer().with_writer(|| Stderr).with_ansi(io::stderr().is_terminal())
    });
    let result = tracing_subscriber::registry()
        .with(journal.with_filter(level))
        .with(stderr.with_filter(level))
        .try_init();
    debug_assert!(result.is_ok(), "logging started twice");
}

/// From now on a thread writes what is logged. After the sandbox: a thread that runs already would not be
/// confined.
pub(crate) fn in_background() -> io::Result<()> {
    if let Some(journal) = JOURNAL.get() {
        journal.in_background(QUEUE)?;
    } else {
        let first = OUTLET.set(Outlet::start("log", QUEUE, Stderr)?).is_ok();
        debug_assert!(first, "twice in the background");
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // What led to it is worth as much.
        finish();
        hook(panic);
    }));
    Ok(())
}

/// What was logged is written when this returns, if whoever reads it is quick enough.
pub(crate) fn finish() {
    if let Some(journal) = JOURNAL.get() {
        journal.finish(FINISH_LIMIT);
    }
    if let Some(outlet) = OUTLET.get() {
        outlet.finish(FINISH_LIMIT);
    }
}

/// Standard error, by way of the thread where it runs. The thread itself writes with [`Sink::write`].
struct Stderr;

impl Write for Stderr {
    /// One event, or all that is left of it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Some(outlet) = OUTLET.get() else { return io::stderr().write(line) };
        // The thread tells how many were lost: to say it here would need the log.
        let _ = outlet.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink<Vec<u8>> for Stderr {
    fn write(&mut self, line: Vec<u8>) {
        let _ = io::stderr().write_all(&line);
    }

    fn caught_up(&mut self, lost: u64) {
        let _ = writeln!(
            io::stderr(),
            "fence_virtd: standard error took nothing for a while: {lost} lines are lost"
        );
    }
}

/// Whether standard error is a journal's stream (systemd says so in the environment).
fn runs_under_systemd() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some()
}
