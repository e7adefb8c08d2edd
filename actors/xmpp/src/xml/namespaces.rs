//! The namespace declarations of a stream header.

use std::sync::Arc;

#[cfg(test)]
use super::ns;

/// What a stream header declares for everything inside the stream. Stanzas are read as slices without
/// their header, so its declarations have to be handed in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    /// Prefix, none for the default namespace, and namespace name.
    bindings: Vec<(Option<Box<str>>, Arc<str>)>,
}

impl Namespaces {
    /// What our own stream headers declare: content `jabber:server`, prefixes `stream` and `db`.
    #[cfg(test)]
    pub(crate) fn server() -> Self {
        let mut namespaces = Self::default();
        namespaces.bind(None, ns::SERVER);
        namespaces.bind(Some("stream"), ns::STREAMS);
        namespaces.bind(Some("db"), ns::DIALBACK);
        namespaces
    }

    /// Adds a declaration, one without prefix for the default namespace.
    pub(super) fn bind(&mut self, prefix: Option<&str>, namespace: &str) {
        self.bindings
            .push((prefix.map(Box::from), namespace.into()));
    }

    /// The namespace bound to a prefix.
    pub(crate) fn resolve(&self, prefix: &str) -> Option<&str> {
        self.find(Some(prefix))
    }

    /// The content namespace: that of the stanzas (RFC 6120 §4.8.2). Headers with another than
    /// [`ns::SERVER`](super::ns::SERVER), or on a component's stream
    /// [`ns::COMPONENT`](super::ns::COMPONENT), are refused before any stanza is read.
    pub(crate) fn content(&self) -> &str {
        self.find(None).unwrap_or_default()
    }

    /// The namespace bound to a prefix; without prefix, the default namespace.
    pub(super) fn find(&self, prefix: Option<&str>) -> Option<&str> {
        self.shared(prefix).map(|namespace| &**namespace)
    }

    /// The same, to be kept.
    pub(super) fn shared(&self, prefix: Option<&str>) -> Option<&Arc<str>> {
        self.bindings
            .iter()
            .find(|(bound, _)| bound.as_deref() == prefix)
            .map(|(_, namespace)| namespace)
    }
}
