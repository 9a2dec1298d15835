// SPDX-License-Identifier: GPL-2.0-or-later
//! A reader of the metrics of a daemon that runs, for `--status` and `--check`.
//!
//! Runs in a process of its own beside the daemon, and blocks for a bounded time.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use fence_config::MetricsAddress;

use crate::util::unix_socket;

/// Longest answer, in bytes.
const MAX_ANSWER: u64 = 4 * 1024 * 1024;

/// Returns the answer of the daemon at this address, with its head.
///
/// # Errors
/// Nobody answers there, or not within the limit.
pub(crate) fn fetch(address: &MetricsAddress, limit: Duration) -> io::Result<String> {
    match address {
        MetricsAddress::Tcp(it) => TcpStream::connect_timeout(it, limit).and_then(|it| {
            it.set_read_timeout(Some(limit))?;
            exchange(it)
        }),
        MetricsAddress::Unix(it) => unix_socket::connect(it, limit).and_then(|it| {
            it.set_read_timeout(Some(limit))?;
            exchange(it)
        }),
    }
}

/// Returns true if the daemon took the connection, or might have, and did not answer in time.
pub(crate) fn is_time_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn exchange(mut stream: impl Read + Write) -> io::Result<String> {
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A line of metrics; its name without the common prefix.
#[derive(Debug, PartialEq)]
pub(crate) struct MetricSample<'a> {
    pub(crate) name: &'a str,
    labels: Vec<(&'a str, String)>,
    pub(crate) value: f64,
}

impl MetricSample<'_> {
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(it, _)| *it == name).map_or("", |(_, value)| value)
    }
}

/// Returns the samples of a text of metrics.
pub(crate) fn samples(text: &str) -> Vec<MetricSample<'_>> {
    text.lines().filter_map(sample).collect()
}

fn sample(line: &str) -> Option<MetricSample<'_>> {
    let line = line.strip_prefix("fence_virtd_")?;
    let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.trim_start_matches(',').split_once("=\"")?;
            let (mut value, mut characters) = (String::new(), quoted.char_indices());
            let end = loop {
                match characters.next()? {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match characters.next()?.1 {
                        'n' => '\n',
                        other => other,
                    }),
                    (_, other) => value.push(other),
                }
            };
            labels.push((label, value));
            rest = &quoted[end + 1..];
        }
        rest = &rest[1..];
    }
    Some(MetricSample { name, labels, value: rest.trim().parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_metrics() {
        let it = sample(r#"fence_virtd_x_total{a="b\"\\c",d="e}"} 7"#).unwrap();
        assert_eq!((it.name, it.label("a"), it.label("d"), it.value), ("x_total", "b\"\\c", "e}", 7.0));
        assert_eq!(sample("fence_virtd_y 1.5").unwrap().value, 1.5);
        for bad in ["# HELP", "", "other 1", "fence_virtd_x{a=\"", "fence_virtd_x{a", "fence_virtd_x y"] {
            assert_eq!(sample(bad), None, "{bad:?}");
        }
    }

    /// As of a daemon that was stopped: the system takes the connection.
    #[test]
    fn a_daemon_that_stands_still_is_told_from_one_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let ask = || fetch(&MetricsAddress::Unix(path.clone()), Duration::from_millis(50)).unwrap_err();
        assert!(is_time_out(&ask()));
        drop(listener);
        assert!(!is_time_out(&ask()));
    }
}
