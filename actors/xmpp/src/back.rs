//! Answers that go back on the stream that the question came on (XEP-0288).

use messages::Domain;

use crate::egress::{Answers, split};
use crate::stream::limits::PeerLimits;

/// Answers of one pair of domains that wait to be written, up to a bound.
pub(crate) struct Back {
    local: Domain,
    remote: Domain,
    limits: PeerLimits,
    bytes_max: usize,
    stanzas: Vec<u8>,
    replies: u64,
}

impl Back {
    pub(crate) fn new(
        local: &Domain,
        remote: &Domain,
        limits: PeerLimits,
        bytes_max: usize,
    ) -> Self {
        Self {
            local: local.clone(),
            remote: remote.clone(),
            limits,
            bytes_max,
            stanzas: Vec::new(),
            replies: 0,
        }
    }

    /// Lays answers down.
    ///
    /// # Errors
    /// The answers, if they are of another pair, do not fit, or one is larger than the peer takes here.
    pub(crate) fn push(&mut self, batch: Answers) -> Result<(), Answers> {
        let fits = batch.stanzas.len() <= self.bytes_max.saturating_sub(self.stanzas.len());
        let taken = match self.limits.stanza_bytes_max {
            Some(max) if batch.stanzas.len() > max => {
                split(&batch.stanzas).all(|stanza| stanza.len() <= max)
            }
            _ => true,
        };
        if !fits || !taken || batch.local != self.local || batch.remote != self.remote {
            return Err(batch);
        }
        self.stanzas.extend_from_slice(&batch.stanzas);
        self.replies += batch.replies;
        Ok(())
    }

    /// How many answers were laid down.
    pub(crate) const fn replies(&self) -> u64 {
        self.replies
    }

    /// Takes all that was laid down.
    pub(crate) fn take(&mut self) -> Option<Answers> {
        (self.replies > 0).then(|| Answers {
            local: self.local.clone(),
            remote: self.remote.clone(),
            stanzas: std::mem::take(&mut self.stanzas),
            replies: std::mem::take(&mut self.replies),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(local: &str, remote: &str, stanzas: &str) -> Answers {
        Answers {
            local: Domain::new(local),
            remote: Domain::new(remote),
            stanzas: stanzas.into(),
            replies: 1,
        }
    }

    #[test]
    fn is_bounded_and_of_one_pair() {
        let limits = PeerLimits::default();
        let (local, remote) = (Domain::new("push.test"), Domain::new("a.test"));
        let mut back = Back::new(&local, &remote, limits, 6);
        let mut push = |local, remote, stanzas| back.push(batch(local, remote, stanzas)).is_ok();
        assert!(!push("push.test", "b.test", "1"));
        assert!(!push("push2.test", "a.test", "1"));
        assert!(push("push.test", "a.test", "one"));
        assert!(push("push.test", "a.test", "two"));
        assert!(!push("push.test", "a.test", "3"));
        let taken = back.take().unwrap();
        assert_eq!(
            (taken.stanzas.as_slice(), taken.replies),
            (&b"onetwo"[..], 2)
        );
        assert_eq!(
            (taken.local.as_str(), taken.remote.as_str()),
            ("push.test", "a.test")
        );
        assert!(back.take().is_none());
        assert!(back.push(batch("push.test", "a.test", "again")).is_ok());
    }

    #[test]
    fn obeys_what_the_peer_takes() {
        let limits = PeerLimits {
            stanza_bytes_max: Some(20),
            ..PeerLimits::default()
        };
        let (local, remote) = (Domain::new("push.test"), Domain::new("a.test"));
        let mut back = Back::new(&local, &remote, limits, 1_000);
        let mut push = |stanzas| back.push(batch("push.test", "a.test", stanzas)).is_ok();
        assert!(push("<iq id='1'/><iq id='2'/>"));
        assert!(!push("<iq id='1'/><iq id='1234567890'/>"));
    }
}
