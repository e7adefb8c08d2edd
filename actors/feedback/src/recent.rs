//! Verdicts of the last minute, to recognise repetitions.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use messages::{AppId, DeviceToken, RejectedToken};
use tokio::time::Instant;

type Token = (AppId, DeviceToken);

/// The tokens judged within a span of time, at most a number of them.
pub(crate) struct Recent {
    span: Duration,
    max: usize,
    known: HashSet<Arc<Token>>,
    /// Oldest first.
    order: VecDeque<(Instant, Arc<Token>)>,
}

impl Recent {
    pub(crate) fn new(span: Duration, max: usize) -> Self {
        Self {
            span,
            max,
            known: HashSet::new(),
            order: VecDeque::new(),
        }
    }

    /// Whether the same token was judged within the span; if not, remembers it when there is room.
    pub(crate) fn repeats(&mut self, item: &RejectedToken, now: Instant) -> bool {
        while let Some((_, oldest)) = self
            .order
            .pop_front_if(|(at, _)| now.saturating_duration_since(*at) >= self.span)
        {
            self.known.remove(&oldest);
        }
        let token = Arc::new((item.app.clone(), item.device_token.clone()));
        if self.known.contains(&token) {
            return true;
        }
        if self.known.len() < self.max {
            self.known.insert(Arc::clone(&token));
            self.order.push_back((now, token));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use messages::{ErrorReason, UnixMillis};

    use super::*;

    fn item(app: &str, token: &str) -> RejectedToken {
        RejectedToken {
            app: AppId::new(app),
            device_token: DeviceToken::parse(&token.repeat(32)).unwrap(),
            reason: ErrorReason::known("Unregistered"),
            invalid_since: UnixMillis(0),
        }
    }

    #[test]
    fn a_token_is_known_for_the_span_and_per_app() {
        let mut recent = Recent::new(Duration::from_secs(60), 10);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!recent.repeats(&item("a", "aa"), start));
        assert!(!recent.repeats(&item("b", "aa"), start));
        assert!(!recent.repeats(&item("a", "bb"), after(30)));
        assert!(recent.repeats(&item("a", "aa"), after(59)));
        assert!(!recent.repeats(&item("a", "aa"), after(60)));
        assert!(recent.repeats(&item("a", "bb"), after(60)));
        assert_eq!(recent.known.len(), recent.order.len());
    }

    #[test]
    fn without_room_a_repetition_passes() {
        let mut recent = Recent::new(Duration::from_secs(60), 1);
        let now = Instant::now();
        assert!(!recent.repeats(&item("a", "aa"), now));
        assert!(!recent.repeats(&item("a", "bb"), now));
        assert!(!recent.repeats(&item("a", "bb"), now));
        assert!(recent.repeats(&item("a", "aa"), now));
    }
}
