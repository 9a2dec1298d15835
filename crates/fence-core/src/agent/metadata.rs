// SPDX-License-Identifier: GPL-2.0-or-later
//! What an agent says of itself: its options and actions, from the XML of its `metadata`.

use std::collections::BTreeSet;

/// What is known of an agent. The default is that of one that says nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    /// Options, with `_` for each `-`.
    options: BTreeSet<String>,
    actions: BTreeSet<String>,
}

/// Why an agent's metadata can't be used.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error("its metadata is no XML: {0}")]
    Xml(#[from] roxmltree::Error),
    #[error("its metadata is no resource-agent")]
    Other,
}

impl Metadata {
    /// Reads what `metadata` wrote.
    pub fn parse(output: &[u8]) -> Result<Self, MetadataError> {
        let text = String::from_utf8_lossy(output);
        // Some say something before.
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

    /// Nothing is known of it.
    pub fn is_unknown(&self) -> bool {
        self.options.is_empty() && self.actions.is_empty()
    }

    pub fn has_option(&self, name: &str) -> bool {
        self.options.contains(&one_spelling(name))
    }

    /// Its options, in one spelling.
    pub fn options(&self) -> impl Iterator<Item = &str> {
        self.options.iter().map(String::as_str)
    }

    pub fn has_action(&self, name: &str) -> bool {
        self.actions.contains(name)
    }

    /// The options that take the plug; none where the agent takes none. `has_option` tells which of the agent's options
    /// are set to "yes".
    pub fn plug_options(&self, is_on: impl Fn(&str) -> bool) -> Vec<&'static str> {
        if self.is_unknown() {
            // The present name, and the one that old agents know.
            return vec!["plug", "port"];
        }
        // There the plug is the address of the endpoint, if that is asked for.
        if self.has_option("port_as_ip") && !is_on("port_as_ip") {
            return Vec::new();
        }
        ["plug", "port"].into_iter().find(|it| self.has_option(it)).into_iter().collect()
    }

    /// It reads its options as those of the fence-agents project do, which are built on one library: it strips blanks from
    /// values and one pair of quotes, and takes a plug with a separator in it for several.
    pub fn is_of_the_library(&self) -> bool {
        self.has_option("plug_separator") || self.has_option("stonith_status_sleep")
    }
}

/// Agents take `-` for `_`.
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
