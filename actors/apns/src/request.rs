//! One HTTP/2 request per push: prepared but for the path, the id, the expiry and the provider token
//! (Apple, "Sending notification requests to APNs").

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue, InvalidHeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Uri, Version};
use messages::{Bearer, DeviceToken, UnixSeconds};
use uuid::Uuid;

use crate::AppConfig;
use crate::payload::Kind;

const TOPIC: HeaderName = HeaderName::from_static("apns-topic");
const PUSH_TYPE: HeaderName = HeaderName::from_static("apns-push-type");
const PRIORITY: HeaderName = HeaderName::from_static("apns-priority");
const EXPIRATION: HeaderName = HeaderName::from_static("apns-expiration");
const ID: HeaderName = HeaderName::from_static("apns-id");

/// All that the pushes of one app and one kind have in common.
pub(crate) struct Template {
    headers: HeaderMap,
    payload: Bytes,
    expiration_seconds: u64,
}

impl Template {
    /// Prepares one kind of push.
    ///
    /// # Errors
    /// The topic is no header value.
    pub(crate) fn new(kind: Kind, app: &AppConfig) -> Result<Self, InvalidHeaderValue> {
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(TOPIC, HeaderValue::from_str(&app.topic)?);
        headers.insert(PUSH_TYPE, HeaderValue::from_static(kind.push_type()));
        headers.insert(PRIORITY, HeaderValue::from_static(kind.priority()));
        Ok(Self {
            headers,
            payload: kind.payload(app),
            expiration_seconds: match kind {
                Kind::Alert => app.alert_expiration_seconds,
                Kind::Background => app.background_expiration_seconds,
            },
        })
    }

    /// The body of the request, shared by all pushes.
    pub(crate) const fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The head of the request.
    ///
    /// # Errors
    /// Never for hex tokens; stays an error because a push must not end in a panic.
    pub(crate) fn request(
        &self,
        authority: &Authority,
        authorization: &HeaderValue,
        device_token: &DeviceToken,
        id: Uuid,
        now: UnixSeconds,
    ) -> Result<Request<()>, http::Error> {
        const PREFIX: &str = "/3/device/";
        let token = device_token.as_str();
        let mut path = String::with_capacity(PREFIX.len() + token.len());
        path.push_str(PREFIX);
        path.push_str(token);
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTPS);
        uri.authority = Some(authority.clone());
        uri.path_and_query = Some(PathAndQuery::from_maybe_shared(Bytes::from(path))?);

        let mut headers = self.headers.clone();
        headers.insert(AUTHORIZATION, authorization.clone());
        let mut id_text = Uuid::encode_buffer();
        let id_text: &str = id.hyphenated().encode_lower(&mut id_text);
        headers.insert(ID, HeaderValue::from_str(id_text)?);
        // An instant, not a duration; 0 means: deliver now or never.
        let expiration = match self.expiration_seconds {
            0 => 0,
            seconds => now.0.saturating_add(seconds),
        };
        headers.insert(EXPIRATION, HeaderValue::from(expiration));

        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_parts(uri)?;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers;
        Ok(request)
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

    #[track_caller]
    fn check(kind: Kind, expected: &[(&str, &str)]) {
        let app = AppConfig {
            topic: "com.example.app".to_owned(),
            alert_expiration_seconds: 60,
            ..AppConfig::default()
        };
        let template = Template::new(kind, &app).unwrap();
        let request = template
            .request(
                &Authority::from_static("api.push.apple.com"),
                &authorization(&Bearer::new("bearer a.b.c")).unwrap(),
                &DeviceToken::parse(&"AB".repeat(32)).unwrap(),
                Uuid::from_u128(0x0b3c_1c6e_0000_4000_8000_0000_0000_00ff),
                UnixSeconds(1_767_830_400),
            )
            .unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(
            request.uri().to_string(),
            format!("https://api.push.apple.com/3/device/{}", "ab".repeat(32))
        );
        assert!(request.headers()[AUTHORIZATION].is_sensitive());
        let mut headers: Vec<(&str, &str)> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        headers.sort_unstable();
        assert_eq!(headers, expected);
    }

    #[test]
    fn requests() {
        check(
            Kind::Alert,
            &[
                ("apns-expiration", "1767830460"),
                ("apns-id", "0b3c1c6e-0000-4000-8000-0000000000ff"),
                ("apns-priority", "10"),
                ("apns-push-type", "alert"),
                ("apns-topic", "com.example.app"),
                ("authorization", "bearer a.b.c"),
            ],
        );
        check(
            Kind::Background,
            &[
                ("apns-expiration", "0"),
                ("apns-id", "0b3c1c6e-0000-4000-8000-0000000000ff"),
                ("apns-priority", "5"),
                ("apns-push-type", "background"),
                ("apns-topic", "com.example.app"),
                ("authorization", "bearer a.b.c"),
            ],
        );
    }
}
