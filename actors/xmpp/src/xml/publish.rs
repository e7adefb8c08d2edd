//! Reads a XEP-0357 publish in one pass and without a tree: the hot path of the stream.

use std::borrow::Cow;

use messages::{NodeId, NotificationHint, Secret};

use super::events::Events;
use super::stanza::IqHead;
use super::{Namespaces, XmlError, ns};

const SUMMARY: &str = "urn:xmpp:push:summary";

/// What a stanza turned out to be.
pub(crate) enum Read<'a> {
    /// A push to forward.
    Publish(PublishIq<'a>),
    /// A publish that no push can be made of. Answer it with
    /// [`Rejection::Malformed`](messages::Rejection::Malformed), which costs no registration.
    Malformed(IqHead<'a>),
    /// Something else, or a stanza without `from` or `to`. Its rest has not been looked at: read it as
    /// an [`Element`](super::Element).
    Other,
}

/// A publish, reduced to what the pipeline needs. Its body and sender are never copied.
pub(crate) struct PublishIq<'a> {
    /// Whom to answer.
    pub(crate) head: IqHead<'a>,
    /// The node published to.
    pub(crate) node: NodeId,
    /// The field `secret` of the publish options, unless it is empty or too long to be one.
    pub(crate) secret: Option<Secret>,
    /// What the summary tells.
    pub(crate) hint: NotificationHint,
}

/// Reads a whole stanza.
///
/// Of several publishes, items, notifications, forms or fields of one name the first counts; unknown
/// elements and fields are passed over. A form may have any type. A summary form whose FORM_TYPE is
/// another one is no summary; publish options are what a client once wrote, so theirs is not looked at.
///
/// # Errors
/// [`XmlError::NotWellFormed`], [`XmlError::RestrictedXml`] or [`XmlError::TooManyNamespaces`].
pub(crate) fn read<'a>(stanza: &'a str, namespaces: &Namespaces) -> Result<Read<'a>, XmlError> {
    let mut events = Events::new(stanza, namespaces)?;
    events.root()?;
    if !events.is("iq", ns::SERVER) || events.attribute("type") != Some("set") {
        return Ok(Read::Other);
    }
    let id = events.take_attribute("id");
    let (Some(from), Some(to)) = (events.take_attribute("from"), events.take_attribute("to"))
    else {
        return Ok(Read::Other);
    };
    if !(events.child()? && events.is("pubsub", ns::PUBSUB)) {
        return Ok(Read::Other);
    }
    let mut publish = None;
    let mut options = None;
    while events.child()? {
        if publish.is_none() && events.is("publish", ns::PUBSUB) {
            publish = Some(read_publish(&mut events)?);
        } else if options.is_none() && events.is("publish-options", ns::PUBSUB) {
            options = Some(read_options(&mut events)?);
        } else {
            events.skip()?;
        }
    }
    let Some(publish) = publish else {
        return Ok(Read::Other);
    };
    let alone = !events.child()?;
    events.drain()?;
    let answerable = id.is_some();
    let head = IqHead { id, from, to };
    Ok(match publish {
        Some((node, hint)) if alone && answerable => Read::Publish(PublishIq {
            head,
            node,
            secret: options.flatten(),
            hint,
        }),
        _ => Read::Malformed(head),
    })
}

/// Reads `publish`; `None` when node, item or notification is missing.
fn read_publish(
    events: &mut Events<'_, '_>,
) -> Result<Option<(NodeId, NotificationHint)>, XmlError> {
    let node = events.attribute("node").map(NodeId::new);
    let hint = first_child(events, "item", ns::PUBSUB, |events| {
        first_child(events, "notification", ns::PUSH, read_notification)
    })?;
    Ok(match (node, hint.flatten()) {
        (Some(Ok(node)), Some(hint)) => Some((node, hint)),
        _ => None,
    })
}

fn read_notification(events: &mut Events<'_, '_>) -> Result<NotificationHint, XmlError> {
    let mut summary = None;
    while events.child()? {
        if summary.is_none() && events.is("x", ns::FORMS) {
            summary = read_summary(events)?;
        } else {
            events.skip()?;
        }
    }
    Ok(summary.unwrap_or_default())
}

/// Reads a form in a notification; `None` when it says that it is another one.
fn read_summary(events: &mut Events<'_, '_>) -> Result<Option<NotificationHint>, XmlError> {
    let mut form_type = None;
    let mut count = None;
    let mut body = None;
    while events.child()? {
        if !events.is("field", ns::FORMS) {
            events.skip()?;
            continue;
        }
        match events.attribute("var") {
            Some("FORM_TYPE") if form_type.is_none() => form_type = Some(read_value(events)?),
            Some("message-count") if count.is_none() => count = Some(read_value(events)?),
            Some("last-message-body") if body.is_none() => body = Some(has_value(events)?),
            _ => events.skip()?,
        }
    }
    let foreign = form_type.is_some_and(|form_type| form_type != SUMMARY);
    Ok((!foreign).then(|| NotificationHint {
        message_count: count.and_then(|count| count.trim().parse().ok()),
        has_body: body.unwrap_or_default(),
    }))
}

/// Reads `publish-options`.
fn read_options(events: &mut Events<'_, '_>) -> Result<Option<Secret>, XmlError> {
    let secret = first_child(events, "x", ns::FORMS, |events| {
        let mut secret = None;
        while events.child()? {
            let wanted = events.is("field", ns::FORMS) && events.attribute("var") == Some("secret");
            if wanted && secret.is_none() {
                secret = Some(read_value(events)?);
            } else {
                events.skip()?;
            }
        }
        Ok(secret)
    })?;
    Ok(secret
        .flatten()
        .and_then(|secret| Secret::new(&secret).ok()))
}

/// The first value of a field, empty without one.
fn read_value<'a>(events: &mut Events<'a, '_>) -> Result<Cow<'a, str>, XmlError> {
    Ok(first_child(events, "value", ns::FORMS, Events::text)?.unwrap_or_default())
}

/// Whether the first value of a field has more than white space, without copying it.
fn has_value(events: &mut Events<'_, '_>) -> Result<bool, XmlError> {
    let visible = first_child(events, "value", ns::FORMS, |events| {
        let mut visible = false;
        events.finish(|piece| visible |= !piece.trim().is_empty())?;
        Ok(visible)
    })?;
    Ok(visible.unwrap_or_default())
}

/// Reads the first child of that name with `read`, which has to read it to its end, and passes over all
/// others.
fn first_child<'a, 'n, T>(
    events: &mut Events<'a, 'n>,
    name: &str,
    namespace: &str,
    read: impl FnOnce(&mut Events<'a, 'n>) -> Result<T, XmlError>,
) -> Result<Option<T>, XmlError> {
    let mut read = Some(read);
    let mut found = None;
    while events.child()? {
        match read.take_if(|_| events.is(name, namespace)) {
            Some(read) => found = Some(read(events)?),
            None => events.skip()?,
        }
    }
    Ok(found)
}
