//! A stream that gives way: h2 reads as long as there is something to read, so a peer that floods a
//! connection with frames would have the thread of its lane to itself.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes read before others on the thread have their turn: hundreds of answers, or 3,600 of the
/// shortest frames (RFC 9113 §4.1: nine bytes), a millisecond or so.
const TURN_BYTES: usize = 32 * 1024;

/// See above.
pub(crate) struct Paced<S> {
    inner: S,
    /// Bytes left of this turn.
    left: usize,
}

impl<S> Paced<S> {
    pub(crate) const fn new(inner: S) -> Self {
        Self {
            inner,
            left: TURN_BYTES,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            self.left = TURN_BYTES;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.left = match read {
            Poll::Pending => TURN_BYTES,
            Poll::Ready(_) => self.left.saturating_sub(buffer.filled().len() - before),
        };
        ready!(read)?;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// How much is read in one poll of a task that reads as long as it can.
    fn turn(stream: &mut Paced<impl AsyncRead + Unpin>) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let mut bytes = [0; 1000];
        let mut sum = 0;
        while sum < 10 * TURN_BYTES {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *stream).poll_read(&mut cx, &mut buffer) {
                Poll::Ready(read) => read.unwrap(),
                Poll::Pending => break,
            }
            sum += buffer.filled().len();
        }
        sum
    }

    #[test]
    fn a_flood_is_read_in_turns() {
        let mut flood = Paced::new(tokio::io::repeat(0));
        for _ in 0..3 {
            let read = turn(&mut flood);
            assert!((TURN_BYTES..TURN_BYTES + 1000).contains(&read), "{read}");
        }
    }
}
