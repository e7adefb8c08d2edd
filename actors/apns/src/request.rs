//! One HTTP/2 request per push: prepared but for the path, the id, the expiry and the provider token
//! (Apple, "Sending notification requests to APNs").

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, HeaderName, HeaderValue, InvalidHeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Uri, Version};
use messages::{Bearer, DeviceToken, Disclosure, RegistrationKey, UnixSeconds};
use ring::digest::{SHA256, digest};
use uuid::Uuid;

use crate::class::{Collapse, Style};
use crate::payload::Payload;
use crate::push::Push;
use crate::upstream::Upstream;

const TOPIC: HeaderName = HeaderName::from_static("apns-topic");
const PUSH_TYPE: HeaderName = HeaderName::from_static("apns-push-type");
const PRIORITY: HeaderName = HeaderName::from_static("apns-priority");
const EXPIRATION: HeaderName = HeaderName::from_static("apns-expiration");
const ID: HeaderName = HeaderName::from_static("apns-id");
const COLLAPSE_ID: HeaderName = HeaderName::from_static("apns-collapse-id");

/// All that the pushes of one app and one class have in common.
pub(crate) struct Template {
    headers: HeaderMap,
    payload: Payload,
    expiration_seconds: u64,
    collapse: Collapse,
}

impl Template {
    /// Prepares one class of push.
    ///
    /// # Errors
    /// The topic is no header value.
    pub(crate) fn new(
        topic: &str,
        style: &Style,
        disclosure: Disclosure,
    ) -> Result<Self, InvalidHeaderValue> {
        let mut headers = HeaderMap::with_capacity(8);
        // Places of what each push fills in: a copy that must grow allocates again.
        headers.insert(AUTHORIZATION, HeaderValue::from_static(""));
        headers.insert(ID, HeaderValue::from_static(""));
        headers.insert(EXPIRATION, HeaderValue::from_static("0"));
        if style.collapse == Collapse::Registration {
            headers.insert(COLLAPSE_ID, HeaderValue::from_static(""));
        }
        let topic = format!("{topic}{}", style.topic_suffix);
        headers.insert(TOPIC, HeaderValue::from_str(&topic)?);
        headers.insert(
            PUSH_TYPE,
            HeaderValue::from_static(style.push_type.as_str()),
        );
        headers.insert(PRIORITY, HeaderValue::from(u16::from(style.priority)));
        Ok(Self {
            headers,
            payload: Payload::new(style, disclosure),
            expiration_seconds: style.expiration_seconds,
            collapse: style.collapse,
        })
    }

    /// The body of the requests.
    pub(crate) const fn payload(&self) -> &Payload {
        &self.payload
    }

    /// The head of the request for a push, written on `paper`.
    ///
    /// # Errors
    /// Never for hex tokens; stays an error because a push must not end in a panic.
    pub(crate) fn head(
        &self,
        paper: &mut Paper,
        upstream: &Upstream,
        authorization: Option<&HeaderValue>,
        push: &Push,
        now: UnixSeconds,
    ) -> Result<Request<()>, http::Error> {
        let registration = push.registration;
        self.request(
            paper,
            &upstream.authority,
            authorization,
            &push.device_token,
            registration,
            push.id,
            now,
        )
    }

    #[expect(clippy::too_many_arguments, reason = "all that a request is made of")]
    pub(crate) fn request(
        &self,
        paper: &mut Paper,
        authority: &Authority,
        authorization: Option<&HeaderValue>,
        device_token: &DeviceToken,
        registration: RegistrationKey,
        id: Uuid,
        now: UnixSeconds,
    ) -> Result<Request<()>, http::Error> {
        let path = paper.write(&["/3/device/", device_token.as_str()]);
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTPS);
        uri.authority = Some(authority.clone());
        uri.path_and_query = Some(PathAndQuery::from_maybe_shared(path)?);

        let mut headers = self.headers.clone();
        match authorization {
            Some(authorization) => headers.insert(AUTHORIZATION, authorization.clone()),
            None => headers.remove(AUTHORIZATION),
        };
        let mut text = Uuid::encode_buffer();
        headers.insert(ID, paper.once(id.hyphenated().encode_lower(&mut text))?);
        // An instant, not a duration; 0 means: deliver now or never.
        if self.expiration_seconds > 0 {
            let expiration = now.0.saturating_add(self.expiration_seconds);
            headers.insert(EXPIRATION, paper.number(expiration));
        }
        if self.collapse == Collapse::Registration {
            let half = collapse_id(registration);
            let id = half.simple().encode_lower(&mut text);
            headers.insert(COLLAPSE_ID, paper.once(id)?);
        }

        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_parts(uri)?;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// 32 of the 64 bytes that are allowed: the same for all pushes of a registration, and from a hash, so
/// that it tells nothing of user, server or node.
fn collapse_id(registration: RegistrationKey) -> Uuid {
    let hash = digest(&SHA256, &registration.0);
    let (half, _) = hash.as_ref().split_at(16);
    Uuid::from_bytes(<[u8; 16]>::try_from(half).unwrap_or_default())
}

/// What the texts of many requests are written on: one allocation for all that a sheet holds.
pub(crate) struct Paper {
    sheet: BytesMut,
    /// The last number, which most requests of a second have in common.
    number: (u64, HeaderValue),
}

impl Paper {
    /// Bytes of a sheet: some thirty requests. It lives as long as one of them.
    const SHEET: usize = 4096;

    pub(crate) fn new() -> Self {
        Self {
            sheet: BytesMut::with_capacity(Self::SHEET),
            number: (0, HeaderValue::from_static("0")),
        }
    }

