// SPDX-License-Identifier: GPL-2.0-or-later
//! The agent backend.
#![allow(dead_code)]
mod truth;
