//! The line and headers of a request (Apple, "Sending notification requests to APNs").

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, Method};
use messages::DeviceToken;
use uuid::Uuid;

use super::reason::{Reason, Refusal};

/// Most bytes of a collapse id.
const COLLAPSE_ID_BYTES_MAX: usize = 64;

macro_rules! push_types {
    ($($name:ident = $text:literal + $suffix:literal),+ $(,)?) => {
        /// What a notification is for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum PushType {
            $($name),+
        }

        impl PushType {
            fn parse(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// What the topic has after the bundle id.
            pub(super) const fn topic_suffix(self) -> &'static str {
                match self {
                    $(Self::$name => $suffix),+
                }
            }
        }
    };
}

push_types! {
    Alert = "alert" + "",
    Background = "background" + "",
    Location = "location" + ".location-query",
    Voip = "voip" + ".voip",
    Complication = "complication" + ".complication",
    FileProvider = "fileprovider" + ".pushkit.fileprovider",
    Mdm = "mdm" + "",
    LiveActivity = "liveactivity" + ".push-type.liveactivity",
    PushToTalk = "pushtotalk" + ".voip-ptt",
    Widgets = "widgets" + ".push-type.widgets",
    Controls = "controls" + ".push-type.controls",
}

/// The parts of a request that the provider API gives a meaning, unchecked.
pub(super) struct Fields<'a> {
    method: &'a Method,
    path: &'a str,
    query: bool,
    repeated: bool,
    apns_id: Option<&'a str>,
    pub(super) topic: Option<&'a str>,
    pub(super) push_type: Option<&'a str>,
    priority: Option<&'a str>,
    expiration: Option<&'a str>,
    pub(super) collapse_id: Option<&'a str>,
    pub(super) authorization: Option<&'a str>,
}

/// A request whose line and headers are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    pub(super) topic: &'a str,
    pub(super) push_type: PushType,
}

impl<'a> Fields<'a> {
    pub(super) fn of(parts: &'a Parts) -> Self {
        let headers = &parts.headers;
        Self {
            method: &parts.method,
            path: parts.uri.path(),
            query: parts.uri.query().is_some(),
            repeated: has_repeated(headers),
            apns_id: text(headers, "apns-id"),
            topic: text(headers, "apns-topic"),
            push_type: text(headers, "apns-push-type"),
            priority: text(headers, "apns-priority"),
            expiration: text(headers, "apns-expiration"),
            collapse_id: text(headers, "apns-collapse-id"),
            authorization: text(headers, AUTHORIZATION.as_str()),
        }
    }

