// SPDX-License-Identifier: GPL-2.0-or-later
//! The inventory of a hypervisor, kept up to date by one task ([`follow`](super::follow)).

use std::sync::Arc;
use std::time::{Duration, Instant};

use fence_wire::escaped;
use libvirt_host::{Connection, DomainRecord, Error, ErrorKind, OrdinaryConnection, State, Uuid, XmlKind};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::follow::{DomainFollower, HypervisorReading, follow};
use super::inventory::{Inventory, RunningDomain, RunningDomains, read};
use super::pool::Hypervisor;
use super::uuid::domain_id;

/// Time that the XML of one domain may take.
const XML_LIMIT: Duration = Duration::from_secs(10);
/// Code of the error that no worker of libvirtd has answered: no number of libvirt.
const NO_ANSWER: i32 = -1;

/// Follows the running domains of a hypervisor as long as the result is held. Must run inside the runtime.
pub(crate) fn follow_running(hypervisor: &Arc<Hypervisor>) -> Inventory {
    let (sender, running) = watch::channel(RunningDomains::new());
    let follower = RunningFollower { running: sender, hypervisor: Arc::clone(hypervisor) };
    follow(hypervisor, Arc::new(follower));
    Inventory { running, local: is_local(hypervisor.uri()) }
}

/// Returns whether the URI has no host in it: `qemu:///system`, `qemu+unix:///system?socket=…`.
fn is_local(uri: &str) -> bool {
    uri.split_once("://").is_none_or(|(_, rest)| rest.is_empty() || rest.starts_with(['/', '?']))
}

struct RunningFollower {
    running: watch::Sender<RunningDomains>,
    hypervisor: Arc<Hypervisor>,
}

impl RunningFollower {
    /// Reads the XML of a running domain, which needs an ordinary worker of libvirtd.
    fn xml(&self, uuid: Uuid) -> Result<Option<String>, Error> {
        let read = move |c: &OrdinaryConnection| {
            c.domain_by_uuid(uuid)?.map(|it| c.of(&it).xml(XmlKind::default())).transpose()
        };
        self.hypervisor.call_worker_beside(Instant::now() + XML_LIMIT, read).map_err(|error| {
            error.into_error().unwrap_or_else(|why| Error {
                kind: ErrorKind::Other,
                code: NO_ANSWER,
                domain: 0,
                errno: 0,
                message: why.to_string(),
                call: "read the XML of a domain",
            })
        })
    }
}

impl DomainFollower for RunningFollower {
    type Domain = Arc<RunningDomain>;
    const BEYOND_LIMIT: &'static str = "requests of the other domains have no known source";

    fn read_listed(
        &self,
        connection: &Connection,
        record: DomainRecord,
    ) -> Result<Option<Self::Domain>, Error> {
        if record.state == State::ShutOff {
            return Ok(None);
        }
        self.read_one(connection, record.uuid)
    }

    /// Reads the domain as it runs; none if it does not run, or if its XML can't be used.
    fn read_one(&self, connection: &Connection, uuid: Uuid) -> Result<Option<Self::Domain>, Error> {
        let active_xml = || {
            let Some(domain) = connection.domain_by_uuid(uuid)? else { return Ok(None) };
            if !domain.is_active()? {
                return Ok(None);
            }
            self.xml(uuid)
        };
        let xml = match active_xml() {
            Ok(xml) => xml,
            Err(error) if error.kind == ErrorKind::Connection || error.code == NO_ANSWER => {
                return Err(error);
            }
            // The domain went away meanwhile, or its state allows no reading: an event will follow.
            Err(error) => {
                debug!(%uuid, "can't read the domain's XML: {error}");
                None
            }
        };
        Ok(xml.and_then(|xml| match read(domain_id(uuid), &xml) {
            Ok(domain) => Some(Arc::new(domain)),
            Err(error) => {
                warn!(%uuid, "can't make sense of the domain's XML: {}", escaped(&error.to_string()));
                None
            }
        }))
    }

    fn update(&self, reading: HypervisorReading<Self::Domain>) {
        self.running.send_if_modified(|known| !reading.apply_to(known, domain_id).is_empty());
    }

    async fn until_unused(&self) {
        self.running.closed().await;
    }
}
