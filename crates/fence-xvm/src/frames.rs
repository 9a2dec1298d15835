// SPDX-License-Identifier: GPL-2.0-or-later
//! Answer of a host on a serial line or VM channel, sans-I/O: bytes in, and the answer at the end.
//!
//! ```text
//! request frame  -->
//!                <--  response frame, or a frame of 253, a host list and a response frame
//! ```
//!
//! A response names neither its request nor its host; the module `line` deals with that.
//!
//! Owns the bytes of one answer. Pure: no descriptors, no clock. Must never give a list before its
//! last entry is here.

use fence_wire::{
    Action, HOST_LIST_ENTRY_LEN, HOST_LIST_FOLLOWS, HostListEntry, HostListItem, Response,
    SERIAL_RESPONSE_LEN, SerialScanner,
};

use crate::answer::HostAnswer;
use crate::exchange::{ExchangeError, LIST_MAX, answer_from_byte};

/// Frames that answer one request.
#[derive(Debug)]
pub struct ResponseFrames {
    action: Action,
    scanner: SerialScanner<SERIAL_RESPONSE_LEN>,
    state: FrameState,
}

#[derive(Debug)]
enum FrameState {
    AwaitResponse,
    InList(PartialList),
    /// The list is complete, its response frame is still to come.
    AfterList(Vec<HostListEntry>),
    Done(HostAnswer),
}

#[derive(Default, Debug)]
struct PartialList {
    entries: Vec<HostListEntry>,
    /// First bytes of the next entry.
    bytes: Vec<u8>,
}

impl ResponseFrames {
    /// Returns the state before the first byte.
    #[must_use]
    pub fn new(action: Action) -> Self {
        Self { action, scanner: SerialScanner::new(), state: FrameState::AwaitResponse }
    }

    /// Takes received bytes. Bytes after the answer are discarded.
    ///
    /// # Errors
    /// The reason why there will be no answer.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), ExchangeError> {
        for byte in bytes {
            let state = std::mem::replace(&mut self.state, FrameState::AwaitResponse);
            self.state = self.advance(state, *byte)?;
        }
        Ok(())
    }

    /// Returns whether the whole answer is here.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.state, FrameState::Done(_))
    }

    /// Returns whether the whole list is here and only its response frame is missing.
    #[must_use]
    pub fn is_list_complete(&self) -> bool {
        matches!(self.state, FrameState::AfterList(_))
    }

    /// Ends the exchange and returns its answer, if it is complete.
    #[must_use]
    pub fn close(self) -> Option<HostAnswer> {
        match self.state {
            FrameState::Done(answer) => Some(answer),
            FrameState::AfterList(entries) => Some(HostAnswer::List { entries, response: None }),
            FrameState::AwaitResponse | FrameState::InList(_) => None,
        }
    }

    /// Returns the number of entries of an incomplete list; none where there is no list, or a complete one.
    #[must_use]
    pub fn partial_entry_count(&self) -> Option<usize> {
        match &self.state {
            FrameState::InList(list) => Some(list.entries.len()),
            FrameState::AwaitResponse | FrameState::AfterList(_) | FrameState::Done(_) => None,
        }
    }

    fn advance(&mut self, state: FrameState, byte: u8) -> Result<FrameState, ExchangeError> {
        Ok(match state {
            FrameState::AwaitResponse => match self.scanner.push(byte) {
                Some([.., HOST_LIST_FOLLOWS]) if self.action == Action::List => {
                    FrameState::InList(PartialList::default())
                }
                Some([.., code]) => FrameState::Done(answer_from_byte(self.action, code)?),
                None => FrameState::AwaitResponse,
            },
            FrameState::InList(mut list) => {
                list.bytes.push(byte);
                let Some(entry) = list.bytes.first_chunk::<HOST_LIST_ENTRY_LEN>() else {
                    return Ok(FrameState::InList(list));
                };
                match HostListEntry::decode(entry) {
                    HostListItem::End => return Ok(FrameState::AfterList(list.entries)),
                    HostListItem::Domain(_) if list.entries.len() == LIST_MAX => {
                        return Err(ExchangeError::ListTooLong);
                    }
                    HostListItem::Domain(domain) => list.entries.push(domain),
                }
                list.bytes.clear();
                FrameState::InList(list)
            }
            FrameState::AfterList(entries) => match self.scanner.push(byte) {
                Some([.., code]) => {
                    let response = Response::from_number(code).ok_or(ExchangeError::Response(code))?;
                    FrameState::Done(HostAnswer::List { entries, response: Some(response) })
                }
                None => FrameState::AfterList(entries),
            },
            FrameState::Done(answer) => FrameState::Done(answer),
        })
    }
}

