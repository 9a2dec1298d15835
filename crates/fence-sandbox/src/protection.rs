// SPDX-License-Identifier: GPL-2.0-or-later
//! Result of a confinement: how much of each part this kernel enforces.

use std::fmt;

use caps::Capability;

/// Limits that are in force.
#[derive(Clone, Debug)]
pub struct Protection {
    /// Landlock: files, TCP, signals.
    pub files: Enforcement,
    /// seccomp: system calls.
    pub calls: Enforcement,
    /// Capabilities that are left, or the reason why more than the needed ones are.
    pub capabilities: Result<Vec<Capability>, String>,
}

/// Degree to which one part is in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Enforcement {
    /// Everything.
    On,
    /// Only a part: this kernel cannot do more.
    Partly,
    /// Nothing, for this reason.
    Off(String),
}

impl Protection {
    /// Returns whether all parts are on.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.files == Enforcement::On && self.calls == Enforcement::On && self.capabilities.is_ok()
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "files {}, system calls {}, ", self.files, self.calls)?;
        match &self.capabilities {
            Ok(kept) if kept.is_empty() => f.write_str("no capabilities"),
            Ok(kept) => {
                f.write_str("capabilities")?;
                kept.iter().try_for_each(|it| write!(f, " {}", it.to_string().to_lowercase()))
            }
            Err(why) => write!(f, "capabilities not limited ({why})"),
        }
    }
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On => f.write_str("limited"),
            Self::Partly => f.write_str("limited as far as this kernel can"),
            Self::Off(why) => write!(f, "not limited ({why})"),
        }
    }
}
