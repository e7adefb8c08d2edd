//! Bytes to stanzas and back, without any I/O.
//!
//! A receive buffer goes through [`splitter`], which finds whole units under hard limits; a unit goes
//! through [`header`], [`publish`] or [`element`]. All three read it through [`events`], which takes names,
//! attributes and text with [`scanner`]. Both look for what ends something in each [`word`] of eight bytes.

pub(crate) mod element;
mod error;
pub(crate) mod events;
pub(crate) mod header;
mod namespaces;
pub(crate) mod publish;
mod scanner;
pub(crate) mod skipper;
pub(crate) mod splitter;
pub(crate) mod stanza;
pub(crate) mod stream_error;
mod word;
pub(crate) mod write;

#[cfg(test)]
mod tests;

pub(crate) use element::Element;
pub(crate) use error::XmlError;
pub(crate) use namespaces::Namespaces;

/// Namespace names (RFC 6120, and the XEP beside each).
pub(crate) mod ns {
    pub(crate) const XML: &str = "http://www.w3.org/XML/1998/namespace";
    pub(crate) const XMLNS: &str = "http://www.w3.org/2000/xmlns/";
    pub(crate) const STREAMS: &str = "http://etherx.jabber.org/streams";
    pub(crate) const SERVER: &str = "jabber:server";
    /// XEP-0114.
    pub(crate) const COMPONENT: &str = "jabber:component:accept";
    pub(crate) const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
    pub(crate) const STANZA_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
    /// XEP-0220.
    pub(crate) const DIALBACK: &str = "jabber:server:dialback";
    /// Application conditions of Prosody and ejabberd.
    pub(crate) const ERRORS: &str = "urn:xmpp:errors";
    /// XEP-0060.
    pub(crate) const PUBSUB: &str = "http://jabber.org/protocol/pubsub";
    /// XEP-0060 §8.
    pub(crate) const PUBSUB_OWNER: &str = "http://jabber.org/protocol/pubsub#owner";
    /// XEP-0357.
    pub(crate) const PUSH: &str = "urn:xmpp:push:0";
    /// XEP-0004.
    pub(crate) const FORMS: &str = "jabber:x:data";
    /// XEP-0030.
    pub(crate) const DISCO_INFO: &str = "http://jabber.org/protocol/disco#info";
    /// XEP-0030.
    pub(crate) const DISCO_ITEMS: &str = "http://jabber.org/protocol/disco#items";
    /// XEP-0050.
    pub(crate) const COMMANDS: &str = "http://jabber.org/protocol/commands";
    /// XEP-0199.
    pub(crate) const PING: &str = "urn:xmpp:ping";
    /// XEP-0092.
    pub(crate) const VERSION: &str = "jabber:iq:version";
}

/// Takes a whole unit as text.
///
/// # Errors
/// [`XmlError::NotUtf8`] (RFC 6120 §11.6).
pub(crate) fn utf8(unit: &[u8]) -> Result<&str, XmlError> {
    std::str::from_utf8(unit).map_err(|_| XmlError::NotUtf8)
}
