// SPDX-License-Identifier: GPL-2.0-or-later
//! The host's answer on a serial line or VM channel, sans-I/O: bytes in, and the answer at its end.
//!
//! ```text
//! request frame  -->
//!                <--  response frame, or a frame of 253, a host list and a response frame
//! ```
//!
//! A response says neither which request nor which host it belongs to: see [`crate::line`] for what follows from that.

use fence_wire::{
    Action, HOST_LIST_ENTRY_LEN, HOST_LIST_FOLLOWS, HostListEntry, HostListItem, Response,
    SERIAL_RESPONSE_LEN, SerialScanner,
};

use crate::answer::Answer;
use crate::exchange::{LIST_MAX, Refusal, plain};

/// What comes back to one request.
#[derive(Debug)]
pub struct Frames {
    action: Action,
    scanner: SerialScanner<SERIAL_RESPONSE_LEN>,
    state: State,
}

#[derive(Debug)]
enum State {
    AwaitResponse,
    InList(List),
    /// The list has ended, its response frame is still to come.
    AfterList(Vec<HostListEntry>),
    Done(Answer),
}

#[derive(Default, Debug)]
struct List {
    entries: Vec<HostListEntry>,
    /// Bytes of the next entry.
    bytes: Vec<u8>,
}

impl Frames {
    /// Nothing has come yet.
    #[must_use]
    pub fn new(action: Action) -> Self {
        Self { action, scanner: SerialScanner::new(), state: State::AwaitResponse }
    }

    /// Takes bytes that came. What comes after the answer is nobody's.
    ///
    /// # Errors
    /// Why there will be no answer.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        for byte in bytes {
            let state = std::mem::replace(&mut self.state, State::AwaitResponse);
            self.state = self.step(state, *byte)?;
        }
        Ok(())
    }

    /// Whether the whole answer is here.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }

    /// Whether all of a list is here; only the frame is missing that says how it went.
    #[must_use]
    pub fn list_has_ended(&self) -> bool {
        matches!(self.state, State::AfterList(_))
    }

    /// What there is when no more comes: the answer, if it is one.
    #[must_use]
    pub fn close(self) -> Option<Answer> {
        match self.state {
            State::Done(answer) => Some(answer),
            State::AfterList(entries) => Some(Answer::List { entries, response: None }),
            State::AwaitResponse | State::InList(_) => None,
        }
    }

    /// How many entries of a list have come; none outside of one.
    #[must_use]
    pub fn entries(&self) -> Option<usize> {
        match &self.state {
            State::InList(list) => Some(list.entries.len()),
            State::AwaitResponse | State::AfterList(_) | State::Done(_) => None,
        }
    }

    fn step(&mut self, state: State, byte: u8) -> Result<State, Refusal> {
        Ok(match state {
            State::AwaitResponse => match self.scanner.push(byte) {
                Some([.., HOST_LIST_FOLLOWS]) if self.action == Action::List => {
                    State::InList(List::default())
                }
                Some([.., code]) => State::Done(plain(self.action, code)?),
                None => State::AwaitResponse,
            },
            State::InList(mut list) => {
                list.bytes.push(byte);
                let Some(entry) = list.bytes.first_chunk::<HOST_LIST_ENTRY_LEN>() else {
                    return Ok(State::InList(list));
                };
                match HostListEntry::decode(entry) {
                    HostListItem::End => return Ok(State::AfterList(list.entries)),
                    HostListItem::Domain(_) if list.entries.len() == LIST_MAX => {
                        return Err(Refusal::ListTooLong);
                    }
                    HostListItem::Domain(domain) => list.entries.push(domain),
                }
                list.bytes.clear();
                State::InList(list)
            }
            State::AfterList(entries) => match self.scanner.push(byte) {
                Some([.., code]) => {
                    let response = Response::from_number(code).ok_or(Refusal::Response(code))?;
                    State::Done(Answer::List { entries, response: Some(response) })
                }
                None => State::AfterList(entries),
            },
            State::Done(answer) => State::Done(answer),
        })
    }
}

