//! A tap between h2 and TLS that knows where frames begin (RFC 9113 §4.1), for what h2 has no call for:
//! changing SETTINGS_MAX_CONCURRENT_STREAMS, and a GOAWAY that names an older stream than the last.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const HEAD_BYTES: usize = 9;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const ACK: u8 = 1;
const MAX_CONCURRENT_STREAMS: [u8; 2] = [0, 3];
const SETTING_BYTES: usize = 6;

/// What the tap is to do beside passing bytes on.
pub(super) struct Orders {
    /// Each SETTINGS frame that goes out gets this limit, whatever h2 wrote.
    pub(super) streams_max: u32,
    /// Goes out before h2's next frame.
    insert: Vec<u8>,
    /// Once all is written, the writing half is closed in good order.
    close: bool,
    /// Everything that h2 wrote is on the socket.
    idle: bool,
}

impl Orders {
    pub(super) const fn new(streams_max: u32) -> Self {
        Self {
            streams_max,
            insert: Vec::new(),
            close: false,
            idle: false,
        }
    }

    /// Puts a GOAWAY with NO_ERROR into the stream of frames (RFC 9113 §6.8). Its debug data is JSON,
    /// as Apple's is.
    pub(super) fn go_away(&mut self, last_stream_id: u32, reason: &str) {
        let debug = format!(r#"{{"reason":"{reason}"}}"#);
        let length = 8 + debug.len();
        self.insert.extend(head(length, GO_AWAY, 0));
        self.insert.extend(last_stream_id.to_be_bytes());
        self.insert.extend(0_u32.to_be_bytes());
        self.insert.extend(debug.as_bytes());
        self.idle = false;
    }

    /// More is to be written before all is.
    pub(super) const fn await_write(&mut self) {
        self.idle = false;
    }

    pub(super) const fn close(&mut self) {
        self.close = true;
    }

    pub(super) const fn is_idle(&self) -> bool {
        self.idle
    }
}

/// Passes bytes on and obeys [`Orders`].
pub(super) struct Tap<T> {
    inner: T,
    orders: Rc<RefCell<Orders>>,
    /// Bytes of the current frame that pass through unchanged.
    passing: usize,
    /// A frame that is not whole yet, to be looked at when it is.
    held: Vec<u8>,
    /// Goes out before anything else.
    out: VecDeque<u8>,
}

impl<T> Tap<T> {
    pub(super) fn new(inner: T, orders: Rc<RefCell<Orders>>) -> Self {
        Self {
            inner,
            orders,
            passing: 0,
            held: Vec::new(),
            out: VecDeque::new(),
        }
    }