    /// Checks everything but the provider token and whether the key may use the topic.
    pub(super) fn check(&self) -> Result<Head<'a>, Refusal> {
        if self.method != Method::POST {
            return refuse(Reason::MethodNotAllowed, "the method is not POST");
        }
        self.check_path()?;
        if self.repeated {
            return refuse(Reason::DuplicateHeaders, "a header came twice");
        }
        if self.apns_id.is_some() && self.apns_id().is_none() {
            return refuse(
                Reason::BadMessageId,
                "apns-id is not a uuid in lower case with hyphens",
            );
        }
        let topic = self
            .topic
            .filter(|topic| !topic.is_empty())
            .ok_or(Refusal::new(Reason::MissingTopic, "there is no apns-topic"))?;
        let push_type = self.push_type.ok_or(Refusal::new(
            Reason::InvalidPushType,
            "there is no apns-push-type",
        ))?;
        let push_type = PushType::parse(push_type).ok_or(Refusal::new(
            Reason::InvalidPushType,
            "apns-push-type is not one of Apple's",
        ))?;
        self.check_priority(push_type)?;
        if self.expiration.is_some() && self.expiration().is_none() {
            return refuse(
                Reason::BadExpirationDate,
                "apns-expiration is not a count of seconds since 1970",
            );
        }
        if let Some(collapse_id) = self.collapse_id
            && (collapse_id.is_empty() || collapse_id.len() > COLLAPSE_ID_BYTES_MAX)
        {
            return refuse(
                Reason::BadCollapseId,
                "apns-collapse-id does not have 1 to 64 bytes",
            );
        }
        Ok(Head { topic, push_type })
    }

    fn check_path(&self) -> Result<(), Refusal> {
        let token = match self.path.strip_prefix("/3/device") {
            Some("" | "/") => {
                return refuse(
                    Reason::MissingDeviceToken,
                    "the path ends without a device token",
                );
            }
            Some(rest) => rest.strip_prefix('/'),
            None => None,
        };
        match token {
            Some(token) if !token.contains('/') && !self.query => {
                if self.device_token().is_some() {
                    Ok(())
                } else {
                    refuse(
                        Reason::BadDeviceToken,
                        "the device token is not an even number of 32 to 200 hex digits",
                    )
                }
            }
            _ => refuse(Reason::BadPath, "the path is not /3/device/ and a token"),
        }
    }

    fn check_priority(&self, push_type: PushType) -> Result<(), Refusal> {
        match (self.priority, self.priority()) {
            (Some(_), None) => refuse(Reason::BadPriority, "apns-priority is not 1, 5 or 10"),
            // An absent priority means 10.
            (None, _) | (_, Some(10)) if push_type == PushType::Background => refuse(
                Reason::BadPriority,
                "a background notification has priority 10",
            ),
            _ => Ok(()),
        }
    }

    /// The device token of the path.
    pub(super) fn device_token(&self) -> Option<DeviceToken> {
        let token = self.path.strip_prefix("/3/device/")?;
        let is_hex = token.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| DeviceToken::parse(token).ok()).flatten()
    }

    /// The id that the client chose.
    pub(super) fn apns_id(&self) -> Option<Uuid> {
        let text = self.apns_id?;
        let id = Uuid::try_parse(text).ok()?;
        let mut buffer = Uuid::encode_buffer();
        (*id.hyphenated().encode_lower(&mut buffer) == *text).then_some(id)
    }

    pub(super) fn priority(&self) -> Option<u8> {
        match self.priority? {
            "1" => Some(1),
            "5" => Some(5),
            "10" => Some(10),
            _ => None,
        }
    }

    pub(super) fn expiration(&self) -> Option<u64> {
        let text = self.expiration?;
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().ok()).flatten()
    }
}

const fn refuse<T>(reason: Reason, because: &'static str) -> Result<T, Refusal> {
    Err(Refusal::new(reason, because))
}

/// A header's value; what is not visible ASCII fails every check.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get(name)
        .map(|value| value.to_str().unwrap_or("\u{fffd}"))
}

