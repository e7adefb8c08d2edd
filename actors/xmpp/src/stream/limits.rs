//! What a peer says that it takes (XEP-0478).

use std::time::Duration;

use crate::xml::Element;

const NAMESPACE: &str = "urn:xmpp:stream-limits:0";

/// Limits of a peer; what it does not say is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerLimits {
    /// Most bytes of a stanza.
    pub(crate) stanza_bytes_max: Option<usize>,
    /// How long a stream may be silent before the peer cuts it.
    pub(crate) idle: Option<Duration>,
}

impl PeerLimits {
    /// Reads the stream features of a peer, or its request for the way back.
    pub(crate) fn of(element: &Element) -> Self {
        let limits = element.child("limits", NAMESPACE);
        let number = |name| {
            let text = limits?.child(name, NAMESPACE)?.text();
            text.trim().parse::<u64>().ok().filter(|number| *number > 0)
        };
        Self {
            stanza_bytes_max: number("max-bytes")
                .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            idle: number("idle-seconds").map(Duration::from_secs),
        }
    }

    /// How long a stream may be of no use before we close it, `ours` at most: some time before the peer
    /// would do it.
    pub(crate) fn idle_within(self, ours: Duration) -> Duration {
        let theirs = self.idle.map(|idle| idle.saturating_sub(idle / 8));
        theirs.map_or(ours, |theirs| theirs.min(ours))
    }

    /// These, and those of `earlier` features that they do not replace.
    pub(crate) fn or(self, earlier: Self) -> Self {
        Self {
            stanza_bytes_max: self.stanza_bytes_max.or(earlier.stanza_bytes_max),
            idle: self.idle.or(earlier.idle),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::Namespaces;

    #[track_caller]
    fn check(content: &str, expected: (Option<usize>, Option<u64>)) {
        let features = format!("<stream:features>{content}</stream:features>");
        let features = Element::read(&features, &Namespaces::server()).unwrap();
        let limits = PeerLimits::of(&features);
        let idle = limits.idle.map(|idle| idle.as_secs());
        assert_eq!((limits.stanza_bytes_max, idle), expected, "{content}");
    }

    #[test]
    fn limits() {
        check("", (None, None));
        check("<limits xmlns='urn:xmpp:stream-limits:0'/>", (None, None));
        check(
            "<limits xmlns='urn:xmpp:stream-limits:0'><max-bytes>524288</max-bytes>\
             <idle-seconds> 840 </idle-seconds></limits>",
            (Some(524_288), Some(840)),
        );
        check(
            "<limits xmlns='urn:xmpp:stream-limits:0'><max-bytes>0</max-bytes>\
             <idle-seconds>-1</idle-seconds></limits>",
            (None, None),
        );
        check(
            "<limits xmlns='urn:other'><max-bytes>1</max-bytes></limits>",
            (None, None),
        );
    }

    #[test]
    fn a_stream_is_closed_before_the_peer_does_it() {
        let ours = Duration::from_secs(600);
        let within = |seconds| {
            let idle = Some(Duration::from_secs(seconds));
            let limits = PeerLimits {
                idle,
                ..PeerLimits::default()
            };
            limits.idle_within(ours).as_secs()
        };
        assert_eq!(PeerLimits::default().idle_within(ours), ours);
        assert_eq!(within(840), 600);
        assert_eq!(within(80), 70);
        assert_eq!(within(u64::MAX), 600);
    }

    #[test]
    fn later_features_replace_earlier_ones() {
        let earlier = PeerLimits {
            stanza_bytes_max: Some(1),
            idle: Some(Duration::from_secs(2)),
        };
        let later = PeerLimits {
            stanza_bytes_max: Some(3),
            idle: None,
        };
        assert_eq!(later.or(earlier).stanza_bytes_max, Some(3));
        assert_eq!(later.or(earlier).idle, earlier.idle);
    }
}
