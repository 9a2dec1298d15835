// SPDX-License-Identifier: GPL-2.0-or-later
//! Slots for agent runs: of all devices together, and of each.
//!
//! Runs wait in order of arrival, but runs for a request go before lists and health checks. No device can
//! keep the others out:
//!
//! * a quarter of the slots is for devices that have none;
//! * devices whose last run timed out have at most half of the slots together. The first slot of each such
//!   device may come from three quarters.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::util::locks::lock;

/// Purpose of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RunPurpose {
    /// A request: it goes first.
    Request,
    /// A list or a look at health: it waits, and takes no more than half of the places.
    Survey,
}

/// The places. Clones share them.
#[derive(Clone)]
pub(super) struct RunSlots(Arc<Mutex<SlotTable>>);

/// A place to run an agent; given back when this is dropped.
pub(super) struct RunSlot {
    slots: RunSlots,
    device: usize,
    purpose: RunPurpose,
    is_ill: bool,
}

struct SlotTable {
    most: usize,
    devices: Vec<DeviceShare>,
    /// Runs of devices that hung.
    ill: usize,
    surveys: usize,
    waiting: Vec<SlotWaiter>,
}

#[derive(Clone, Copy)]
struct DeviceShare {
    most: usize,
    running: usize,
}

struct SlotWaiter {
    device: usize,
    purpose: RunPurpose,
    is_ill: bool,
    tell: oneshot::Sender<RunSlot>,
}

impl RunSlots {
    /// `devices`: how many of each may run at once.
    pub(super) fn new(most: usize, devices: impl IntoIterator<Item = usize>) -> Self {
        let devices = devices.into_iter().map(|most| DeviceShare { most, running: 0 }).collect();
        Self(Arc::new(Mutex::new(SlotTable { most, devices, ill: 0, surveys: 0, waiting: Vec::new() })))
    }

    /// Waits for a place. Whoever gives up just drops this.
    pub(super) async fn take(&self, device: usize, purpose: RunPurpose, is_ill: bool) -> Option<RunSlot> {
        let (tell, granted) = oneshot::channel();
        lock(&self.0).waiting.push(SlotWaiter { device, purpose, is_ill, tell });
        self.hand_out();
        granted.await.ok()
    }

    fn hand_out(&self) {
        loop {
            let next = lock(&self.0).next();
            let Some(next) = next else { return };
            let SlotWaiter { device, purpose, is_ill, tell } = next;
            // One that is not waited for any more gives its place back when it is dropped here: outside of
            // the lock.
            drop(tell.send(RunSlot { slots: self.clone(), device, purpose, is_ill }));
        }
    }
}

impl Drop for RunSlot {
    fn drop(&mut self) {
        lock(&self.slots.0).give_back(self.device, self.purpose, self.is_ill);
        self.slots.hand_out();
    }
}

impl SlotTable {
    /// The first that has its place now, which is taken for it.
    fn next(&mut self) -> Option<SlotWaiter> {
        self.waiting.retain(|it| !it.tell.is_closed());
        let fits = |purpose| {
            self.waiting
                .iter()
                .position(|it| it.purpose == purpose && self.fits(it.device, purpose, it.is_ill))
        };
        let place = fits(RunPurpose::Request).or_else(|| fits(RunPurpose::Survey))?;
        let next = self.waiting.remove(place);
        if let Some(device) = self.devices.get_mut(next.device) {
            device.running += 1;
        }
        self.ill += usize::from(next.is_ill);
        self.surveys += usize::from(next.purpose == RunPurpose::Survey);
        Some(next)
    }

    fn give_back(&mut self, device: usize, purpose: RunPurpose, is_ill: bool) {
        if let Some(device) = self.devices.get_mut(device) {
            device.running -= 1;
        }
        self.ill -= usize::from(is_ill);
        self.surveys -= usize::from(purpose == RunPurpose::Survey);
    }