fn has_repeated(headers: &HeaderMap) -> bool {
    headers.len() != headers.keys_len()
        && headers.keys().any(|name| {
            let is_ours = name == AUTHORIZATION || name.as_str().starts_with("apns-");
            is_ours && headers.get_all(name).iter().nth(1).is_some()
        })
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const GOOD: &[(&str, &str)] = &[
        ("apns-topic", "im.example.app"),
        ("apns-push-type", "alert"),
    ];

    #[track_caller]
    fn check_request(
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        expected: Result<PushType, Reason>,
    ) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let got = Fields::of(&parts).check();
        assert_eq!(
            got.map(|head| head.push_type)
                .map_err(|refusal| refusal.reason),
            expected,
            "{method} {path} {headers:?}"
        );
    }

    #[track_caller]
    fn check_headers(more: &[(&str, &str)], expected: Result<PushType, Reason>) {
        let path = format!("/3/device/{}", "ab".repeat(32));
        let more_names: Vec<&str> = more.iter().map(|(name, _)| *name).collect();
        let mut headers: Vec<(&str, &str)> = GOOD
            .iter()
            .filter(|(name, _)| !more_names.contains(name))
            .copied()
            .collect();
        headers.extend(more.iter().filter(|(_, value)| *value != "(none)"));
        check_request("POST", &path, &headers, expected);
    }

    #[test]
    fn methods_and_paths() {
        let good = format!("/3/device/{}", "ab".repeat(32));
        check_request("POST", &good, GOOD, Ok(PushType::Alert));
        let upper = format!("/3/device/{}", "AB".repeat(100));
        check_request("POST", &upper, GOOD, Ok(PushType::Alert));
        check_request("GET", &good, GOOD, Err(Reason::MethodNotAllowed));
        check_request("POST", "/", GOOD, Err(Reason::BadPath));
        check_request("POST", "/2/device/ab", GOOD, Err(Reason::BadPath));
        check_request("POST", "/3/devices/ab", GOOD, Err(Reason::BadPath));
        let query = format!("{good}?a=b");
        check_request("POST", &query, GOOD, Err(Reason::BadPath));
        let deeper = format!("{good}/a");
        check_request("POST", &deeper, GOOD, Err(Reason::BadPath));
        for path in ["/3/device", "/3/device/"] {
            check_request("POST", path, GOOD, Err(Reason::MissingDeviceToken));
        }
        for token in [
            "abc".to_owned(),
            "ab".repeat(15),
            "ab".repeat(101),
            "a".repeat(65),
            "xy".repeat(32),
            format!("%20{}", "a".repeat(61)),
        ] {
            let path = format!("/3/device/{token}");
            check_request("POST", &path, GOOD, Err(Reason::BadDeviceToken));
        }
    }

    #[test]
    fn headers() {
        use PushType::{Alert, Background, Controls, Widgets};
        let id = "0b3c1c6e-5f0a-4a7e-9a55-0123456789ab";
        check_headers(&[("apns-id", id)], Ok(Alert));
        for wrong in [
            id.to_uppercase(),
            id.replace('-', ""),
            format!("{{{id}}}"),
            format!("urn:uuid:{id}"),
            String::new(),
        ] {
            check_headers(&[("apns-id", &wrong)], Err(Reason::BadMessageId));
        }
        check_headers(
            &[("apns-id", id), ("apns-id", id)],
            Err(Reason::DuplicateHeaders),
        );
        check_headers(
            &[("apns-priority", "5"), ("apns-priority", "5")],
            Err(Reason::DuplicateHeaders),
        );
        check_headers(&[("accept", "a"), ("accept", "b")], Ok(Alert));
        check_headers(&[("apns-topic", "(none)")], Err(Reason::MissingTopic));
        check_headers(&[("apns-topic", "")], Err(Reason::MissingTopic));
        check_headers(
            &[("apns-push-type", "(none)")],
            Err(Reason::InvalidPushType),
        );
        check_headers(&[("apns-push-type", "Alert")], Err(Reason::InvalidPushType));
        check_headers(&[("apns-push-type", "widgets")], Ok(Widgets));
        check_headers(&[("apns-push-type", "controls")], Ok(Controls));
        for good in ["1", "5", "10"] {
            check_headers(&[("apns-priority", good)], Ok(Alert));
        }
        for wrong in ["0", "2", "05", "10.0", "high", "", " 5"] {
            check_headers(&[("apns-priority", wrong)], Err(Reason::BadPriority));
        }
        let background = ("apns-push-type", "background");
        check_headers(&[background, ("apns-priority", "5")], Ok(Background));
        check_headers(
            &[background, ("apns-priority", "10")],
            Err(Reason::BadPriority),
        );
        check_headers(&[background], Err(Reason::BadPriority));
        for good in ["0", "1767830400", "18446744073709551615"] {
            check_headers(&[("apns-expiration", good)], Ok(Alert));
        }
        for wrong in ["-1", "+1", "1.5", "", "soon", "18446744073709551616"] {
            check_headers(
                &[("apns-expiration", wrong)],
                Err(Reason::BadExpirationDate),
            );
        }
        check_headers(&[("apns-collapse-id", &"c".repeat(64))], Ok(Alert));
        for wrong in ["", &"c".repeat(65)] {
            check_headers(&[("apns-collapse-id", wrong)], Err(Reason::BadCollapseId));
        }
    }
}
