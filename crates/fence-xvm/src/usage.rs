// SPDX-License-Identifier: GPL-2.0-or-later
//! What is wrong with the options.

use std::io;
use std::net::IpAddr;

use fence_cli::getopt::{GetoptError, Name};
use fence_wire::{HashType, TargetError, escaped};

/// What is wrong with the options.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsageError {
    /// The command line is no command line.
    #[error(transparent)]
    Getopt(#[from] GetoptError),
    /// Standard input cannot be read.
    #[error("standard input cannot be read: {0}")]
    Stdin(io::Error),
    /// A name on standard input without a value.
    #[error("option '{}' on standard input needs a value (NAME=VALUE)", escaped(.0))]
    NoValue(String),
    /// An option that is taken for compatibility and has no meaning.
    #[error("option {0} is not supported")]
    Unsupported(Name),
    /// A value that does not fit its option.
    #[error("{option}: '{}' is not {expected}", escaped(.value))]
    Value {
        /// The option as the user wrote it.
        option: String,
        /// The value that he gave.
        value: String,
        /// What is expected.
        expected: &'static str,
    },
    /// No such action.
    #[error("unknown action '{}'", escaped(.0))]
    Action(String),
    /// An action that changes something, or that nobody answers.
    #[error("--diagnose asks for status or monitor and for nothing else: not for {0}")]
    DiagnoseAction(String),
    /// Two targets that differ.
    #[error(
        "two different domains are given, '{}' and '{}'; if the cluster manager names one of them (Pacemaker does, with \
         port=), use pcmk_host_map instead of plug=", escaped(.0), escaped(.1)
    )]
    TwoTargets(String, String),
    /// No target for an action that needs one.
    #[error("no domain given: action {0} needs one (-n on the command line, plug= on standard input)")]
    NoTarget(&'static str),
    /// No challenge for a request that has none without.
    #[error(
        "auth none (-C none) cannot go with hash {0}: a sealed request is always challenged; leave auth out"
    )]
    SealedUnchallenged(HashType),
    /// A sealed challenge for a request that is not sealed.
    #[error(
        "auth {0} (-C) goes only with hash {0} (-c): request, challenge and response are sealed together"
    )]
    SealedChallenge(HashType),
    /// A sealed request where nothing is hashed at all.
    #[error(
        "hash {0} (-c) cannot be had on a serial line or VM channel, where nothing is hashed: leave hash out"
    )]
    SealedLine(HashType),
    /// The target is none.
    #[error("the domain's name {0}")]
    Target(#[from] TargetError),
    /// The group is of the other family.
    #[error("multicast address {group} is not of family {family}")]
    Family {
        /// The group.
        group: IpAddr,
        /// The family's name.
        family: &'static str,
    },
}
