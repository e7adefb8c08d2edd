//! Pings that we send on streams to peers (XEP-0199).
//!
//! A stream carries stanzas one way, so the answer comes on a stream that the peer opened, to whatever
//! lane has that. It still proves that the stream works on which the ping went.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use messages::Domain;
use tokio::sync::oneshot;

use crate::xml::{ns, write};

/// What is known of a ping without answer.
struct Asked {
    local: Domain,
    remote: Domain,
    answered: oneshot::Sender<()>,
}

/// The pings of all lanes that have no answer yet. One ping per open stream, so a lock will do.
#[derive(Clone, Default)]
pub(crate) struct Pings(Arc<Mutex<HashMap<String, Asked>>>);

impl Pings {
    /// Appends a ping. `id` must not be guessable, since its answer is believed.
    pub(crate) fn ask(
        &self,
        out: &mut Vec<u8>,
        id: String,
        local: &Domain,
        remote: &Domain,
    ) -> Ping {
        let attributes = [
            ("type", "get"),
            ("id", id.as_str()),
            ("from", local.as_str()),
            ("to", remote.as_str()),
        ];
        write::element(out, "iq", &attributes, |out| {
            write::empty(out, "ping", &[("xmlns", ns::PING)]);
        });
        let (answered, answer) = oneshot::channel();
        let asked = Asked {
            local: local.clone(),
            remote: remote.clone(),
            answered,
        };
        let mut pings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pings.insert(id.clone(), asked);
        Ping {
            pings: self.clone(),
            id,
            answer,
        }
    }

    /// Takes an iq of type `result` or `error`: both prove that the peer is there.
    pub(crate) fn answered(&self, id: &str, remote: &Domain, local: &Domain) {
        let mut pings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = pings
            .get(id)
            .is_some_and(|asked| asked.remote == *remote && asked.local == *local);
        if ours && let Some(asked) = pings.remove(id) {
            // Whoever has stopped waiting does not care.
            let _ = asked.answered.send(());
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// A ping without answer. Forgotten when dropped.
pub(crate) struct Ping {
    pings: Pings,
    id: String,
    answer: oneshot::Receiver<()>,
}

impl Ping {
    /// Waits for the answer. Dropping the future loses nothing.
    pub(crate) async fn answered(&mut self) {
        // The sender is dropped together with the entry, which only an answer or our own end removes.
        let _ = (&mut self.answer).await;
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        let mut pings = self.pings.0.lock().unwrap_or_else(PoisonError::into_inner);
        pings.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn only_the_peer_that_was_asked_answers() {
        let pings = Pings::default();
        let (local, remote) = (Domain::new("push.test"), Domain::new("peer.test"));
        let mut text = Vec::new();
        let mut ping = pings.ask(&mut text, "p-1".to_owned(), &local, &remote);
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "<iq type='get' id='p-1' from='push.test' to='peer.test'>\
             <ping xmlns='urn:xmpp:ping'/></iq>"
        );
        pings.answered("p-2", &remote, &local);
        pings.answered("p-1", &Domain::new("other.test"), &local);
        pings.answered("p-1", &remote, &Domain::new("push2.test"));
        assert_eq!(ping.answered().now_or_never(), None);
        pings.answered("p-1", &remote, &local);
        assert_eq!(ping.answered().now_or_never(), Some(()));
        assert_eq!(pings.len(), 0);
    }

    #[test]
    fn what_is_not_waited_for_is_forgotten() {
        let pings = Pings::default();
        let domain = Domain::new("a.test");
        let ping = pings.ask(&mut Vec::new(), "p".to_owned(), &domain, &domain);
        assert_eq!(pings.len(), 1);
        drop(ping);
        assert_eq!(pings.len(), 0);
    }
}