    /// Writes the pieces one behind the other.
    fn write(&mut self, pieces: &[&str]) -> Bytes {
        for piece in pieces {
            self.sheet.extend_from_slice(piece.as_bytes());
        }
        self.sheet.split().freeze()
    }

    fn number(&mut self, number: u64) -> HeaderValue {
        if self.number.0 != number {
            self.number = (number, HeaderValue::from(number));
        }
        self.number.1.clone()
    }

    /// A header value that no other request has. It stays out of the compression table (RFC 7541 §7.1.3), in which
    /// the values of a name are searched one by one, and which has room for those only that come again.
    fn once(&mut self, text: &str) -> Result<HeaderValue, InvalidHeaderValue> {
        let mut value = HeaderValue::from_maybe_shared(self.write(&[text]))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// The `authorization` header: marked sensitive, so that no proxy keeps it in a compression table.
///
/// # Errors
/// Never for a JWT; stays an error because a push must not end in a panic.
pub(crate) fn authorization(bearer: &Bearer) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(bearer.as_str())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::{Class, ClassConfig};

    #[track_caller]
    fn check(class: Class, config: &ClassConfig, authorized: bool, expected: &[(&str, &str)]) {
        let style = Style::new(class, config).unwrap_or_else(|problems| panic!("{problems:?}"));
        let template = Template::new("com.example.app", &style, Disclosure::Nothing).unwrap();
        let authorization = authorization(&Bearer::new("bearer a.b.c")).unwrap();
        let request = template
            .request(
                &mut Paper::new(),
                &Authority::from_static("api.push.apple.com"),
                authorized.then_some(&authorization),
                &DeviceToken::parse(&"AB".repeat(32)).unwrap(),
                RegistrationKey([7; 16]),
                Uuid::from_u128(0x0b3c_1c6e_0000_4000_8000_0000_0000_00ff),
                UnixSeconds(1_767_830_400),
            )
            .unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(
            request.uri().to_string(),
            format!("https://api.push.apple.com/3/device/{}", "ab".repeat(32))
        );
        let sensitive = request.headers().get(AUTHORIZATION);
        assert!(sensitive.is_none_or(HeaderValue::is_sensitive));
        let mut headers: Vec<(&str, &str)> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        headers.sort_unstable();
        assert_eq!(headers, expected);
    }

    #[test]
    fn many_requests_on_one_paper_stay_apart() {
        let config = ClassConfig {
            collapse: Collapse::Registration,
            expiration_seconds: Some(60),
            ..ClassConfig::default()
        };
        let style = Style::new(Class::Important, &config).unwrap();
        let template = Template::new("com.example.app", &style, Disclosure::Nothing).unwrap();
        let mut paper = Paper::new();
        let requests: Vec<_> = (0..100u64)
            .map(|n| {
                let token = DeviceToken::parse(&format!("{n:08x}").repeat(8)).unwrap();
                let registration = RegistrationKey([u8::try_from(n).unwrap(); 16]);
                let authority = Authority::from_static("api.push.apple.com");
                let (id, now) = (Uuid::from_u128(n.into()), UnixSeconds(1_000 + n / 40));
                let request =
                    template.request(&mut paper, &authority, None, &token, registration, id, now);
                (request.unwrap(), registration)
            })
            .collect();
        for (n, (request, registration)) in (0u64..).zip(&requests) {
            let path = format!("/3/device/{}", format!("{n:08x}").repeat(8));
            assert_eq!(request.uri().path(), path);
            let header = |name: HeaderName| request.headers().get(name).unwrap();
            assert_eq!(header(ID), &Uuid::from_u128(n.into()).to_string());
            assert_eq!(header(EXPIRATION), &(1_060 + n / 40).to_string());
            let collapse = collapse_id(*registration).simple().to_string();
            assert_eq!(header(COLLAPSE_ID), &collapse);
            assert!(header(ID).is_sensitive() && header(COLLAPSE_ID).is_sensitive());
            assert!(!header(TOPIC).is_sensitive() && !header(EXPIRATION).is_sensitive());
        }
    }

    #[test]
    fn requests() {
        check(
            Class::Important,
            &ClassConfig {
                expiration_seconds: Some(60),
                collapse: Collapse::Registration,
                ..ClassConfig::default()
            },
            true,
            &[
                ("apns-collapse-id", "d761d406af2a4a5a15f67c924378ed88"),
                ("apns-expiration", "1767830460"),
                ("apns-id", "0b3c1c6e-0000-4000-8000-0000000000ff"),
                ("apns-priority", "10"),
                ("apns-push-type", "alert"),
                ("apns-topic", "com.example.app"),
                ("authorization", "bearer a.b.c"),
            ],
        );
        check(
            Class::Unimportant,
            &ClassConfig::default(),
            true,
            &[
                ("apns-expiration", "0"),
                ("apns-id", "0b3c1c6e-0000-4000-8000-0000000000ff"),
                ("apns-priority", "5"),
                ("apns-push-type", "background"),
                ("apns-topic", "com.example.app"),
                ("authorization", "bearer a.b.c"),
            ],
        );
        // By certificate there is no authorization.
        check(
            Class::Voip,
            &ClassConfig::default(),
            false,
            &[
                ("apns-expiration", "0"),
                ("apns-id", "0b3c1c6e-0000-4000-8000-0000000000ff"),
                ("apns-priority", "10"),
                ("apns-push-type", "voip"),
                ("apns-topic", "com.example.app.voip"),
            ],
        );
    }
}