    fn fits(&self, device: usize, purpose: RunPurpose, is_ill: bool) -> bool {
        let Some(DeviceShare { most, running }) = self.devices.get(device).copied() else { return false };
        let all: usize = self.devices.iter().map(|it| it.running).sum();
        let half = |it: usize| (it / 2).max(1);
        // What others find free who have nothing running.
        let idle = self.devices.iter().filter(|it| it.running == 0).count();
        let kept = if running == 0 { 0 } else { idle.min(self.most / 4) };
        // What may hang again leaves a part to those that don't.
        let ill = if running == 0 { self.most - self.most / 4 } else { half(self.most) };
        let survey = purpose == RunPurpose::Survey;
        running < most
            && all + kept < self.most
            && !(is_ill && self.ill >= ill)
            && !(survey && (self.surveys >= half(self.most) || running >= half(most)))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// A place, if there is one at once.
    fn now(slots: &RunSlots, device: usize, purpose: RunPurpose, is_ill: bool) -> Option<RunSlot> {
        let taken = pin!(slots.take(device, purpose, is_ill));
        match taken.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(slot) => slot,
            Poll::Pending => None,
        }
    }

    fn all(slots: &RunSlots, device: usize, purpose: RunPurpose, is_ill: bool) -> Vec<RunSlot> {
        std::iter::from_fn(|| now(slots, device, purpose, is_ill)).collect()
    }

    #[test]
    fn no_device_has_more_than_its_own_nor_all_of_the_places() {
        let slots = RunSlots::new(16, [4, 64, 64]);
        let first = all(&slots, 0, RunPurpose::Request, false);
        assert_eq!(first.len(), 4);
        let second = all(&slots, 1, RunPurpose::Request, false);
        // One is left for the one that has none.
        assert_eq!(second.len(), 11);
        assert_eq!(all(&slots, 2, RunPurpose::Request, false).len(), 1);
        drop(second);
        assert_eq!(all(&slots, 2, RunPurpose::Request, false).len(), 11);
        let many = RunSlots::new(16, [64; 20]);
        assert_eq!(all(&many, 0, RunPurpose::Request, false).len(), 12);
    }

    #[test]
    fn those_that_hang_leave_places_to_others() {
        let slots = RunSlots::new(8, [4; 8]);
        // One machine of a device may hang, and the others of it are served all the same.
        let ill: Vec<RunSlot> = (0..8).flat_map(|it| all(&slots, it, RunPurpose::Request, true)).collect();
        assert_eq!(ill.iter().map(|it| it.device).collect::<Vec<_>>(), [0, 0, 0, 0, 1, 2]);
        assert_eq!(all(&slots, 6, RunPurpose::Request, false).len(), 1);
        assert_eq!(all(&slots, 7, RunPurpose::Request, false).len(), 1);
    }

    #[test]
    fn surveys_leave_half_and_come_last() {
        let slots = RunSlots::new(8, [8, 8]);
        let surveys = all(&slots, 0, RunPurpose::Survey, false);
        assert_eq!(surveys.len(), 4);
        assert_eq!(all(&slots, 1, RunPurpose::Request, false).len(), 4);
        let one = RunSlots::new(1, [1, 1]);
        let running = now(&one, 0, RunPurpose::Request, false).unwrap();
        let mut survey = pin!(one.take(1, RunPurpose::Survey, false));
        let mut request = pin!(one.take(0, RunPurpose::Request, false));
        let context = &mut Context::from_waker(Waker::noop());
        assert!(survey.as_mut().poll(context).is_pending() && request.as_mut().poll(context).is_pending());
        drop(running);
        assert!(survey.as_mut().poll(context).is_pending());
        let Poll::Ready(Some(slot)) = request.as_mut().poll(context) else { panic!() };
        drop(slot);
        assert!(survey.as_mut().poll(context).is_ready());
    }

    #[test]
    fn who_gives_up_takes_no_place() {
        let slots = RunSlots::new(1, [1]);
        let running = now(&slots, 0, RunPurpose::Request, false).unwrap();
        assert!(now(&slots, 0, RunPurpose::Request, false).is_none());
        drop(running);
        assert!(now(&slots, 0, RunPurpose::Request, false).is_some());
    }
}
