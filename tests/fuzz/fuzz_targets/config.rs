// SPDX-License-Identifier: GPL-2.0-or-later
//! Any bytes as fence_virt.conf: no panic, the tree writes them back, and a file that is accepted means the
//! same in the usual layout.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let loaded = fence_config::load(data);
    assert_eq!(loaded.tree.to_bytes(), data);
    for diagnostic in &loaded.diagnostics {
        let text = diagnostic.render("fence_virt.conf", data);
        assert!(text.chars().all(|it| it == '\n' || !it.is_control()), "{text:?}");
    }
    if let Some(config) = loaded.config {
        let pretty = fence_config::load(&loaded.tree.to_pretty());
        assert_eq!(pretty.config, Some(config));
    }
});
