// SPDX-License-Identifier: GPL-2.0-or-later
//! Where the log goes: the journal under systemd, standard error otherwise.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging. `debug` is the level of `-d`: 0 what an administrator needs, 1 to 4 each step of a request,
/// above that everything, libraries included.
pub(crate) fn start(debug: u32) {
    let level = match debug {
        0 => LevelFilter::INFO,
        1..=4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let journal = runs_under_systemd().then(tracing_journald::layer).and_then(Result::ok);
    // Without a journal everything goes to standard error; systemd sets no time there, so we do.
    let stderr = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal())
    });
    let result = tracing_subscriber::registry()
        .with(journal.map(|it| it.with_syslog_identifier("fence_virtd".to_owned())).with_filter(level))
        .with(stderr.with_filter(level))
        .try_init();
    debug_assert!(result.is_ok(), "logging started twice");
}

/// Whether standard error is a journal's stream (systemd says so in the environment).
fn runs_under_systemd() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some()
}
