// SPDX-License-Identifier: GPL-2.0-or-later
//! Rules of the agent backend: evidence of fence agents, their lists, their domains and their metadata. Owns
//! pure logic, on the caller's task; must never run an agent or read a clock.

pub mod domains;
pub mod listing;
pub mod metadata;
pub mod plan;
