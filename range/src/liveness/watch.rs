//! The watch over the store's own clock (leases 1.4): when it must not be trusted, and when it may be again.
//!
//! Two signs. The wall clock and the monotonic clock part between two looks: a step, or a pause of the machine. Or a
//! majority of the peers shows another time: every liveness reply carries its sender's wall clock, which lies between the
//! moment of asking and the present if both are right. (The hybrid clock would not do: one clock that is ahead pulls all
//! others along.) A suspended store serves nobody and campaigns for nothing, until round trips with a majority show that it
//! is close. A store that is ahead by more than the allowed offset gets no replies, and stays suspended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_types::StoreId;

/// How long the peers have to be close after they were not.
const CALM: Duration = Duration::from_secs(10);
/// After this long a person has to look.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why the clock is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// It moved by so much against the monotonic clock.
    Stepped(Duration),
    /// It differs from a majority of the peers' by at least so much.
    Off(Duration),
}

/// What the watch says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockVerdict {
    /// The clock is trusted.
    Trusted,
    /// The store is suspended.
    Suspended(Suspicion),
    /// It has been for so long that it should stop.
    Hopeless(Suspicion),
}

#[derive(Debug)]
struct Suspended {
    why: Suspicion,
    since: Duration,
    /// Peers that were measured to be close since.
    close: BTreeSet<StoreId>,
}

/// One peer's newest measurement.
#[derive(Debug, Default, Clone, Copy)]
struct Measured {
    /// The wall clock when it was last asked.
    asked_at: Option<Duration>,
    /// The clocks differ by at least this.
    off: Duration,
    /// Until then (monotonic) it counts as far although it may be close.
    far_until: Option<Duration>,
}

/// See the module's page.
#[derive(Debug)]
pub struct ClockWatch {
    max_offset: Duration,
    last: Option<(Duration, Duration)>,
    peers: BTreeMap<StoreId, Measured>,
    suspended: Option<Suspended>,
}

impl ClockWatch {
    /// Trusts the clock until something speaks against it.
    #[must_use]
    pub const fn new(max_offset: Duration) -> Self {
        Self { max_offset, last: None, peers: BTreeMap::new(), suspended: None }
    }

    /// Which peers can speak for the time.
    pub fn peers(&mut self, peers: &BTreeSet<StoreId>) {
        self.peers.retain(|peer, _| peers.contains(peer));
        for peer in peers {
            self.peers.entry(*peer).or_default();
        }
    }

    /// A look at both clocks, at every turn of the liveness loop.
    pub fn look(&mut self, wall: Duration, mono: Duration) -> ClockVerdict {
        if let Some((last_wall, last_mono)) = self.last.replace((wall, mono)) {
            let expected = last_wall + mono.saturating_sub(last_mono);
            let apart = expected.abs_diff(wall);
            if apart > self.max_offset / 2 {
                self.suspend(Suspicion::Stepped(apart), mono);
                // What was asked before the step measures nothing.
                self.peers.values_mut().for_each(|peer| peer.asked_at = None);
            }
        }
        let off = self.off_majority();
        if off * 10 > self.max_offset * 8 {
            self.suspend(Suspicion::Off(off), mono);
        }
        self.verdict(mono)
    }

