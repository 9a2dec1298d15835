// SPDX-License-Identifier: GPL-2.0-or-later
//! Metadata of a fence agent: its options and actions, from the XML of its action `metadata`. Owns the parser
//! and the conclusions from it, on the caller's task; must never run an agent.

use std::collections::BTreeSet;

/// Options and actions of an agent. The default is that of an agent without metadata.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    /// Names of the options, with `_` for each `-`.
    options: BTreeSet<String>,
    actions: BTreeSet<String>,
}

/// Reason why an agent's metadata can't be used.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The metadata is no XML.
    #[error("its metadata is no XML: {0}")]
    Xml(#[from] roxmltree::Error),
    /// The metadata is XML of another kind.
    #[error("its metadata is no resource-agent")]
    Other,
}

impl Metadata {
    /// Reads the output of the action `metadata`.
    pub fn parse(output: &[u8]) -> Result<Self, MetadataError> {
        let text = String::from_utf8_lossy(output);
        // Some agents print other lines before the XML.
        let xml = text.find('<').map_or("", |it| &text[it..]);
        let document = roxmltree::Document::parse(xml)?;
        let root = document.root_element();
        if !root.has_tag_name("resource-agent") {
            return Err(MetadataError::Other);
        }
        let named = |tag: &'static str| {
            root.descendants().filter(move |it| it.has_tag_name(tag)).filter_map(|it| it.attribute("name"))
        };
        let options = named("parameter").map(one_spelling).collect();
        Ok(Self { options, actions: named("action").map(str::to_owned).collect() })
    }

    /// Returns true where nothing is known of the agent.
    pub fn is_unknown(&self) -> bool {
        self.options.is_empty() && self.actions.is_empty()
    }

    /// Returns true where the agent has this option.
    pub fn has_option(&self, name: &str) -> bool {
        self.options.contains(&one_spelling(name))
    }

    /// Returns the names of the options, in one spelling.
    pub fn options(&self) -> impl Iterator<Item = &str> {
        self.options.iter().map(String::as_str)
    }

    /// Returns true where the agent has this action.
    pub fn has_action(&self, name: &str) -> bool {
        self.actions.contains(name)
    }

    /// Returns the options that take the plug; none where the agent takes none. `is_on` tells which of the
    /// agent's options are set to "yes".
    pub fn plug_options(&self, is_on: impl Fn(&str) -> bool) -> Vec<&'static str> {
        if self.is_unknown() {
            // The name of today, and that of old agents.
            return vec!["plug", "port"];
        }
        // For such agents the plug is the address of the endpoint, if `port_as_ip` is set.
        if self.has_option("port_as_ip") && !is_on("port_as_ip") {
            return Vec::new();
        }
        ["plug", "port"].into_iter().find(|it| self.has_option(it)).into_iter().collect()
    }

    /// Returns true for an agent that reads options as the fence-agents project's library does: it strips
    /// blanks and one pair of quotes from values, and takes a plug with a separator in it for several plugs.
    pub fn is_of_the_library(&self) -> bool {
        self.has_option("plug_separator") || self.has_option("stonith_status_sleep")
    }
}

/// Returns an option's name in one spelling: agents accept `-` for `_`.
pub fn one_spelling(option: &str) -> String {
    option.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(agent: &str) -> Metadata {
        let texts = include_str!("testdata/metadata");
        let start = texts.find(&format!("name=\"{agent}\"")).unwrap();
        let start = texts[..start].rfind("<?xml").unwrap();
        let end = start + texts[start..].find("</resource-agent>").unwrap() + "</resource-agent>".len();
        Metadata::parse(&texts.as_bytes()[start..end]).unwrap()
    }

    #[test]
    fn agents_of_debian() {
        for agent in
            ["fence_redfish", "fence_virsh", "fence_xenapi", "fence_vmware_rest", "fence_pve", "fence_dummy"]
        {
            let it = of(agent);
            assert!(it.is_of_the_library(), "{agent}");
            assert!(["on", "off", "status", "monitor"].iter().all(|action| it.has_action(action)), "{agent}");
        }
        for agent in ["fence_virsh", "fence_xenapi", "fence_vmware_rest", "fence_pve"] {
            let it = of(agent);
            assert!(
                it.has_action("list") && it.has_action("list-status") && it.has_option("separator"),
                "{agent}"
            );
            assert_eq!(it.plug_options(|_| false), ["plug"], "{agent}");
        }
        let redfish = of("fence_redfish");
        assert!(!redfish.has_action("list") && !redfish.has_option("separator"));
        assert!(redfish.plug_options(|_| false).is_empty());
        assert_eq!(redfish.plug_options(|it| it == "port_as_ip"), ["plug"]);
        assert!(redfish.has_option("systems_uri") && redfish.has_option("ssl-insecure"));
        assert!(of("fence_dummy").plug_options(|_| false).is_empty());
        assert!(
            of("fence_virsh").has_option("identity_file") && !of("fence_virsh").has_option("password_file")
        );
    }

    #[test]
    fn what_is_no_metadata() {
        assert!(matches!(Metadata::parse(b"usage: fence_x"), Err(MetadataError::Xml(_))));
        assert!(matches!(Metadata::parse(b"<resource-agent>"), Err(MetadataError::Xml(_))));
        assert!(matches!(Metadata::parse(b"<html/>"), Err(MetadataError::Other)));
        let own =
            b"warning: old\n<resource-agent name='own'><parameters><parameter name='port'/></parameters>\
                    <actions><action name='list'/></actions></resource-agent>";
        let own = Metadata::parse(own).unwrap();
        assert_eq!(own.plug_options(|_| false), ["port"]);
        assert!(!own.is_of_the_library() && own.has_action("list") && !own.has_action("list-status"));
        assert_eq!(Metadata::default().plug_options(|_| false), ["plug", "port"]);
    }
}
