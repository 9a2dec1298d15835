// SPDX-License-Identifier: GPL-2.0-or-later
//! List of all domains, by whichever way is first.
//!
//! One call lists a thousand domains in a few milliseconds, but needs an ordinary worker of libvirtd. Its
//! reserved workers list them in two calls and a thousand round trips, and nothing keeps them from it.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use libvirt_host::{DomainRecord, Error};
use tracing::debug;

/// Time in which a free worker lists the domains. After it they are read one by one as well.
const BULK_PATIENCE: Duration = Duration::from_millis(200);

/// Answer of an ordinary worker.
pub(super) type BulkAnswer = Result<Vec<DomainRecord>, Error>;

/// List that an ordinary worker may give.
pub(super) struct BulkList(Receiver<BulkAnswer>);

impl BulkList {
    /// Returns a list that comes by the sender. None comes if that is dropped.
    pub(super) fn new() -> (Sender<BulkAnswer>, Self) {
        let (tell, told) = mpsc::channel();
        (tell, Self(told))
    }

    /// Waits for a moment, then reads the domains one by one, until the one or the other is done.
    /// `one_by_one` is told when to stop: then it gives none.
    pub(super) fn or_one_by_one(
        self,
        one_by_one: impl FnOnce(&mut dyn FnMut() -> bool) -> Result<Option<Vec<DomainRecord>>, Error>,
    ) -> Result<Vec<DomainRecord>, Error> {
        let why = match self.0.recv_timeout(BULK_PATIENCE) {
            Ok(Ok(records)) => return Ok(records),
            // A refusal is met below again.
            Ok(Err(error)) => error.to_string(),
            Err(RecvTimeoutError::Disconnected) => "no worker was asked".to_owned(),
            Err(RecvTimeoutError::Timeout) => "no worker has answered".to_owned(),
        };
        debug!("lists the domains one by one: {why}");
        let mut late = None;
        let list = one_by_one(&mut || {
            late = late.take().or_else(|| self.0.try_recv().ok()?.ok());
            late.is_some()
        })?;
        Ok(list.or(late).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use libvirt_host::{ErrorKind, State};

    use super::*;

    fn list(name: &str) -> Vec<DomainRecord> {
        let uuid = "5a40a06f-1a5b-4d2e-9d2c-8b3f0b1f4f1c".parse().unwrap();
        vec![DomainRecord { name: name.to_owned(), uuid, state: State::Running }]
    }

    fn failed() -> Error {
        Error {
            kind: ErrorKind::Unsupported,
            code: 3,
            domain: 0,
            errno: 0,
            message: String::new(),
            call: "list",
        }
    }

    #[test]
    fn an_answer_in_bulk_is_the_list() {
        let (tell, bulk) = BulkList::new();
        tell.send(Ok(list("bulk"))).unwrap();
        assert_eq!(bulk.or_one_by_one(|_| panic!("nothing is read")).unwrap(), list("bulk"));
    }

    #[test]
    fn without_one_the_domains_are_read() {
        let (tell, bulk) = BulkList::new();
        let read = bulk.or_one_by_one(|is_in_vain| {
            assert!(!is_in_vain());
            Ok(Some(list("read")))
        });
        assert_eq!(read.unwrap(), list("read"));
        drop(tell);
        for answer in [None, Some(Err(failed()))] {
            let (tell, bulk) = BulkList::new();
            if let Some(it) = answer {
                tell.send(it).unwrap();
            }
            drop(tell);
            assert_eq!(bulk.or_one_by_one(|_| Ok(Some(list("read")))).unwrap(), list("read"));
        }
        let (_, bulk) = BulkList::new();
        assert_eq!(bulk.or_one_by_one(|_| Err(failed())).unwrap_err().code, 3);
    }

    #[test]
    fn a_late_answer_ends_the_reading() {
        let (tell, bulk) = BulkList::new();
        let read = bulk.or_one_by_one(|is_in_vain| {
            assert!(!is_in_vain());
            tell.send(Ok(list("bulk"))).unwrap();
            assert!(is_in_vain() && is_in_vain());
            Ok(None)
        });
        assert_eq!(read.unwrap(), list("bulk"));
    }
}
