// SPDX-License-Identifier: GPL-2.0-or-later
//! The decision rules of fence_virtd, without I/O.
//!
//! Owns the rules that must never break: access, the order of requests, evidence, and arbitration among
//! hosts. Values go in, decisions come out; time is a parameter. Runs on the caller's task. Must never read a
//! clock, open a socket, log, wait, or call a library that does.
#![forbid(unsafe_code)]

pub mod access;
pub mod agent;
pub mod arbiter;
pub mod cluster;
pub mod domain;
mod domain_id;
pub mod evidence;
pub mod history;
pub mod host_down;
pub mod hosts;
pub mod intent;
pub mod listing;
pub mod owed_start;
#[cfg(test)]
mod schedules;
pub mod unseen_power_off;
pub mod unseen_start;
