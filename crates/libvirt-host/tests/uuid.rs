// SPDX-License-Identifier: GPL-2.0-or-later
//! UUID text: our parser against literal text, properties, and libvirt's own parser.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use libvirt_host::{ParseUuidError, Uuid, init};
use proptest::prelude::*;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::ErrorNumber;

const BYTES: [u8; 16] =
    [0x66, 0x95, 0xeb, 0x01, 0xf6, 0xa4, 0x83, 0x04, 0x79, 0xaa, 0x97, 0xf2, 0x50, 0x2e, 0x19, 0x3f];

#[test]
fn known_texts() {
    for text in [
        "6695eb01-f6a4-8304-79aa-97f2502e193f",
        "6695EB01-F6A4-8304-79AA-97F2502E193F",
        "6695eb01f6a4830479aa97f2502e193f",
        " \t6695eb01-f6a4-8304-79aa-97f2502e193f\n",
        "66 95 eb 01 f6-a4-83-04 79aa97f2502e193f",
        "--6695eb01f6a4830479aa97f2502e193f",
    ] {
        assert_eq!(text.parse::<Uuid>().unwrap(), Uuid::from_bytes(BYTES), "{text:?}");
    }
    assert_eq!(Uuid::from_bytes(BYTES).to_string(), "6695eb01-f6a4-8304-79aa-97f2502e193f");
    for text in [
        "",
        "vm1",
        "6695eb01-f6a4-8304-79aa-97f2502e193",
        "6695eb01-f6a4-8304-79aa-97f2502e193f0",
        "6695eb01-f6a4-8304-79aa-97f2502e193f-",
        "6-695eb01f6a4830479aa97f2502e193f",
        "g695eb01-f6a4-8304-79aa-97f2502e193f",
        "6695eb01-f6a4-8304-79aa-97f2502e193é",
        "{6695eb01-f6a4-8304-79aa-97f2502e193f}",
    ] {
        assert_eq!(text.parse::<Uuid>(), Err(ParseUuidError), "{text:?}");
    }
}

proptest! {
    #[test]
    fn text_round_trips(bytes: [u8; 16]) {
        let uuid = Uuid::from_bytes(bytes);
        prop_assert_eq!(uuid.to_string().parse(), Ok(uuid));
        prop_assert_eq!(uuid.to_string().to_uppercase().replace('-', "").parse(), Ok(uuid));
        prop_assert_eq!(uuid.as_bytes(), &bytes);
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,60}") {
        let _ = text.parse::<Uuid>();
    }
}

/// A look-up reaches libvirt's parser: it either accepts the text and finds no domain, or refuses it.
#[test]
fn agrees_with_libvirt() {
    init().unwrap();
    let mut connect = Connect::open(Some("test:///default")).unwrap();
    // Nearly right texts, so that both answers are frequent.
    let pair = prop_oneof![40 => "[0-9a-fA-F]{2}", 1 => "[0-9a-g]{1,3}"];
    let separator =
        prop_oneof![30 => Just(""), 10 => Just("-"), 2 => Just(" "), 1 => Just("\t"), 1 => Just("--")];
    let part = (pair, separator).prop_map(|(pair, separator)| format!("{pair}{separator}"));
    let parts = proptest::collection::vec(part, 15..=17);
    let space = "[ \t\n\r\x0b\x0c]{0,2}";
    let taken = std::cell::Cell::new(0);
    proptest!(ProptestConfig::with_cases(4000), |(before in space, parts in parts, after in space)| {
        let text = format!("{before}{}{after}", parts.concat());
        let ours = text.parse::<Uuid>();
        match Domain::lookup_by_uuid_string(&connect, &text) {
            Ok(domain) => prop_assert_eq!(ours.unwrap().to_string(), domain.get_uuid_string().unwrap()),
            Err(e) if e.code() == ErrorNumber::NoDomain => {
                taken.set(taken.get() + 1);
                prop_assert!(ours.is_ok(), "{:?}", text);
            }
            Err(e) => prop_assert!(ours.is_err(), "{} {:?}", e, text),
        }
    });
    let taken = taken.get();
    // About one in eight is; the bounds are wide because the texts are random.
    assert!((100..3900).contains(&taken), "{taken} of 4000 texts were UUIDs: a poor sample");
    connect.close().unwrap();
}
