//! An HTTP/2 server of bare frames (RFC 9113 §4, §6), for what a well-behaved one never does.

use bytes::{BufMut, BytesMut};
use testkit::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

pub const REFUSED_STREAM: u32 = 7;
pub const PROTOCOL_ERROR: u32 = 1;

/// One connection.
pub struct Frames {
    stream: TlsStream<TcpStream>,
    /// Bytes read and not yet taken.
    buffer: BytesMut,
    /// Whether PINGs are answered.
    pub answers_pings: bool,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frames {
    pub(super) async fn start(mut stream: TlsStream<TcpStream>, streams: u32) -> Self {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut frames = Self {
            stream,
            buffer: BytesMut::new(),
            answers_pings: true,
        };
        frames.settings(streams).await;
        frames
    }

    /// Allows that many streams from now on.
    pub async fn settings(&mut self, streams: u32) {
        let mut payload = vec![0, 3];
        payload.extend(streams.to_be_bytes());
        self.write(SETTINGS, 0, 0, &payload).await;
    }

    /// Answers a request with a status and no body.
    pub async fn answer(&mut self, stream: u32, status: u16) {
        self.head(stream, status, END_STREAM).await;
    }

    /// The beginning of an answer whose body is still to come.
    pub async fn begin_answer(&mut self, stream: u32, status: u16) {
        self.head(stream, status, 0).await;
    }

    async fn head(&mut self, stream: u32, status: u16, flags: u8) {
        // HPACK: `:status: 200` is entry 8; the others as a literal with that entry's name.
        let mut block = vec![0x88];
        if status != 200 {
            block = vec![0x08, 3];
            block.extend(status.to_string().bytes());
        }
        self.write(HEADERS, flags | END_HEADERS, stream, &block)
            .await;
    }

    pub async fn reset(&mut self, stream: u32, code: u32) {
        self.write(RST_STREAM, 0, stream, &code.to_be_bytes()).await;
    }

    pub async fn go_away(&mut self, last: u32, code: u32) {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend(code.to_be_bytes());
        payload.extend(br#"{"reason":"Shutdown"}"#);
        self.write(GOAWAY, 0, 0, &payload).await;
    }

    /// The stream of the next whole request.
    pub async fn request(&mut self) -> u32 {
        loop {
            let frame = self.read().await;
            if let Some(stream) = self.handle(&frame).await {
                return stream;
            }
        }
    }

    /// The stream of the next whole request, if it comes before the client closes.
    pub async fn try_request(&mut self) -> Option<u32> {
        loop {
            let frame = self.try_read().await?;
            if let Some(stream) = self.handle(&frame).await {
                return Some(stream);
            }
        }
    }

    /// The streams of the next `count` requests.
    pub async fn requests(&mut self, count: usize) -> Vec<u32> {
        let mut streams = Vec::new();
        while streams.len() < count {
            streams.push(self.request().await);
        }
        streams
    }

    /// Makes sure that the client has acted on all that was sent, and sends no request now.
    pub async fn expect_silence(&mut self) {
        // The answer to a PING comes after what the client did before; two, because it may send first
        // what it had in hand when the first one came.
        for round in 0..2u8 {
            self.write(PING, 0, 0, &[round; 8]).await;
            loop {
                let frame = self.read().await;
                if frame.kind == PING && frame.flags & ACK != 0 {
                    break;
                }
                if let Some(stream) = self.handle(&frame).await {
                    panic!("a request on stream {stream} that was not to be sent yet");
                }
            }
        }
    }

    /// Answers PINGs until the client closes; it sends no request.
    pub async fn serve(&mut self) {
        while let Some(frame) = self.try_read().await {
            assert_eq!(self.handle(&frame).await, None, "no request expected");
        }
    }

    /// Waits for a PING of the client and answers it.
    pub async fn ping(&mut self) {
        loop {
            let frame = self.read().await;
            let asks = frame.kind == PING && frame.flags & ACK == 0;
            assert_eq!(self.handle(&frame).await, None, "no request expected");
            if asks {
                return;
            }
        }
    }

    /// Reads until the client has closed; true if it said GOAWAY before.
    pub async fn closed(mut self) -> bool {
        let mut farewell = false;
        while let Some(frame) = self.try_read().await {
            farewell |= frame.kind == GOAWAY;
            if frame.kind == PING && frame.flags & ACK == 0 && self.answers_pings {
                // The client may be gone by now.
                let _ = self.try_write(PING, ACK, 0, &frame.payload).await;
            }
        }
        farewell
    }

    async fn handle(&mut self, frame: &Frame) -> Option<u32> {
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => self.write(SETTINGS, ACK, 0, &[]).await,
            PING if frame.flags & ACK == 0 && self.answers_pings => {
                self.write(PING, ACK, 0, &frame.payload).await;
            }
            DATA if frame.flags & END_STREAM != 0 => return Some(frame.stream),
            _ => {}
        }
        None
    }

    async fn read(&mut self) -> Frame {
        timeout(PATIENCE, self.try_read())
            .await
            .expect("no frame came")
            .expect("the client closed")
    }

    async fn try_read(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.take() {
                return Some(frame);
            }
            // Nothing is lost when this is cancelled.
            let read = self.stream.read_buf(&mut self.buffer).await;
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    fn take(&mut self) -> Option<Frame> {
        let head = self.buffer.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if self.buffer.len() < 9 + length {
            return None;
        }
        let mut frame = self.buffer.split_to(9 + length);
        let head = frame.split_to(9);
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff,
            payload: frame.to_vec(),
        })
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.try_write(kind, flags, stream, payload).await.unwrap();
    }

    async fn try_write(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        let mut frame = BytesMut::new();
        frame.put_uint(payload.len() as u64, 3);
        frame.put_u8(kind);
        frame.put_u8(flags);
        frame.put_u32(stream);
        frame.put_slice(payload);
        self.stream.write_all(&frame).await?;
        self.stream.flush().await
    }
}