    /// A peer is asked.
    pub fn asked(&mut self, peer: StoreId, wall: Duration) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.asked_at.get_or_insert(wall);
        }
    }

    /// A peer answered, with its wall clock.
    pub fn answered(&mut self, from: StoreId, theirs: Duration, wall: Duration, mono: Duration) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let Some(asked_at) = peer.asked_at.take() else { return };
        // Its clock showed `theirs` at a moment between asking and now, most likely in the middle.
        peer.off = theirs.saturating_sub(wall).max(asked_at.saturating_sub(theirs));
        let close = theirs.abs_diff((asked_at + wall) / 2) < self.max_offset / 2;
        if !close {
            peer.far_until = Some(mono + CALM);
        }
        let calm = peer.far_until.is_none_or(|until| mono >= until);
        if let Some(suspended) = &mut self.suspended {
            let waits = matches!(suspended.why, Suspicion::Off(_)) && !calm;
            if close && !waits {
                suspended.close.insert(from);
            } else {
                suspended.close.remove(&from);
            }
        }
    }

    fn suspend(&mut self, why: Suspicion, mono: Duration) {
        match &mut self.suspended {
            // Another step: what was measured before it counts no more.
            Some(suspended) => suspended.close.clear(),
            None => self.suspended = Some(Suspended { why, since: mono, close: BTreeSet::new() }),
        }
    }

    fn verdict(&mut self, mono: Duration) -> ClockVerdict {
        let Some(suspended) = &self.suspended else { return ClockVerdict::Trusted };
        // A majority of the peers; a store without peers has nobody to disagree with.
        if suspended.close.len() * 2 > self.peers.len() || self.peers.is_empty() {
            self.suspended = None;
            return ClockVerdict::Trusted;
        }
        match mono.saturating_sub(suspended.since) >= PATIENCE {
            true => ClockVerdict::Hopeless(suspended.why),
            false => ClockVerdict::Suspended(suspended.why),
        }
    }

    /// By how much a majority of the peers differs, at least.
    fn off_majority(&self) -> Duration {
        let mut off: Vec<_> = self.peers.values().map(|peer| peer.off).collect();
        off.sort_unstable();
        // More than half of them are at or above this one.
        let needed = off.len() / 2 + 1;
        off.len().checked_sub(needed).map_or(Duration::ZERO, |at| off[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const DAY: Duration = Duration::from_secs(86_400);

    /// Both clocks after so many milliseconds; the wall clock wrong by `wrong` more.
    fn at(milliseconds: u32, wrong: u32) -> (Duration, Duration) {
        (DAY + MS * (milliseconds + wrong), MS * milliseconds)
    }

    fn watch() -> ClockWatch {
        let mut watch = ClockWatch::new(MS * 250);
        watch.peers(&[2, 3].map(StoreId).into_iter().collect());
        watch
    }

    /// A round trip of 2 ms with a peer whose clock shows the time plus `off`.
    fn round(watch: &mut ClockWatch, peer: u64, now: (Duration, Duration), true_wall: Duration) {
        watch.asked(StoreId(peer), now.0);
        watch.answered(StoreId(peer), true_wall + MS, now.0 + MS * 2, now.1 + MS * 2);
    }

    #[test]
    fn time_that_passes_evenly_is_trusted() {
        let mut watch = watch();
        for n in 0..100 {
            let (wall, mono) = at(n * 500, n);
            assert_eq!(watch.look(wall, mono), ClockVerdict::Trusted, "a drift of a millisecond in each interval");
        }
    }

    #[test]
    fn a_step_suspends_until_a_majority_is_close() {
        for wrong in [400, 10_000] {
            let mut watch = watch();
            watch.look(at(0, 0).0, at(0, 0).1);
            let stepped = at(500, wrong);
            let verdict = watch.look(stepped.0, stepped.1);
            assert_eq!(verdict, ClockVerdict::Suspended(Suspicion::Stepped(MS * wrong)));
            // The peers show that the clock is wrong.
            round(&mut watch, 2, stepped, at(500, 0).0);
            round(&mut watch, 3, stepped, at(500, 0).0);
            let later = at(1000, wrong);
            assert_ne!(watch.look(later.0, later.1), ClockVerdict::Trusted);
            // Set right: another step, and then they agree.
            let right = at(1500, 0);
            assert_ne!(watch.look(right.0, right.1), ClockVerdict::Trusted);
            round(&mut watch, 2, right, right.0);
            assert_ne!(watch.look(right.0, right.1), ClockVerdict::Trusted, "one of two is no majority");
            round(&mut watch, 3, right, right.0);
            assert_eq!(watch.look(right.0, right.1), ClockVerdict::Trusted);
        }
    }

    #[test]
    fn a_machine_that_was_paused_goes_on_after_a_round_trip() {
        let mut watch = watch();
        watch.look(DAY, Duration::ZERO);
        // The monotonic clock stood still for an hour, and the wall clock did not.
        let (wall, mono) = (DAY + Duration::from_secs(3600), MS * 10);
        assert_ne!(watch.look(wall, mono), ClockVerdict::Trusted);
        round(&mut watch, 2, (wall, mono), wall);
        round(&mut watch, 3, (wall, mono), wall);
        assert_eq!(watch.look(wall, mono), ClockVerdict::Trusted);
    }

    #[test]
    fn who_differs_from_a_majority_waits_until_it_has_been_close_for_a_while() {
        let mut watch = watch();
        let now = |watch: &mut ClockWatch, milliseconds: u32, ahead: u32| {
            let clocks = at(milliseconds, 0);
            round(watch, 2, clocks, clocks.0 + MS * ahead);
            round(watch, 3, clocks, clocks.0 + MS * ahead);
            watch.look(clocks.0 + MS * 2, clocks.1 + MS * 2)
        };
        assert_eq!(now(&mut watch, 0, 100), ClockVerdict::Trusted);
        assert!(matches!(now(&mut watch, 500, 230), ClockVerdict::Suspended(Suspicion::Off(_))));
        assert_ne!(now(&mut watch, 1000, 20), ClockVerdict::Trusted);
        assert_ne!(now(&mut watch, 9000, 20), ClockVerdict::Trusted);
        assert_eq!(now(&mut watch, 11_000, 20), ClockVerdict::Trusted);
    }

    #[test]
    fn one_peer_that_is_wrong_says_nothing_and_ten_minutes_are_enough() {
        let mut watch = watch();
        let clocks = at(0, 0);
        round(&mut watch, 2, clocks, clocks.0 + MS * 5000);
        round(&mut watch, 3, clocks, clocks.0);
        assert_eq!(watch.look(clocks.0, clocks.1), ClockVerdict::Trusted);
        let stepped = at(500, 1000);
        watch.look(stepped.0, stepped.1);
        let late = at(700_000, 1000);
        assert!(matches!(watch.look(late.0, late.1), ClockVerdict::Hopeless(Suspicion::Stepped(_))));
    }

    #[test]
    fn a_store_alone_has_nobody_to_ask() {
        let mut watch = ClockWatch::new(MS * 250);
        watch.look(at(0, 0).0, at(0, 0).1);
        assert_eq!(watch.look(at(500, 9000).0, at(500, 0).1), ClockVerdict::Trusted);
    }
}
