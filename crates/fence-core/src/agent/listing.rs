// SPDX-License-Identifier: GPL-2.0-or-later
//! Parser for the output of an agent's `list` and `list-status`: plugs, aliases and power states.
//!
//! Owns the form of a line: `PLUG`, `PLUG,ALIAS` or `PLUG,ALIAS,STATE`, where plugs and aliases may hold
//! commas. Agents that have an option for the separator get [`SEPARATOR`], which is in no name; then every
//! other line is known to be noise. Runs on the caller's task; must never run an agent.

use crate::domain::PowerState;

/// Character that is in no name and is no blank.
pub const SEPARATOR: char = '\u{1}';
/// Plugs that are accepted from one list.
const MAX_PLUGS: usize = 10_000;
/// Texts that the agents' library prints where it has no list.
const NO_LIST: [&str; 2] = ["N/A", "NOTICE: List option is not working on this device yet"];

/// Plugs that a device lists.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PlugList {
    /// Plugs that could be read.
    pub entries: Vec<PlugEntry>,
    /// Number of lines that could not be read: the list may be incomplete.
    pub noise: usize,
}

/// Listed plug.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlugEntry {
    /// Name of the plug at the device.
    pub plug: String,
    /// Alias of the plug, where that differs from the plug.
    pub alias: Option<String>,
    /// Power state in the list; none where the list has none.
    pub power: Option<PowerState>,
}

/// Reason why a list can't be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ListError {
    /// The agent has no action `list`.
    #[error("its agent has no list")]
    None,
    /// The list has too many lines or bytes.
    #[error("its list is longer than {MAX_PLUGS} plugs or a megabyte")]
    TooLong,
}

/// Reads a list. `separator` stands between the fields where they are not separated by [`SEPARATOR`].
pub fn parse(output: &[u8], separator: &str, with_state: bool) -> Result<PlugList, ListError> {
    let lines: Vec<&[u8]> =
        output.split(|it| *it == b'\n').map(<[u8]>::trim_ascii).filter(|it| !it.is_empty()).collect();
    if lines.iter().any(|line| NO_LIST.iter().any(|it| it.as_bytes() == *line)) {
        return Err(ListError::None);
    }
    if lines.len() > MAX_PLUGS {
        return Err(ListError::TooLong);
    }
    let ours = SEPARATOR.to_string();
    let is_ours = lines.iter().any(|it| it.contains(&1));
    let separator = if is_ours { &ours } else { separator };
    let mut plugs = PlugList::default();
    for line in lines {
        let entry = std::str::from_utf8(line).ok().and_then(|it| {
            if is_ours && !it.contains(separator) { None } else { entry(it, separator, with_state) }
        });
        match entry {
            Some(entry) => plugs.entries.push(entry),
            None => plugs.noise += 1,
        }
    }
    plugs.drop_contradictions();
    Ok(plugs)
}

fn entry(line: &str, separator: &str, with_state: bool) -> Option<PlugEntry> {
    let split = |it: &'_ str| -> Option<(String, String)> {
        it.split_once(separator).filter(|_| !separator.is_empty()).map(|(a, b)| (a.to_owned(), b.to_owned()))
    };
    let (plug, rest) = split(line).unwrap_or_else(|| (line.to_owned(), String::new()));
    let (alias, state) = match rest.rsplit_once(separator).filter(|_| with_state && !separator.is_empty()) {
        Some((alias, state)) => (alias.to_owned(), state),
        None if with_state => (String::new(), rest.as_str()),
        None => (rest, ""),
    };
    let (plug, alias) = (plug.trim(), alias.trim());
    let power = if state.trim().eq_ignore_ascii_case("on") {
        Some(PowerState::On)
    } else if state.trim().eq_ignore_ascii_case("off") {
        Some(PowerState::Off)
    } else {
        None
    };
    if plug.is_empty() || [plug, alias].iter().any(|it| it.contains(char::is_control)) {
        return None;
    }
    let alias = Some(alias).filter(|it| !it.is_empty() && *it != plug).map(str::to_owned);
    Some(PlugEntry { plug: plug.to_owned(), alias, power })
}

