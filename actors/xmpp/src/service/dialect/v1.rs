//! The dialect of Monal up to 5.1 and yaxim: `v1-register-push` and `v1-unregister-push`, as the
//! original `mod_push_appserver` of Prosody had them.
//!
//! The node is a device UUID that the client chose; the registry keeps one registration per account and
//! node, so knowing somebody's UUID is worth nothing. Clients wait for the status `complete`, which is
//! not XEP-0050's `completed`.

use messages::{
    DeviceToken, Dialect, NodeId, Register, Registered, RegistryError, Removed, Unregister,
};

use super::super::form::{self, Form};
use super::super::{Answer, ITEM_NOT_FOUND, Service, commands, refuse, rendered};
use crate::jid::Jid;
use crate::xml::Element;
use crate::xml::stanza::{self, Condition, ErrorType, IqHead, StanzaError};

/// The command that registers a device.
pub(in crate::service) const REGISTER: &str = "v1-register-push";
/// The command that ends a registration.
pub(in crate::service) const UNREGISTER: &str = "v1-unregister-push";

const FORM_TYPE: &str = "https://github.com/tmolitor-stud-tu/mod_push_appserver/#";

/// A command that waits for the registry.
pub(crate) struct PendingCommand {
    head: IqHead<'static>,
    /// The node asked for.
    node: NodeId,
}

impl PendingCommand {
    /// The answer to a registration.
    pub(crate) fn registered(self, outcome: Result<Registered, RegistryError>) -> Vec<u8> {
        match outcome {
            Ok(registered) => self.complete(REGISTER, |out, head| {
                form::write_field(out, "jid", Some("jid-single"), [&*head.to]);
                form::write_field(out, "node", None, [registered.node.as_str()]);
                form::write_field(out, "secret", None, [registered.secret.as_str()]);
            }),
            Err(error) => self.refused(registry_error(error)),
        }
    }

    /// The answer to the end of a registration. That the account has no such registration is told
    /// alike, whoever else has one.
    pub(crate) fn unregistered(self, outcome: Result<Removed, RegistryError>) -> Vec<u8> {
        match outcome {
            Ok(Removed { count: 0 }) => self.refused(ITEM_NOT_FOUND.text("node not registered")),
            Ok(Removed { .. }) => self.complete(UNREGISTER, |out, head| {
                form::write_field(out, "jid", Some("jid-single"), [&*head.to]);
                form::write_field(out, "node", None, [self.node.as_str()]);
            }),
            Err(error) => self.refused(registry_error(error)),
        }
    }

    fn complete(
        &self,
        command: &str,
        fields: impl FnOnce(&mut Vec<u8>, &IqHead<'static>),
    ) -> Vec<u8> {
        let head = &self.head;
        // There is only one stage, so the id of the request is all that a session needs.
        let session = head.id.as_deref().unwrap_or_default();
        rendered(|out| {
            stanza::result(out, head, |out| {
                commands::write_command(out, command, session, "complete", |out| {
                    form::write_form(out, "form", |out| {
                        form::write_form_type(out, &[FORM_TYPE, command].concat());
                        fields(out, head);
                    });
                });
            });
        })
    }

    fn refused(&self, error: StanzaError<'_>) -> Vec<u8> {
        rendered(|out| stanza::error(out, &self.head, error))
    }
}

/// Runs [`REGISTER`].
pub(in crate::service) fn register(
    request: &Element,
    head: &IqHead<'_>,
    service: &Service,
) -> Answer {
    let Some(app) = service.apps.first() else {
        return refuse(head, ITEM_NOT_FOUND);
    };
    let account = match account(head) {
        Ok(account) => account,
        Err(error) => return refuse(head, error),
    };
    let fields = read_form(request, REGISTER).and_then(|(form, node)| {
        let token = form.value("token").ok_or("the field token is missing")?;
        let token =
            DeviceToken::parse(&token).map_err(|_| "token is no APNs device token in hex")?;
        Ok((node, token))
    });
    let (node, device_token) = match fields {
        Ok(fields) => fields,
        Err(text) => return refuse(head, NOT_ACCEPTABLE.text(text)),
    };
    let pending = PendingCommand {
        head: head.clone().into_owned(),
        node: node.clone(),
    };
    let register = Register {
        account,
        service: service.domain.clone(),
        app: app.clone(),
        node,
        device_token,
        dialect: Dialect::V1,
    };
    Answer::Register(register, pending)
}

/// Runs [`UNREGISTER`]. The token that old servers wanted is not looked at.
pub(in crate::service) fn unregister(
    request: &Element,
    head: &IqHead<'_>,
    service: &Service,
) -> Answer {
    let account = match account(head) {
        Ok(account) => account,
        Err(error) => return refuse(head, error),
    };
    let node = match read_form(request, UNREGISTER) {
        Ok((_, node)) => node,
        Err(text) => return refuse(head, NOT_ACCEPTABLE.text(text)),
    };
    let pending = PendingCommand {
        head: head.clone().into_owned(),
        node: node.clone(),
    };
    let unregister = Unregister {
        account,
        service: service.domain.clone(),
        node,
    };
    Answer::Unregister(unregister, pending)
}

/// Whose registration it is: a server itself can have none.
pub(in crate::service) fn account(
    head: &IqHead<'_>,
) -> Result<messages::BareJid, StanzaError<'static>> {
    let from = Jid::parse(&head.from)
        .map_err(|_| StanzaError::new(ErrorType::Modify, Condition::JidMalformed))?;
    from.account()
        .ok_or(NOT_ALLOWED.text("only accounts may register devices"))
}

/// Reads what both commands have in common. FORM_TYPE may be left out, as XEP-0068 allows.
fn read_form<'a>(request: &'a Element, command: &str) -> Result<(Form<'a>, NodeId), &'static str> {
    let form = Form::of(request).ok_or("the form is missing")?;
    if let Some(form_type) = form.value("FORM_TYPE")
        && form_type.strip_prefix(FORM_TYPE) != Some(command)
    {
        return Err("FORM_TYPE is unknown");
    }
    match form.value("type").as_deref() {
        Some("apns") => {}
        Some("fcm") => return Err("type fcm is not served here, only apns"),
        Some(_) => return Err("type is unknown: only apns is served here"),
        None => return Err("the field type is missing"),
    }
    let node = form.value("node").ok_or("the field node is missing")?;
    let node = NodeId::new(&node).map_err(|_| "node is empty or longer than 1024 bytes")?;
    Ok((form, node))
}

const NOT_ACCEPTABLE: StanzaError<'_> =
    StanzaError::new(ErrorType::Modify, Condition::NotAcceptable);
const NOT_ALLOWED: StanzaError<'_> = StanzaError::new(ErrorType::Cancel, Condition::NotAllowed);

/// These answers go to people's clients, which forget nothing because of them.
const fn registry_error(error: RegistryError) -> StanzaError<'static> {
    match error {
        RegistryError::Busy | RegistryError::Stopping => {
            StanzaError::new(ErrorType::Wait, Condition::ResourceConstraint)
                .text("busy, try again later")
        }
        RegistryError::Crowded => StanzaError::new(ErrorType::Wait, Condition::ResourceConstraint)
            .text("too many devices of this server are registered, try again later"),
        RegistryError::Store => StanzaError::new(ErrorType::Wait, Condition::InternalServerError),
        // Waiting would not help.
        RegistryError::TooMany => {
            NOT_ALLOWED.text("this account has too many registered devices: unregister one first")
        }
    }
}
