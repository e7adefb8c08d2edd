//! A connection that lets only so much come until TLS is there: the library keeps what has come of a
//! handshake message, up to 64 KiB.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Socket, tls};

/// Bytes of a handshake beside the certificates: greetings, keys, and what carries them.
const BESIDE_BYTES: usize = 8192;

/// Counts what comes.
pub(crate) struct Metered {
    io: Box<dyn Socket>,
    /// What may still come, if that is bounded.
    left: Option<usize>,
}

impl Metered {
    /// Lets so many bytes of certificates come.
    pub(crate) fn new(io: Box<dyn Socket>, chain_bytes_max: usize) -> Self {
        let left = chain_bytes_max.saturating_add(BESIDE_BYTES);
        Self {
            io,
            left: Some(left),
        }
    }

    /// Lets any number come.
    pub(crate) const fn lift(&mut self) {
        self.left = None;
    }

    /// [`Socket::rehome`] of the connection.
    pub(crate) fn rehome(&mut self) -> io::Result<()> {
        self.io.rehome()
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
        if let Some(left) = &mut self.left {
            let read = buffer.filled().len().saturating_sub(before);
            *left = match left.checked_sub(read) {
                Some(left) => left,
                None => return Poll::Ready(Err(tls::too_large())),
            };
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
