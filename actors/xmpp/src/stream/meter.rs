//! A connection that lets only so much come until TLS is there: the library keeps what has come of a
//! handshake message, up to 64 KiB.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Socket, tls};

/// Bytes of a handshake beside the certificates: greetings, keys, and what carries them.
const BESIDE_BYTES: usize = 8192;

/// Counts what comes.
pub(crate) struct Metered {
    io: Box<dyn Socket>,
    left: Left,
}

/// What may still come; any number once that is [`Left::lift`]ed.
#[derive(Clone)]
pub(crate) struct Left(Rc<Cell<Option<usize>>>);

impl Left {
    pub(crate) fn lift(&self) {
        self.0.set(None);
    }
}

impl Metered {
    /// Lets so many bytes of certificates come.
    pub(crate) fn new(io: Box<dyn Socket>, chain_bytes_max: usize) -> (Self, Left) {
        let left = chain_bytes_max.saturating_add(BESIDE_BYTES);
        let left = Left(Rc::new(Cell::new(Some(left))));
        let lift = left.clone();
        (Self { io, left }, lift)
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if let Some(left) = self.left.0.get() {
            let read = buffer.filled().len().saturating_sub(before);
            let Some(left) = left.checked_sub(read) else {
                return Poll::Ready(Err(tls::too_large()));
            };
            self.left.0.set(Some(left));
        }
        polled
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
