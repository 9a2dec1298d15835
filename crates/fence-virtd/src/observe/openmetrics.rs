// SPDX-License-Identifier: GPL-2.0-or-later
//! Small parts of the OpenMetrics output that counters and the exporter share. Pure.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Bounds of the buckets of times: from a status check on this host to the longest `client_timeout`.
pub(crate) const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 120.0, 600.0];

/// Adds a gauge without labels.
pub(crate) fn gauge(to: &mut Registry, name: &str, help: &str, value: i64) {
    let gauge: Gauge = Gauge::default();
    gauge.set(value);
    to.register(name, help, gauge);
}

/// Adds a gauge with one value for each set of labels. Without values nothing is served.
pub(crate) fn gauges(
    to: &mut Registry,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Vec<(&'static str, String)>, i64)>,
) {
    let family: Family<Vec<(&str, String)>, Gauge> = Family::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(value);
    }
    to.register(name, help, family);
}

/// Returns a count as the value of a gauge.
pub(crate) fn count(number: usize) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