#[cfg(test)]
mod tests {
    use fence_wire::{HOST_LIST_END, serial_response};
    use proptest::prelude::*;

    use super::*;

    fn answer(action: Action, bytes: &[u8]) -> Result<Option<HostAnswer>, ExchangeError> {
        let mut frames = ResponseFrames::new(action);
        frames.receive(bytes)?;
        let done = frames.is_done();
        Ok(frames.close().filter(|_| done))
    }

    #[test]
    fn responses() {
        let code = |action, code| answer(action, &serial_response(code));
        let plain = |response| Ok(Some(HostAnswer::Response(response)));
        assert_eq!(code(Action::Status, 0), plain(Response::Success));
        assert_eq!(code(Action::Status, 2), plain(Response::Off));
        assert_eq!(code(Action::Off, 1), plain(Response::Failure));
        assert_eq!(code(Action::Off, 3), plain(Response::PermissionDenied));
        assert_eq!(code(Action::List, 1), plain(Response::Failure));
        assert_eq!(code(Action::Off, 2), Err(ExchangeError::Response(2)));
        assert_eq!(code(Action::Off, 7), Err(ExchangeError::Response(7)));
        assert_eq!(code(Action::Off, 253), Err(ExchangeError::Response(253)));
        assert_eq!(code(Action::List, 0), Err(ExchangeError::NoList));
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
        let expected = |response| Some(HostAnswer::List { entries: entries.to_vec(), response });
        assert_eq!(answer(Action::List, &whole), Ok(expected(Some(Response::Failure))));
        for end in 0..whole.len() {
            assert_eq!(answer(Action::List, &whole[..end]), Ok(None), "{end}");
        }
        let mut frames = ResponseFrames::new(Action::List);
        frames.receive(&whole[..whole.len() - 5]).unwrap();
        assert!(frames.is_list_complete());
        assert_eq!(frames.close(), expected(None));
    }

    #[test]
    fn a_list_without_end_is_refused() {
        let mut frames = ResponseFrames::new(Action::List);
        frames.receive(&serial_response(253)).unwrap();
        let entry = HostListEntry { name: "x".into(), uuid: "y".into(), on: false }.encode();
        let error = (0..=LIST_MAX).find_map(|_| frames.receive(&entry).err());
        assert_eq!(error, Some(ExchangeError::ListTooLong));
    }

    proptest! {
        #[test]
        fn noise_is_skipped(noise in proptest::collection::vec(any::<u8>(), 0..200), code in 0..4_u8) {
            // Noise with the magic number in it is an answer.
            prop_assume!(!noise.windows(4).any(|bytes| bytes == b"abba"));
            prop_assume!(!noise.ends_with(b"abb"));
            let bytes = [&noise[..], &serial_response(code)].concat();
            let expected = Response::from_number(code).map(HostAnswer::Response);
            prop_assert_eq!(answer(Action::Status, &bytes), Ok(expected));
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2000), cut in 0..2000_usize) {
            // In one piece or in two: the same.
            let mut frames = ResponseFrames::new(Action::List);
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            let pieces = frames.receive(a).and_then(|()| frames.receive(b)).map(|()| frames.close());
            let mut frames = ResponseFrames::new(Action::List);
            let whole = frames.receive(&bytes).map(|()| frames.close());
            prop_assert_eq!(pieces, whole);
        }
    }
}
