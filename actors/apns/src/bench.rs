//! The making of requests by itself, for `benches/stages.rs`. Only with the feature `bench`; nothing here is in
//! a normal build.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a stage that fails has to stop the bench"
)]

use bytes::Bytes;
use http::Request;
use http::header::HeaderValue;
use http::uri::Authority;
use messages::{Bearer, DeviceToken, Disclosure, RegistrationKey, UnixSeconds};

use crate::ClassConfig;
use crate::class::{Class, Style};
use crate::push;
use crate::request::{Paper, Template, authorization};

/// What the requests of one app have in common.
#[expect(missing_debug_implementations, reason = "it holds a provider token")]
pub struct Requests {
    template: Template,
    paper: Paper,
    authority: Authority,
    authorization: HeaderValue,
}

impl Requests {
    /// Prepares alerts with a provider token.
    #[must_use]
    pub fn new(topic: &str, bearer: &Bearer) -> Self {
        let style = Style::new(Class::Important, &ClassConfig::default());
        let style = style.unwrap_or_else(|_| unreachable!("the default is in order"));
        Self {
            template: Template::new(topic, &style, Disclosure::Nothing).expect("a topic"),
            paper: Paper::new(),
            authority: Authority::from_static("api.push.apple.com"),
            authorization: authorization(bearer).expect("a token is a header value"),
        }
    }

    /// The head of one request, with a new id, and its body.
    #[must_use]
    pub fn make(
        &mut self,
        device_token: &DeviceToken,
        registration: RegistrationKey,
        now: UnixSeconds,
    ) -> (Request<()>, Bytes) {
        let head = self.template.request(
            &mut self.paper,
            &self.authority,
            Some(&self.authorization),
            device_token,
            registration,
            push::new_id(),
            now,
        );
        let body = self.template.payload().text(None, None);
        (head.expect("hex makes a path"), body)
    }
}
