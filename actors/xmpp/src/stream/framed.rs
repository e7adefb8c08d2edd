//! A byte stream read unit by unit.

use std::future::{Future as _, pending, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::Fault;
use crate::accounts::Hold;
use crate::xml::header::StreamHeader;
use crate::xml::skipper::Skipper;
use crate::xml::splitter::{Limits, Splitter, Unit};
use crate::xml::stream_error::StreamCondition;
use crate::xml::stream_error::StreamError;
use crate::xml::{self, Element, Namespaces, XmlError, ns};

/// Room made for a read: one TLS record.
const READ_BYTES: usize = 16 * 1024;
/// How long a stream may work before the other streams of the lane have their turn. By the clock, since what
/// a byte costs is up to the peer: 16 KiB are 50 µs of pushes, and 2 ms of addresses in other scripts. Without
/// optimisation the same work takes twenty times as long.
const TURN: Duration = Duration::from_micros(if cfg!(debug_assertions) { 6_000 } else { 300 });
/// What is read in one turn at most.
const TURN_BYTES: usize = 16 * 1024;
const CLOSE: &[u8] = b"</stream:stream>";
/// What the buffer of each stream may take without being accounted for, and keep while there is nothing in
/// it: ordinary stanzas need no more.
const KEPT_BYTES: usize = 2 * READ_BYTES;
/// How long a closed stream is kept, so that the peer gets our last words before the reset that unread data
/// would cause.
const LINGER: Duration = Duration::from_secs(2);
/// How much of it is read meanwhile. Whoever has more to say is not listened to: its words would have to be
/// deciphered first, and the lane has better to do.
const LINGER_BYTES: usize = 2 * READ_BYTES;
/// The same where nothing was wrong: what a busy peer sends until it has our closing tag, so that its own is found
/// behind that and a stop waits for nobody who has gone.
const LEAVE_BYTES: usize = 1 << 20;

/// A connection, its receive buffer, and what is known of the stream in it.
pub(crate) struct Framed<T> {
    io: T,
    buffer: BytesMut,
    splitter: Splitter,
    namespaces: Namespaces,
    write_stall: Duration,
    /// Bytes that may still be read, if they are counted.
    allowance: Option<usize>,
    /// What the buffer takes beyond [`KEPT_BYTES`], if that is accounted for.
    room: Option<Hold>,
    turn: Turn,
    /// What went wrong behind what was read last.
    failed: Option<io::Error>,
    /// Whether our closing tag is sent.
    ended: bool,
}

/// What a stream did since the others of its lane had their turn.
#[derive(Clone, Copy, Default)]
struct Turn {
    /// When it began, if it did.
    began: Option<Instant>,
    /// Bytes read.
    bytes: usize,
}

impl Turn {
    fn began(&mut self) -> Instant {
        *self.began.get_or_insert_with(Instant::now)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Framed<T> {
    /// Expects a stream header.
    pub(crate) fn new(io: T, limits: Limits, write_stall: Duration) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            splitter: Splitter::new(limits),
            namespaces: Namespaces::default(),
            write_stall,
            allowance: None,
            room: None,
            turn: Turn::default(),
            failed: None,
            ended: false,
        }
    }

    /// The connection. What was received and not taken is dropped with the buffer: after STARTTLS it
    /// was not protected (RFC 6120 §5.4.3.3).
    pub(crate) fn into_io(self) -> T {
        self.io
    }

    /// The connection, to look after it.
    pub(crate) const fn io_mut(&mut self) -> &mut T {
        &mut self.io
    }

    pub(crate) const fn set_limits(&mut self, limits: Limits) {
        self.splitter.set_limits(limits);
    }

    /// Lets only so many more bytes be read, or any number.
    pub(crate) const fn set_allowance(&mut self, bytes: Option<usize>) {
        self.allowance = bytes;
    }

    /// Accounts for what the buffer takes beyond the ordinary.
    pub(crate) fn account_for(&mut self, room: Hold) {
        self.room = Some(room);
    }

    /// What is left of the allowance.
    pub(crate) const fn allowance(&self) -> Option<usize> {
        self.allowance
    }

    /// Expects a stream header again.
    pub(crate) const fn restart(&mut self) {
        self.splitter.restart();
    }

    /// What stands at the start of the buffer.
    pub(crate) fn unit(&mut self) -> Result<Unit, XmlError> {
        self.splitter.next(&self.buffer)
    }

    /// The first `len` bytes of the buffer as text, with the namespaces it stands in.
    pub(crate) fn text(&self, len: usize) -> Result<(&str, &Namespaces), XmlError> {
        let unit = self.buffer.get(..len).unwrap_or_default();
        Ok((xml::utf8(unit)?, &self.namespaces))
    }

    /// Drops what has come of the unit at the start of the buffer. Returns whether that was all of it.
    pub(crate) fn skip(&mut self, skipper: &mut Skipper) -> Result<bool, XmlError> {
        let end = skipper.skip(&self.buffer)?;
        self.consume(end.unwrap_or(self.buffer.len()));
        if end.is_some() {
            self.splitter.begin();
        }
        Ok(end.is_some())
    }

    /// Takes a unit off the buffer.
    pub(crate) fn consume(&mut self, len: usize) {
        self.buffer.advance(len.min(self.buffer.len()));
    }

    /// Whether the others of the lane have to have their turn before more is done. Costs a look at the clock.
    pub(crate) fn is_turn_over(&mut self) -> bool {
        self.turn.bytes >= TURN_BYTES || self.turn.began().elapsed() >= TURN
    }

    /// The others of the lane have had their turn.
    pub(crate) fn rested(&mut self) {
        self.turn = Turn::default();
    }

    /// Lets the others of the lane have their turn. Dropping the future loses nothing.
    pub(crate) async fn rest(&mut self) {
        self.rested();
        yield_now().await;
    }

    /// Reads what is there, in turn with the other streams of the lane. Dropping the future loses nothing.
    pub(crate) async fn fill(&mut self) -> Result<(), Fault> {
        if self.is_turn_over() {
            self.rest().await;
        }
        // One large stanza must not hold its memory for as long as the stream lives.
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BYTES {
            self.buffer = BytesMut::new();
        }
        self.buffer.reserve(READ_BYTES);
        let extra = self.buffer.capacity().saturating_sub(KEPT_BYTES);
        if let Some(room) = &mut self.room
            && !room.resize(extra)
        {
            self.buffer = BytesMut::new();
            return Err(Fault::refuse(
                StreamCondition::ResourceConstraint,
                "too many large stanzas are on their way at a time",
            ));
        }
        self.turn.began();
        let read = poll_fn(|cx| self.poll_read(cx)).await?;
        if read == 0 {
            return Err(Fault::Disconnected);
        }
        self.turn.bytes += read;
        if let Some(allowance) = &mut self.allowance {
            *allowance = allowance.checked_sub(read).ok_or(Fault::refuse(
                StreamCondition::PolicyViolation,
                "too many bytes came before authentication",
            ))?;
        }
        Ok(())
    }

    /// Reads all that is there and fits, so that what came in many small records is one batch. An error after
    /// that comes with the next read.
    fn poll_read(&mut self, cx: &mut task::Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let before = self.buffer.len();
        let turn = TURN_BYTES.saturating_sub(self.turn.bytes);
        loop {
            // A TLS connection fills whatever room there is, which behind a large stanza is many times a turn.
            let room = turn.saturating_sub(self.buffer.len() - before);
            let mut into = (&mut self.buffer).limit(room);
            let read = pin!(self.io.read_buf(&mut into)).poll(cx);
            let all = self.buffer.len() - before;
            match read {
                Poll::Pending if all == 0 => {
                    self.turn = Turn::default();
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) if all == 0 => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(more)) if more > 0 => {
                    let is_full = self.buffer.len() == self.buffer.capacity();
                    if !is_full && all < turn {
                        continue;
                    }
                }
                Poll::Ready(Err(error)) => self.failed = Some(error),
                Poll::Pending | Poll::Ready(Ok(_)) => {}
            }
            return Poll::Ready(Ok(all));
        }
    }

    /// Waits for the next unit that is not white space. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<Unit, Fault> {
        if self.is_turn_over() {
            self.rest().await;
        }
        loop {
            match self.unit()? {
                Unit::Incomplete => self.fill().await?,
                Unit::Whitespace(len) => self.consume(len),
                unit => return Ok(unit),
            }
        }
    }

    /// Waits for a stream header.
    pub(crate) async fn header(&mut self) -> Result<StreamHeader, Fault> {
        match self.next().await? {
            Unit::Header(len) => {
                let header = StreamHeader::read(self.buffer.get(..len).unwrap_or_default())?;
                self.namespaces = header.namespaces.clone();
                self.consume(len);
                Ok(header)
            }
            _ => Err(XmlError::BadFormat.into()),
        }
    }

    /// Waits for an element. A stream error of the peer and the end of its stream are [`Fault`]s.
    pub(crate) async fn element(&mut self) -> Result<Element, Fault> {
        match self.next().await? {
            Unit::Element(len) => {
                let element = self.read(len)?;
                self.consume(len);
                Ok(element)
            }
            Unit::Close(_) => Err(Fault::Ended),
            _ => Err(XmlError::BadFormat.into()),
        }
    }

    /// Reads the element at the start of the buffer.
    pub(crate) fn read(&self, len: usize) -> Result<Element, Fault> {
        let (text, namespaces) = self.text(len)?;
        let element = Element::read(text, namespaces)?;
        if element.is("error", ns::STREAMS) {
            return Err(Fault::PeerError(StreamError::read(&element)));
        }
        Ok(element)
    }

    /// Writes all of `bytes`.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let written = async {
            self.io.write_all(bytes).await?;
            self.io.flush().await
        };
        match timeout(self.write_stall, written).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(Fault::Stalled),
        }
    }

    /// Ends our side of the stream; what the peer still sends can be read until it does the same
    /// (RFC 6120 §4.4).
    pub(crate) async fn end(&mut self) -> Result<(), Fault> {
        self.ended = true;
        self.send(CLOSE).await
    }

    /// Whether our side of the stream has ended.
    pub(crate) const fn is_ended(&self) -> bool {
        self.ended
    }

    /// Closes a stream that was served to its end, and waits a moment for the peer to do the same
    /// (RFC 6120 §4.4).
    pub(crate) async fn leave(self) {
        self.say_goodbye(None, LEAVE_BYTES).await;
    }

    /// Closes the stream, after `last` words if there are any, and waits a moment for the peer to do the same,
    /// unless it talks on.
    pub(crate) async fn close(self, last: Option<StreamError>) {
        self.say_goodbye(last, LINGER_BYTES).await;
    }

    /// Sends `last` words, the closing tag and TLS `close_notify`, and reads on for at most `patience` bytes.
    async fn say_goodbye(mut self, last: Option<StreamError>, patience: usize) {
        let mut bytes = Vec::new();
        if !self.ended {
            if let Some(error) = last {
                error.render(&mut bytes);
            }
            bytes.extend_from_slice(CLOSE);
        }
        self.buffer = BytesMut::new();
        self.room = None;
        let goodbye = async {
            self.io.write_all(&bytes).await?;
            self.io.shutdown().await?;
            let mut heard = 0;
            while heard < patience {
                // What a peer says on and on is no reason to keep the others waiting.
                self.rest().await;
                self.buffer.clear();
                self.buffer.reserve(READ_BYTES);
                let mut into = (&mut self.buffer).limit(READ_BYTES);
                match self.io.read_buf(&mut into).await? {
                    0 => return Ok::<(), io::Error>(()),
                    read => heard += read,
                }
            }
            self.buffer = BytesMut::new();
            pending().await
        };
        // Whatever happens, the connection is over.
        let _ = timeout(LINGER, goodbye).await;
    }

    /// Closes the stream in the way that suits the fault that ended it.
    pub(crate) async fn close_after(self, fault: &Fault) {
        match fault {
            Fault::Io(_) | Fault::Disconnected | Fault::Stalled => {}
            fault => self.close(fault.stream_error()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::pin::Pin;

    use tokio::io::ReadBuf;
    use tokio::time;

    use super::*;

    /// A connection on which this comes, a read each if there is room for it, and then its end.
    struct Comes(VecDeque<io::Result<Vec<u8>>>);

    impl AsyncRead for Comes {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut task::Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.0.pop_front() {
                Some(Ok(mut bytes)) => {
                    let rest = bytes.split_off(bytes.len().min(buffer.remaining()));
                    if !rest.is_empty() {
                        self.0.push_front(Ok(rest));
                    }
                    buffer.put_slice(&bytes);
                    Poll::Ready(Ok(()))
                }
                Some(Err(error)) => Poll::Ready(Err(error)),
                None => Poll::Ready(Ok(())),
            }
        }
    }

    impl AsyncWrite for Comes {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut task::Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn framed<const N: usize>(comes: [io::Result<Vec<u8>>; N]) -> Framed<Comes> {
        let limits = crate::Config::default().limits();
        Framed::new(Comes(comes.into()), limits, Duration::from_secs(1))
    }

    #[tokio::test]
    async fn what_is_there_is_one_batch_and_its_end_comes_after_it() {
        let mut framed = framed([
            Ok(b"<a/>".to_vec()),
            Ok(b"<b/>".to_vec()),
            Err(io::ErrorKind::ConnectionReset.into()),
        ]);
        framed.fill().await.unwrap();
        assert_eq!(&framed.buffer[..], b"<a/><b/>");
        let end = framed.fill().await;
        assert!(matches!(end, Err(Fault::Io(_))), "{end:?}");
    }

    #[tokio::test]
    async fn an_end_without_error_comes_after_what_was_said_too() {
        let mut framed = framed([Ok(b"<a/>".to_vec())]);
        framed.fill().await.unwrap();
        assert_eq!(&framed.buffer[..], b"<a/>");
        assert!(matches!(framed.fill().await, Err(Fault::Disconnected)));
    }

    #[tokio::test]
    async fn a_batch_is_no_longer_than_a_turn() {
        let piece = || Ok(vec![b'x'; 4096]);
        let mut framed = framed([piece(), piece(), piece(), piece(), piece()]);
        framed.fill().await.unwrap();
        assert_eq!(framed.buffer.len(), 16_384);
        framed.fill().await.unwrap();
        assert_eq!(framed.buffer.len(), 20_480);
    }

    #[tokio::test]
    async fn room_for_a_large_stanza_makes_no_turn_longer() {
        let mut framed = framed([Ok(vec![b'x'; 100_000])]);
        // With nothing in it the buffer would begin anew.
        framed.buffer.extend_from_slice(b"<");
        framed.buffer.reserve(100_000);
        framed.fill().await.unwrap();
        assert_eq!(framed.buffer.len(), 1 + 16_384);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_stream_is_kept_but_not_read_on_and_on() {
        let kept = async |said: usize| {
            let (io, mut peer) = tokio::io::duplex(1 << 20);
            peer.write_all(&vec![b'x'; said]).await.unwrap();
            let limits = crate::Config::default().limits();
            let framed = Framed::new(io, limits, Duration::from_secs(1));
            let before = time::Instant::now();
            let closing = tokio::spawn(framed.close(None));
            let mut heard = String::new();
            peer.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "</stream:stream>");
            peer.shutdown().await.unwrap();
            closing.await.unwrap();
            before.elapsed()
        };
        assert_eq!(kept(20_000).await, Duration::ZERO);
        assert_eq!(kept(200_000).await, LINGER);
    }
}
