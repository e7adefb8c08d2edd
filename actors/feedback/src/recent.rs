//! Verdicts of the last minute, to recognise repetitions.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use messages::{AppId, DeviceToken, RejectedToken, UnixMillis};
use tokio::time::Instant;

type Token = (AppId, DeviceToken);

/// The tokens judged within a span of time, at most a number of them.
pub(crate) struct Recent {
    span: Duration,
    max: usize,
    /// Since when each is dead, by the latest verdict.
    known: HashMap<Arc<Token>, UnixMillis>,
    /// Oldest first.
    order: VecDeque<(Instant, Arc<Token>)>,
}

impl Recent {
    pub(crate) fn new(span: Duration, max: usize) -> Self {
        Self {
            span,
            max,
            known: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Whether the same token was judged within the span, and dead at least as recently; if not, remembers
    /// it when there is room. A newer death is no repetition: the registration may have been renewed in
    /// between and survived the first verdict.
    pub(crate) fn repeats(&mut self, item: &RejectedToken, now: Instant) -> bool {
        while let Some((_, oldest)) = self
            .order
            .pop_front_if(|(at, _)| now.saturating_duration_since(*at) >= self.span)
        {
            self.known.remove(&oldest);
        }
        let token = Arc::new((item.app.clone(), item.device_token.clone()));
        match self.known.get_mut(&token) {
            Some(since) if item.invalid_since <= *since => true,
            Some(since) => {
                *since = item.invalid_since;
                false
            }
            None => {
                if self.known.len() < self.max {
                    self.known.insert(Arc::clone(&token), item.invalid_since);
                    self.order.push_back((now, token));
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use messages::ErrorReason;

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
    fn a_newer_death_is_no_repetition() {
        let mut recent = Recent::new(Duration::from_secs(60), 10);
        let now = Instant::now();
        let dead_since = |millis| RejectedToken {
            invalid_since: UnixMillis(millis),
            ..item("a", "aa")
        };
        assert!(!recent.repeats(&dead_since(5), now));
        assert!(recent.repeats(&dead_since(5), now));
        assert!(recent.repeats(&dead_since(4), now));
        assert!(!recent.repeats(&dead_since(6), now));
        assert!(recent.repeats(&dead_since(6), now));
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
