// SPDX-License-Identifier: GPL-2.0-or-later
//! The calls of this crate, and the workers of libvirtd that answer them.
//!
//! What is outside of `ordinary.rs` has to be answered while all ordinary workers are held. The list of the
//! calls is read from the sources, so that no call comes in without its priority.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

/// libvirt's own list.
const PRIORITIES: &str = include_str!("libvirt-priorities.txt");

/// Module of the calls that need an ordinary worker.
const ORDINARY: &str = "ordinary.rs";

/// Calls, and the procedures that each has libvirtd do.
const CALLS: &[(&str, &[&str])] = &[
    ("Connect::open", &["connect_open", "connect_supports_feature", "auth_list", "connect_get_uri"]),
    ("connect.close", &["connect_close"]),
    ("connect.is_alive", &[]),
    ("connect.set_keep_alive", &[]),
    ("connect.list_all_domains", &["connect_list_all_domains"]),
    ("connect.num_of_domains", &["connect_num_of_domains"]),
    ("Domain::create_xml", &["domain_create_xml"]),
    ("Domain::define_xml", &["domain_define_xml"]),
    ("Domain::lookup_by_name", &["domain_lookup_by_name"]),
    ("raw.create_with_flags", &["domain_create_with_flags"]),
    ("raw.destroy", &["domain_destroy"]),
    ("raw.get_id", &[]),
    ("raw.has_managed_save", &["domain_has_managed_save_image"]),
    ("raw.is_active", &["domain_is_active"]),
    ("raw.is_persistent", &["domain_is_persistent"]),
    ("raw.managed_save_remove", &["domain_managed_save_remove"]),
    ("raw.resume", &["domain_resume"]),
    ("raw.suspend", &["domain_suspend"]),
    ("raw.undefine", &["domain_undefine"]),
    ("virConnectDomainEventDeregisterAny", &["connect_domain_event_callback_deregister_any"]),
    ("virConnectDomainEventRegisterAny", &["connect_domain_event_callback_register_any"]),
    ("virConnectGetAllDomainStats", &["connect_get_all_domain_stats"]),
    ("virConnectRegisterCloseCallback", &["connect_register_close_callback"]),
    ("virConnectUnregisterCloseCallback", &["connect_unregister_close_callback"]),
    ("virDomainGetJobInfo", &["domain_get_job_info"]),
    ("virDomainGetJobStats", &["domain_get_job_stats"]),
    ("virDomainGetName", &[]),
    ("virDomainGetState", &["domain_get_state"]),
    ("virDomainGetUUID", &[]),
    ("virDomainGetXMLDesc", &["domain_get_xml_desc"]),
    ("virDomainStatsRecordListFree", &[]),
    ("virDomainLookupByUUID", &["domain_lookup_by_uuid"]),
    ("virEventAddTimeout", &[]),
    ("virEventRegisterDefaultImpl", &[]),
    ("virEventRemoveTimeout", &[]),
    ("virEventRunDefaultImpl", &[]),
    ("virGetLastError", &[]),
    ("virInitialize", &[]),
    ("virNodeGetCPUMap", &["node_get_cpu_map"]),
    ("virSetErrorFunc", &[]),
    ("virTypedParamsFree", &[]),
    ("virTypedParamsGetInt", &[]),
];

#[test]
fn outside_of_one_module_a_reserved_worker_answers() {
    let priorities: HashMap<_, _> =
        PRIORITIES.lines().filter(|it| !it.starts_with('#')).map(|it| it.split_once(' ').unwrap()).collect();
    let procedures: HashMap<_, _> = CALLS.iter().copied().collect();
    let (mut seen, mut ordinary) = (BTreeSet::new(), 0);
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_name().unwrap().to_str().unwrap().to_owned();
        for call in calls(&fs::read_to_string(&path).unwrap()) {
            let its = procedures.get(&*call).unwrap_or_else(|| panic!("{module}: {call} is not in CALLS"));
            for procedure in *its {
                match priorities.get(procedure).unwrap_or_else(|| panic!("libvirt has no {procedure}")) {
                    &"high" => {}
                    _ if module == ORDINARY => ordinary += 1,
                    _ => panic!("{module}: {call} needs an ordinary worker: its place is {ORDINARY}"),
                }
            }
            seen.insert(call);
        }
    }
    let unused: Vec<_> = CALLS.iter().filter(|(call, _)| !seen.contains(*call)).collect();
    assert!(unused.is_empty(), "no longer called, or no longer found in the sources: {unused:?}");
    assert!(ordinary > 5, "{ordinary}");
}

/// Returns the calls of libvirt in a source file: of its C functions, and of the methods that stand for them.
fn calls(source: &str) -> BTreeSet<String> {
    let code: Vec<_> = source.lines().filter(|it| !it.trim_start().starts_with("//")).collect();
    let code: String = code.concat().split_whitespace().collect();
    let mut found = BTreeSet::new();
    for (before, shown) in [
        ("sys::vir", "vir"),
        ("raw.", "raw."),
        ("connect().", "connect."),
        ("connect.", "connect."),
        ("domain::Domain::", "Domain::"),
        ("Connect::", "Connect::"),
    ] {
        for (place, _) in code.match_indices(before) {
            let rest = &code[place + before.len()..];
            let end = rest.find(|it: char| !it.is_ascii_alphanumeric() && it != '_').unwrap();
            // Not called: a type or a constant. These two make and take a pointer, and ask nobody.
            if rest[end..].starts_with('(') && !matches!(&rest[..end], "as_ptr" | "from_ptr") {
                found.insert(format!("{shown}{}", &rest[..end]));
            }
        }
    }
    found
}