#[cfg(test)]
mod tests {
    use fence_wire::{HOST_LIST_END, serial_response};
    use proptest::prelude::*;

    use super::*;

    fn answer(action: Action, bytes: &[u8]) -> Result<Option<Answer>, Refusal> {
        let mut frames = Frames::new(action);
        frames.receive(bytes)?;
        let done = frames.is_done();
        Ok(frames.close().filter(|_| done))
    }

    #[test]
    fn responses() {
        let code = |action, code| answer(action, &serial_response(code));
        let plain = |response| Ok(Some(Answer::Response(response)));
        assert_eq!(code(Action::Status, 0), plain(Response::Success));
        assert_eq!(code(Action::Status, 2), plain(Response::Off));
        assert_eq!(code(Action::Off, 1), plain(Response::Failure));
        assert_eq!(code(Action::Off, 3), plain(Response::PermissionDenied));
        assert_eq!(code(Action::List, 1), plain(Response::Failure));
        assert_eq!(code(Action::Off, 2), Err(Refusal::Response(2)));
        assert_eq!(code(Action::Off, 7), Err(Refusal::Response(7)));
        assert_eq!(code(Action::Off, 253), Err(Refusal::Response(253)));
        assert_eq!(code(Action::List, 0), Err(Refusal::NoList));
    }

    fn list(entries: &[HostListEntry], last: u8) -> Vec<u8> {
        let mut bytes = serial_response(253).to_vec();
        bytes.extend(entries.iter().flat_map(HostListEntry::encode));
        bytes.extend(HOST_LIST_END);
        bytes.extend(serial_response(last));
        bytes
    }

    #[test]
    fn lists() {
        let entries = [HostListEntry { name: "abba".into(), uuid: "1-2".into(), on: true }];
        let whole = list(&entries, 1);
        let expected = |response| Some(Answer::List { entries: entries.to_vec(), response });
        assert_eq!(answer(Action::List, &whole), Ok(expected(Some(Response::Failure))));
        for end in 0..whole.len() {
            assert_eq!(answer(Action::List, &whole[..end]), Ok(None), "{end}");
        }
        let mut frames = Frames::new(Action::List);
        frames.receive(&whole[..whole.len() - 5]).unwrap();
        assert!(frames.list_has_ended());
        assert_eq!(frames.close(), expected(None));
    }

    #[test]
    fn a_list_without_end_is_refused() {
        let mut frames = Frames::new(Action::List);
        frames.receive(&serial_response(253)).unwrap();
        let entry = HostListEntry { name: "x".into(), uuid: "y".into(), on: false }.encode();
        let refusal = (0..=LIST_MAX).find_map(|_| frames.receive(&entry).err());
        assert_eq!(refusal, Some(Refusal::ListTooLong));
    }

    proptest! {
        #[test]
        fn noise_is_skipped(noise in proptest::collection::vec(any::<u8>(), 0..200), code in 0..4_u8) {
            // Noise with the magic number in it is an answer.
            prop_assume!(!noise.windows(4).any(|it| it == b"abba"));
            prop_assume!(!noise.ends_with(b"abb"));
            let bytes = [&noise[..], &serial_response(code)].concat();
            let expected = Response::from_number(code).map(Answer::Response);
            prop_assert_eq!(answer(Action::Status, &bytes), Ok(expected));
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2000), cut in 0..2000_usize) {
            // In one piece or in two: the same.
            let mut frames = Frames::new(Action::List);
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            let pieces = frames.receive(a).and_then(|()| frames.receive(b)).map(|()| frames.close());
            let mut frames = Frames::new(Action::List);
            let whole = frames.receive(&bytes).map(|()| frames.close());
            prop_assert_eq!(pieces, whole);
        }
    }
}