    /// How many bytes from the start of `buffer` may pass in one piece, and how many bytes of the last
    /// frame among them are still to come. A frame that must be looked at is not among them.
    fn passable(&self, buffer: &[u8]) -> usize {
        let mut end = self.passing;
        while let Some(head) = buffer.get(end..).and_then(|rest| rest.first_chunk()) {
            if must_hold(head) {
                break;
            }
            end += HEAD_BYTES + length(head);
        }
        end
    }
}

impl<T: AsyncWrite + Unpin> Tap<T> {
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.passing == 0 && self.held.is_empty() {
            self.out.extend(self.orders.borrow_mut().insert.drain(..));
        }
        while !self.out.is_empty() {
            let (front, _) = self.out.as_slices();
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, front))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes bytes of a frame that must be looked at, and its whole when the last have come.
    fn hold(&mut self, buffer: &[u8]) -> usize {
        let wanted = match self.held.first_chunk() {
            Some(head) => HEAD_BYTES + length(head),
            None => HEAD_BYTES,
        };
        let missing = wanted - self.held.len();
        let taken = buffer.get(..missing).unwrap_or(buffer);
        self.held.extend(taken);
        if let Some(head) = self.held.first_chunk() {
            if !must_hold(head) {
                self.passing = length(head);
                self.out.extend(self.held.drain(..));
            } else if self.held.len() == HEAD_BYTES + length(head) {
                let settings = self.held.get(HEAD_BYTES..).unwrap_or_default();
                let settings = with_limit(settings, self.orders.borrow().streams_max);
                self.out.extend(head_of_settings(settings.len()));
                self.out.extend(settings);
                self.held.clear();
            }
        }
        taken.len()
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Tap<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.orders.borrow_mut().idle = false;
        ready!(this.poll_out(cx))?;
        let passable = if this.held.is_empty() {
            this.passable(buffer)
        } else {
            0
        };
        if passable == 0 {
            return Poll::Ready(Ok(this.hold(buffer)));
        }
        let piece = buffer.get(..passable).unwrap_or(buffer);
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, piece))?;
        // Where the frame that `written` fell into ends.
        let mut end = this.passing;
        while end < written {
            let Some(head) = buffer.get(end..).and_then(|rest| rest.first_chunk()) else {
                break;
            };
            end += HEAD_BYTES + length(head);
        }
        this.passing = end.saturating_sub(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_out(cx))?;
        ready!(Pin::new(&mut this.inner).poll_flush(cx))?;
        if this.orders.borrow().close {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        this.orders.borrow_mut().idle = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Tap<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

const fn must_hold(head: &[u8; HEAD_BYTES]) -> bool {
    let [_, _, _, kind, flags, ..] = *head;
    kind == SETTINGS && flags & ACK == 0
}

const fn length(head: &[u8; HEAD_BYTES]) -> usize {
    let [high, middle, low, ..] = *head;
    (high as usize) << 16 | (middle as usize) << 8 | low as usize
}

/// A frame's head on stream 0. Lengths are far below the 24 bits there are.
#[allow(clippy::cast_possible_truncation, reason = "taken apart into bytes")]
const fn head(length: usize, kind: u8, flags: u8) -> [u8; HEAD_BYTES] {
    [
        (length >> 16) as u8,
        (length >> 8) as u8,
        length as u8,
        kind,
        flags,
        0,
        0,
        0,
        0,
    ]
}

const fn head_of_settings(length: usize) -> [u8; HEAD_BYTES] {
    head(length, SETTINGS, 0)
}

fn with_limit(settings: &[u8], streams_max: u32) -> Vec<u8> {
    let (settings, _) = settings.as_chunks::<SETTING_BYTES>();
    let mut changed: Vec<u8> = settings
        .iter()
        .filter(|setting| !setting.starts_with(&MAX_CONCURRENT_STREAMS))
        .flatten()
        .copied()
        .collect();
    changed.extend(MAX_CONCURRENT_STREAMS);
    changed.extend(streams_max.to_be_bytes());
    changed
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes at most so many bytes at a time.
    struct Narrow {
        taken: Vec<u8>,
        width: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = buffer.len().min(self.width);
            self.taken.extend(&buffer[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.taken.extend(b"closed");
            Poll::Ready(Ok(()))
        }
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        [&head(payload.len(), kind, flags)[..], payload].concat()
    }

    /// Writes pieces of `step` bytes, gives a GOAWAY after `early` of them, flushes and closes.
    fn through_tap(bytes: &[u8], step: usize, width: usize, early: usize) -> Vec<u8> {
        let orders = Rc::new(RefCell::new(Orders::new(7)));
        let narrow = Narrow {
            taken: Vec::new(),
            width,
        };
        let mut tap = Tap::new(narrow, Rc::clone(&orders));
        let mut cx = Context::from_waker(Waker::noop());
        for (n, mut piece) in bytes.chunks(step).enumerate() {
            if n == early {
                orders.borrow_mut().go_away(9, "Test");
            }
            while !piece.is_empty() {
                let written = Pin::new(&mut tap).poll_write(&mut cx, piece);
                let Poll::Ready(Ok(written)) = written else {
                    panic!("the other end takes everything");
                };
                piece = &piece[written..];
            }
        }
        assert!(!orders.borrow().is_idle());
        orders.borrow_mut().close();
        assert!(Pin::new(&mut tap).poll_flush(&mut cx).is_ready());
        assert!(orders.borrow().is_idle());
        tap.inner.taken
    }

    #[test]
    fn settings_are_changed_and_a_go_away_comes_between_frames() {
        let window = [0, 4, 0, 1, 0, 0];
        let mine = [0, 3, 0, 0, 0, 7];
        let settings = frame(SETTINGS, 0, &[[0, 3, 0, 0, 0, 100], window].concat());
        let changed = frame(SETTINGS, 0, &[window, mine].concat());
        let acknowledged = frame(SETTINGS, ACK, &[]);
        let headers = frame(1, 4, &[1; 20]);
        let data = frame(0, 1, &[2; 300]);
        let go_away = frame(GO_AWAY, 0, b"\0\0\0\x09\0\0\0\0{\"reason\":\"Test\"}");
        let written =
            [&settings, &acknowledged, &headers, &settings, &data, &data].map(Vec::as_slice);
        let expected =
            [&changed, &acknowledged, &headers, &changed, &data, &data].map(Vec::as_slice);
        let whole = written.concat();
        for step in [1, 2, 5, 8, 9, 10, 33, 300, whole.len()] {
            for width in [1, 3, 9, 100, whole.len()] {
                for early in [0, whole.len().div_ceil(step) / 2] {
                    let out = through_tap(&whole, step, width, early);
                    let places = (0..=expected.len()).map(|place| {
                        let mut frames = expected.to_vec();
                        frames.insert(place, &go_away);
                        [frames.concat(), b"closed".to_vec()].concat()
                    });
                    assert!(
                        places.into_iter().any(|place| place == out),
                        "{step} {width} {early}"
                    );
                }
            }
        }
    }
}