impl PlugList {
    /// Removes duplicates. A plug that is listed under two names is removed, because its name is not certain.
    fn drop_contradictions(&mut self) {
        self.entries.sort_by(|a, b| (&a.plug, &a.alias).cmp(&(&b.plug, &b.alias)));
        self.entries.dedup_by(|a, b| {
            let same = a.plug == b.plug && a.alias == b.alias;
            if same && a.power != b.power {
                b.power = None;
            }
            same
        });
        let twice: Vec<String> = self
            .entries
            .windows(2)
            .filter(|it| it[0].plug == it[1].plug)
            .map(|it| it[0].plug.clone())
            .collect();
        let before = self.entries.len();
        self.entries.retain(|it| !twice.contains(&it.plug));
        self.noise += before - self.entries.len();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(plug: &str, alias: &str, power: Option<PowerState>) -> PlugEntry {
        PlugEntry { plug: plug.to_owned(), alias: (!alias.is_empty()).then(|| alias.to_owned()), power }
    }

    const ON: Option<PowerState> = Some(PowerState::On);
    const OFF: Option<PowerState> = Some(PowerState::Off);

    #[test]
    fn what_the_agents_library_prints() {
        let list = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c,web 1, blue\n101,db\n102,\ngr\u{f6}\u{df}e,\u{e9}\n";
        let plugs = parse(list.as_bytes(), ",", false).unwrap();
        assert_eq!(
            plugs.entries,
            [
                entry("101", "db", None),
                entry("102", "", None),
                entry("5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c", "web 1, blue", None),
                entry("gr\u{f6}\u{df}e", "\u{e9}", None),
            ]
        );
        let states = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c,web 1, blue,UNKNOWN\n101,db,ON\n102,,off\n";
        let plugs = parse(states.as_bytes(), ",", true).unwrap();
        assert_eq!(plugs.noise, 0);
        assert_eq!(
            plugs.entries,
            [
                entry("101", "db", ON),
                entry("102", "", OFF),
                entry("5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c", "web 1, blue", None)
            ]
        );
    }

    #[test]
    fn with_a_separator_that_is_in_no_name() {
        // fence_virsh has names for plugs, and no aliases; fence_xenapi prints its exceptions.
        let states = b"a,b\x01\x01ON\nUUID: x, NAME: y\n['HANDLE_INVALID', 'VM']\nc\x01d,e\x01OFF\n";
        let plugs = parse(states, ",", true).unwrap();
        assert_eq!(plugs.entries, [entry("a,b", "", ON), entry("c", "d,e", OFF)]);
        assert_eq!(plugs.noise, 2);
    }

    #[test]
    fn lists_of_others() {
        assert_eq!(
            parse(b"node1\r\n\n node2 \n", ",", false).unwrap().entries,
            [entry("node1", "", None), entry("node2", "", None)]
        );
        assert_eq!(parse(b"1|a,b\n", "|", false).unwrap().entries, [entry("1", "a,b", None)]);
        assert_eq!(parse(b"node1,on\n", ",", true).unwrap().entries, [entry("node1", "", ON)]);
        assert_eq!(parse(b"a,a\n", "", false).unwrap().entries, [entry("a,a", "", None)]);
        assert_eq!(parse(b"", ",", false), Ok(PlugList::default()));
        for text in NO_LIST {
            assert_eq!(parse(format!("{text}\n").as_bytes(), ",", false), Err(ListError::None));
        }
        assert_eq!(parse("x\n".repeat(MAX_PLUGS + 1).as_bytes(), ",", false), Err(ListError::TooLong));
    }

    #[test]
    fn what_says_two_things_says_nothing() {
        let plugs = parse(b"1,a\n1,b\n2,c\n2,c\n\xff,d\n3,e\x1b[2J\n,f\n", ",", false).unwrap();
        assert_eq!(plugs.entries, [entry("2", "c", None)]);
        assert_eq!(plugs.noise, 5);
        assert_eq!(parse(b"1,a,ON\n1,a,OFF\n", ",", true).unwrap().entries, [entry("1", "a", None)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(output: Vec<u8>, with_state: bool) {
            if let Ok(plugs) = parse(&output, ",", with_state) {
                for it in &plugs.entries {
                    prop_assert!(!it.plug.is_empty() && !it.plug.contains(char::is_control));
                    prop_assert_eq!(it.plug.trim(), &it.plug);
                    prop_assert_eq!(plugs.entries.iter().filter(|other| other.plug == it.plug).count(), 1);
                }
            }
        }

        /// Whatever is in names: with our separator they are what they were.
        #[test]
        fn names_come_back(plug in "[ -~\u{e4}]{1,20}", alias in "[ -~\u{e4}]{0,20}", power: bool) {
            let line = format!("{plug}\u{1}{alias}\u{1}{}\n", if power { "ON" } else { "OFF" });
            let plugs = parse(line.as_bytes(), ",", true).unwrap();
            let (plug, alias) = (plug.trim(), alias.trim());
            let alias = if alias == plug { "" } else { alias };
            let expected = entry(plug, alias, if power { ON } else { OFF });
            prop_assert_eq!(plugs.entries, if plug.is_empty() { vec![] } else { vec![expected] });
        }
    }
}
