//! Who waits for an answer: a token is a place in a table, so that an answer finds its caller without a search.

use std::time::Instant;

use flotilla_range::event::Token;
use flotilla_types::{RangeError, RangeReply};
use tokio::sync::oneshot;

pub(super) type Answer = Result<RangeReply, RangeError>;

/// The open requests.
#[derive(Default)]
pub(super) struct Callers {
    places: Vec<Option<oneshot::Sender<Answer>>>,
    free: Vec<u64>,
}

impl Callers {
    /// A token that is unique while it is open.
    pub(super) fn open(&mut self, caller: oneshot::Sender<Answer>) -> Token {
        let place = self.free.pop().unwrap_or(self.places.len() as u64);
        match self.places.get_mut(place as usize) {
            Some(free) => *free = Some(caller),
            None => self.places.push(Some(caller)),
        }
        Token(place)
    }

    /// The caller behind a token, which may be given out again from now on.
    pub(super) fn close(&mut self, token: Token) -> Option<oneshot::Sender<Answer>> {
        let caller = self.places.get_mut(token.0 as usize)?.take()?;
        self.free.push(token.0);
        Some(caller)
    }
}

/// Follows one write through its steps, one at a time: a sample for the histograms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) token: Token,
    /// When it came into the mailbox.
    pub(super) since: Instant,
    /// When its turn's append was submitted, and as which.
    pub(super) submitted: Option<(flotilla_range::event::Ticket, Instant)>,
    /// When that was durable here.
    pub(super) durable: Option<Instant>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_unique_while_it_is_open_and_answers_once() {
        let mut callers = Callers::default();
        let (sender, _first) = oneshot::channel();
        let (other, _second) = oneshot::channel();
        let (a, b) = (callers.open(sender), callers.open(other));
        assert_ne!(a, b);
        assert!(callers.close(a).is_some());
        assert!(callers.close(a).is_none(), "answered already");
        let (again, _third) = oneshot::channel();
        assert_eq!(callers.open(again), a, "places are used again");
    }
}
