//! The namespace declarations of a stream header.

use super::ns;

/// What a stream header declares for everything inside the stream. Stanzas are read as slices without
/// their header, so its declarations have to be handed in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    /// Prefix and namespace name; the empty prefix is the default namespace.
    bindings: Vec<(Box<str>, Box<str>)>,
}

impl Namespaces {
    /// What our own stream headers declare: content `jabber:server`, prefixes `stream` and `db`.
    pub(crate) fn server() -> Self {
        let mut namespaces = Self::default();
        namespaces.bind("", ns::SERVER);
        namespaces.bind("stream", ns::STREAMS);
        namespaces.bind("db", ns::DIALBACK);
        namespaces
    }

    /// Adds a declaration.
    pub(super) fn bind(&mut self, prefix: &str, namespace: &str) {
        self.bindings.push((prefix.into(), namespace.into()));
    }

    /// The namespace bound to a prefix, the empty one being the default namespace.
    pub(crate) fn resolve(&self, prefix: &str) -> Option<&str> {
        self.bindings
            .iter()
            .find(|(bound, _)| **bound == *prefix)
            .map(|(_, namespace)| &**namespace)
    }
}
