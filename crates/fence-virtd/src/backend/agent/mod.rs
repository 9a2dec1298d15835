// SPDX-License-Identifier: GPL-2.0-or-later
//! The agent backend.
#![allow(dead_code)]
mod listing;
mod metadata;
mod secret;
mod truth;
