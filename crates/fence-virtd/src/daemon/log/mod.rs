// SPDX-License-Identifier: GPL-2.0-or-later
//! The log: to the journal under systemd, to standard error otherwise.
//!
//! Owns the choice of the destination. One thread writes, as soon as the daemon is confined, so no caller
//! waits for a pipe that nobody reads or for a journald that hangs. Lines without room are counted, and the
//! number is written later. Must never block a caller.

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

/// Lines that wait for the thread.
const QUEUE: usize = 16_384;
/// Time for the last lines to be written at the end.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// Journal of the process; with it nothing goes to standard error.
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

/// Starts the thread that writes. Called after the sandbox: a thread that runs already would not be confined.
pub(crate) fn in_background() -> io::Result<()> {
    if let Some(journal) = JOURNAL.get() {
        journal.in_background(QUEUE)?;
    } else {
        let first = OUTLET.set(Outlet::start("log", QUEUE, Stderr)?).is_ok();
        debug_assert!(first, "twice in the background");
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The lines before a panic are worth as much as the panic.
        finish();
        hook(panic);
    }));
    Ok(())
}

/// Waits until the log is written, but no longer than the limit.
pub(crate) fn finish() {
    if let Some(journal) = JOURNAL.get() {
        journal.finish(FINISH_LIMIT);
    }
    if let Some(outlet) = OUTLET.get() {
        outlet.finish(FINISH_LIMIT);
    }
}

/// Standard error, through the thread where it runs. The thread itself writes with [`Sink::write`].
struct Stderr;

impl Write for Stderr {
    /// Writes one event, or the rest of one.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Some(outlet) = OUTLET.get() else { return io::stderr().write(line) };
        // The thread reports the number of lost lines: to log that here would need the log.
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

/// Returns true where standard error is a journal's stream, as systemd's environment says.
fn runs_under_systemd() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some()
}
