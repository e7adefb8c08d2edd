//! An answer of APNs as read from a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream};
use http::header::{DATE, HeaderName, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use messages::{UnixMillis, UnixSeconds};
use serde::Deserialize;

/// Most bytes of an error body that are read: Apple's have about a hundred.
const BODY_BYTES_MAX: usize = 4096;

/// Longest pause that `retry-after` may ask for: far beyond what a push stays fresh.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);

/// Status, and what the body of an error says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// The HTTP status.
    pub(crate) status: u16,
    /// What came with any status but 200.
    pub(crate) error: Option<Box<Details>>,
}

/// What an error answer says beyond its status. All of it may be missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Details {
    /// Apple's word for what is wrong.
    pub(crate) reason: Option<String>,
    /// Since when the device token is dead (410).
    pub(crate) timestamp: Option<UnixMillis>,
    /// When to come back, from `retry-after`.
    pub(crate) retry_after: Option<Duration>,
    /// The time at the peer, from `date`.
    pub(crate) date: Option<UnixSeconds>,
}

#[derive(Deserialize)]
struct Body {
    reason: Option<String>,
    timestamp: Option<u64>,
}

impl Reply {
    /// Whether APNs took the provider token, whatever it thought of the push. An end of the connection in the
    /// form of an answer says nothing of it.
    pub(crate) fn proves_token(&self) -> bool {
        let reason = self
            .error
            .as_ref()
            .and_then(|error| error.reason.as_deref());
        matches!(self.status, 200 | 400 | 404 | 405 | 410 | 413) && reason != Some("IdleTimeout")
    }
}

/// A request on its way: resolves to the place it was given and its answer.
pub(crate) struct Exchange {
    place: usize,
    stage: Stage,
}

enum Stage {
    Head(ResponseFuture),
    Body {
        head: Box<http::response::Parts>,
        stream: RecvStream,
        body: Bytes,
    },
}

impl Exchange {
    /// Waits for a response.
    pub(crate) const fn new(place: usize, response: ResponseFuture) -> Self {
        Self {
            place,
            stage: Stage::Head(response),
        }
    }

    /// Reads all of an answer. A body that is too long or no JSON is as good as none.
    fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reply, h2::Error>> {
        loop {
            match &mut self.stage {
                Stage::Head(response) => {
                    let (head, stream) = ready!(Pin::new(response).poll(cx))?.into_parts();
                    if head.status == StatusCode::OK {
                        return Poll::Ready(Ok(Reply {
                            status: 200,
                            error: None,
                        }));
                    }
                    self.stage = Stage::Body {
                        head: Box::new(head),
                        stream,
                        body: Bytes::new(),
                    };
                }
                Stage::Body { head, stream, body } => {
                    if let Some(part) = ready!(stream.poll_data(cx)).transpose()? {
                        stream.flow_control().release_capacity(part.len())?;
                        if body.len() + part.len() <= BODY_BYTES_MAX {
                            join(body, part);
                            continue;
                        }
                        body.clear();
                    }
                    return Poll::Ready(Ok(Reply {
                        status: head.status.as_u16(),
                        error: Some(Box::new(Details::new(&head.headers, body))),
                    }));
                }
            }
        }
    }
}

impl Future for Exchange {
    type Output = (usize, Result<Reply, (Loss, h2::Error)>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let reply = ready!(self.poll_reply(cx)).map_err(|error| {
            let loss = match self.stage {
                Stage::Head(_) => Loss::from(&error),
                // Who has begun to answer has read the request, whatever is said of it afterwards.
                Stage::Body { .. } => Loss::Broken,
            };
            (loss, error)
        });
        Poll::Ready((self.place, reply))
    }
}

fn join(body: &mut Bytes, part: Bytes) {
    *body = if body.is_empty() {
        part
    } else {
        let mut joined = BytesMut::from(std::mem::take(body));
        joined.extend_from_slice(&part);
        joined.freeze()
    };
}

impl Details {
    fn new(headers: &HeaderMap, body: &[u8]) -> Self {
        let body = serde_json::from_slice(body).unwrap_or(Body {
            reason: None,
            timestamp: None,
        });
        let date = http_date(headers, DATE);
        Self {
            reason: body.reason,
            timestamp: body.timestamp.map(UnixMillis),
            retry_after: retry_after(headers, date).map(|pause| pause.min(RETRY_AFTER_MAX)),
            date,
        }
    }
}

/// Seconds, or an instant as seen from the peer's own clock (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap, date: Option<UnixSeconds>) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = http_date(headers, RETRY_AFTER)?;
    Some(Duration::from_secs(at.0.saturating_sub(date?.0)))
}

fn http_date(headers: &HeaderMap, name: HeaderName) -> Option<UnixSeconds> {
    let text = headers.get(name)?.to_str().ok()?;
    let time = httpdate::parse_http_date(text).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(UnixSeconds(since.as_secs()))
}

/// What became of a request that got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// APNs did certainly not process it.
    Unprocessed,
    /// The stream or the connection broke: perhaps processed.
    Broken,
    /// No answer in time: perhaps processed.
    TimedOut,
}

impl From<&h2::Error> for Loss {
    /// `is_go_away` alone would not do: an error that *we* found ends every stream with a GOAWAY too,
    /// processed or not.
    fn from(error: &h2::Error) -> Self {
        let unprocessed = error.is_remote()
            && (error.is_go_away()
                || (error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)));
        if unprocessed {
            Self::Unprocessed
        } else {
            Self::Broken
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[track_caller]
    fn check(headers: &[(HeaderName, &'static str)], body: &str, expected: &Details) {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect();
        assert_eq!(&Details::new(&headers, body.as_bytes()), expected);
    }

    #[test]
    fn details() {
        let none = Details::default();
        check(&[], "", &none);
        check(&[], "<html>", &none);
        check(&[], r#"{"reason":7}"#, &none);
        check(&[], r#"{"other":true}"#, &none);
        check(
            &[],
            r#"{"reason":"Unregistered","timestamp":1767225600123}"#,
            &Details {
                reason: Some("Unregistered".to_owned()),
                timestamp: Some(UnixMillis(1_767_225_600_123)),
                ..Details::default()
            },
        );
        check(
            &[(RETRY_AFTER, "120")],
            r#"{"reason":"ServiceUnavailable"}"#,
            &Details {
                reason: Some("ServiceUnavailable".to_owned()),
                retry_after: Some(Duration::from_secs(120)),
                ..Details::default()
            },
        );
        check(
            &[
                (DATE, "Thu, 01 Jan 2026 00:00:00 GMT"),
                (RETRY_AFTER, "Thu, 01 Jan 2026 00:01:30 GMT"),
            ],
            "",
            &Details {
                retry_after: Some(Duration::from_secs(90)),
                date: Some(UnixSeconds(1_767_225_600)),
                ..Details::default()
            },
        );
        check(
            &[(RETRY_AFTER, "18446744073709551615")],
            "",
            &Details {
                retry_after: Some(RETRY_AFTER_MAX),
                ..Details::default()
            },
        );
        check(&[(DATE, "yesterday"), (RETRY_AFTER, "soon")], "", &none);
    }
}
