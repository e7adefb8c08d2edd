//! What the tests of several crates share. Never linked into the binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod names;

use std::time::Duration;

use actix::{Actor, Context, Handler, Message, Recipient};
use tokio::sync::mpsc;

pub use names::NameServer;

/// How long a test waits for something that must happen before it fails. Generous: it is never waited
/// for in a passing run.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Most messages a [`Collector`] holds that nobody has taken.
const COLLECTED_MAX: usize = 1 << 20;

/// Stands at the end of an edge and keeps what arrives, in order.
pub struct Collector<M: Message<Result = ()> + Send> {
    received: mpsc::Receiver<M>,
    recipient: Recipient<M>,
}

impl<M> Collector<M>
where
    M: Message<Result = ()> + Send + Unpin + 'static,
{
    /// Starts on the current arbiter.
    #[must_use]
    pub fn start() -> Self {
        let (sender, received) = mpsc::channel(COLLECTED_MAX);
        let recipient = Tray { sender }.start().recipient();
        Self {
            received,
            recipient,
        }
    }

    /// The address to put into an actor's edges.
    #[must_use]
    pub fn recipient(&self) -> Recipient<M> {
        self.recipient.clone()
    }

    /// The next message; fails the test if none comes within [`PATIENCE`].
    #[track_caller]
    pub fn take(&mut self) -> impl Future<Output = M> {
        let caller = std::panic::Location::caller();
        async move {
            match tokio::time::timeout(PATIENCE, self.received.recv()).await {
                Ok(Some(message)) => message,
                Ok(None) => panic!("{caller}: the edge was closed"),
                Err(_) => panic!("{caller}: nothing arrived"),
            }
        }
    }

    /// What has arrived by now and was not taken.
    pub fn drain(&mut self) -> Vec<M> {
        std::iter::from_fn(|| self.received.try_recv().ok()).collect()
    }
}

struct Tray<M> {
    sender: mpsc::Sender<M>,
}

impl<M: Send + Unpin + 'static> Actor for Tray<M> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(0);
    }
}

impl<M> Handler<M> for Tray<M>
where
    M: Message<Result = ()> + Send + Unpin + 'static,
{
    type Result = ();

    fn handle(&mut self, message: M, _: &mut Self::Context) {
        self.sender
            .try_send(message)
            .expect("a test collects fewer messages than that");
    }
}
