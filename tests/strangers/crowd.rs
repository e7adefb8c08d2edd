//! The strangers, on a thread of their own.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use campanile::dev::world::SERVICE;
use rustix::thread::gettid;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio::time::{interval, sleep};
use xmpp::Config;

use crate::caller::{Line, Place, header};
use crate::memory::Census;
use crate::stanzas;
use crate::tally::{End, Tally};

/// Connections that never say a word.
pub(crate) const SILENT: usize = 2_000;
/// Connections that say a byte a second.
pub(crate) const LORISES: usize = 200;
/// The domain of the one who has proven it, and floods us.
pub(crate) const ABUSER: &str = "abuser.localhost";
/// A domain that nobody proves.
const STRANGER: &str = "stranger.localhost";
/// A stanza without an end has so many bytes.
pub(crate) const GIANT_BYTES: usize = 100 << 20;
/// Of those who come again as soon as they are sent away, so many do the same.
const ALIKE: usize = 4;
/// The pause between two connections from one address: as many as one may open.
const PAUSE: Duration = Duration::from_millis(50);

/// Who is there at a time: those above, three kinds that come again, and in both of the kinds with a
/// domain a stream.
pub(crate) const CENSUS: Census = Census {
    strangers: SILENT + LORISES + 3 * ALIKE,
    authenticated: 2,
};

/// What strangers do. Each kind has a network of its own.
const KINDS: [&str; 9] = [
    "silent",
    "slow header",
    "slow handshake",
    "slow key",
    "billion laughs",
    "maximal stanzas",
    "giant",
    "giant of a peer",
    "stanzas of a peer",
];

/// A crowd that is there.
pub(crate) struct Crowd {
    dismiss: watch::Sender<bool>,
    /// Told when all who come only once have been sent away.
    settled: watch::Receiver<bool>,
    thread: JoinHandle<Tally>,
}

/// What all of them know.
struct Site {
    service: SocketAddr,
    /// Of somebody without a name, and of [`ABUSER`].
    nobody: Arc<ClientConfig>,
    abuser: Arc<ClientConfig>,
    limits: Config,
    tally: RefCell<Tally>,
}

impl Crowd {
    pub(crate) fn gather(
        service: SocketAddr,
        (nobody, abuser): (Arc<ClientConfig>, Arc<ClientConfig>),
        answers: TcpListener,
        limits: &Config,
    ) -> Self {
        let (dismiss, dismissed) = watch::channel(false);
        let (settle, settled) = watch::channel(false);
        let limits = limits.clone();
        let thread = thread::spawn(move || {
            yield_to_all();
            let site = Rc::new(Site {
                service,
                nobody,
                abuser,
                limits,
                tally: RefCell::default(),
            });
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            LocalSet::new().block_on(&runtime, Rc::clone(&site).run(answers, dismissed, settle));
            drop(runtime);
            site.tally.take()
        });
        Self {
            dismiss,
            settled,
            thread,
        }
    }

    /// Waits until all who come only once have been sent away.
    pub(crate) async fn settled(&mut self) {
        self.settled.wait_for(|settled| *settled).await.unwrap();
    }

    /// Sends home who is still there, and tells what became of all.
    pub(crate) fn dismiss(self) -> Tally {
        self.dismiss.send(true).unwrap();
        self.thread.join().unwrap()
    }
}

/// Strangers compute on machines of their own: this thread runs only while no other wants to, and any other
/// takes the processor from it at once, which niceness alone does not say.
fn yield_to_all() {
    let thread = gettid().as_raw_nonzero().to_string();
    let idle = Command::new("chrt")
        .args(["--idle", "--pid", "0", &thread])
        .status();
    assert!(idle.unwrap().success(), "chrt, of util-linux, works");
}

impl Site {
    async fn run(
        self: Rc<Self>,
        answers: TcpListener,
        mut dismissed: watch::Receiver<bool>,
        settle: watch::Sender<bool>,
    ) {
        spawn_local(be_silent(answers));
        let mut patient = JoinSet::new();
        for n in 0..SILENT {
            patient.spawn_local(Rc::clone(&self).once("silent", n, Self::silent));
        }
        for n in 0..LORISES {
            let loris = Rc::clone(&self);
            match n % 3 {
                0 => patient.spawn_local(loris.once("slow header", n, Self::slow_header)),
                1 => patient.spawn_local(loris.once("slow handshake", n, Self::slow_handshake)),
                _ => patient.spawn_local(loris.once("slow key", n, Self::slow_key)),
            };
        }
        let mut stubborn = JoinSet::new();
        for n in 0..ALIKE {
            let again = || Rc::clone(&self);
            stubborn.spawn_local(again().again("maximal stanzas", n, Self::maximal));
            stubborn.spawn_local(again().again("billion laughs", n, Self::laughs));
            stubborn.spawn_local(again().again("giant", n, Self::giant));
        }
        let again = || Rc::clone(&self);
        stubborn.spawn_local(again().again("giant of a peer", 0, Self::giant_of_a_peer));
        stubborn.spawn_local(again().again("stanzas of a peer", 0, Self::flood));
        while let Some(ended) = patient.join_next().await {
            ended.unwrap();
        }
        settle.send(true).unwrap();
        dismissed.wait_for(|dismissed| *dismissed).await.unwrap();
        if let Some(ended) = stubborn.try_join_next() {
            panic!("one who comes again and again has given up: {ended:?}");
        }
        stubborn.shutdown().await;
    }

    /// An address of that kind, which it has for at most a hundred connections.
    fn place(&self, kind: &str, n: usize) -> Place {
        let network = KINDS.iter().position(|known| *known == kind).unwrap();
        let octets = [1 + network, n / 100].map(|octet| u8::try_from(octet).unwrap());
        let from = Ipv4Addr::new(127, octets[0], octets[1], 1);
        Place {
            service: self.service,
            from,
        }
    }

    async fn once(
        self: Rc<Self>,
        kind: &'static str,
        n: usize,
        run: impl AsyncFn(&Self, Place) -> Result<End, End>,
    ) {
        let mut noted = Noted::new(&self, kind);
        noted.end = run(&self, self.place(kind, n))
            .await
            .unwrap_or_else(|end| end);
    }

    async fn again(
        self: Rc<Self>,
        kind: &'static str,
        n: usize,
        run: impl AsyncFn(&Self, Place) -> Result<End, End>,
    ) {
        // Every one of them has an address of its own.
        let place = self.place(kind, 100 * n);
        loop {
            let mut noted = Noted::new(&self, kind);
            noted.end = run(&self, place).await.unwrap_or_else(|end| end);
            drop(noted);
            sleep(PAUSE).await;
        }
    }

    async fn silent(&self, place: Place) -> Result<End, End> {
        let mut line = place.connect().await?;
        Ok(line.end().await)
    }

    async fn slow_header(&self, place: Place) -> Result<End, End> {
        let line = place.connect().await?;
        drip(line, header(STRANGER).as_bytes()).await
    }

    async fn slow_handshake(&self, place: Place) -> Result<End, End> {
        let line = place.clear(STRANGER).await?;
        let name = ServerName::try_from(SERVICE).unwrap();
        let mut tls = ClientConnection::new(Arc::clone(&self.nobody), name).unwrap();
        let mut hello = Vec::new();
        tls.write_tls(&mut hello).unwrap();
        drip(line, &hello).await
    }

    async fn slow_key(&self, place: Place) -> Result<End, End> {
        let line = place.secure(STRANGER, &self.nobody).await?;
        drip(line, stanzas::unproven(STRANGER).as_bytes()).await
    }

    async fn maximal(&self, place: Place) -> Result<End, End> {
        let mut line = place.secure(STRANGER, &self.nobody).await?;
        let stanza: Arc<str> = stanzas::unproven(STRANGER).into();
        let wrote = |bytes| self.wrote("maximal stanzas", bytes);
        Ok(line.say_on(|| Arc::clone(&stanza), wrote).await)
    }

    async fn laughs(&self, place: Place) -> Result<End, End> {
        let mut line = place.connect().await?;
        line.say(&stanzas::billion_laughs()).await?;
        Ok(line.end().await)
    }

    async fn giant(&self, place: Place) -> Result<End, End> {
        let line = place.secure(STRANGER, &self.nobody).await?;
        Ok(self.talk_on(line, STRANGER, "giant").await)
    }

    async fn giant_of_a_peer(&self, place: Place) -> Result<End, End> {
        let line = place.authenticated(ABUSER, &self.abuser).await?;
        Ok(self.talk_on(line, ABUSER, "giant of a peer").await)
    }

    /// One stanza without an end.
    async fn talk_on<T>(&self, mut line: Line<T>, domain: &str, kind: &'static str) -> End
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let text: Arc<str> = "x".repeat(16 * 1024).into();
        let mut first: Option<Arc<str>> = Some(stanzas::open(domain).into());
        let mut said = 0;
        let next = || first.take().unwrap_or_else(|| Arc::clone(&text));
        let wrote = |bytes| {
            said += bytes;
            assert!(said < GIANT_BYTES, "all of it was taken");
            self.wrote(kind, bytes);
        };
        line.say_on(next, wrote).await
    }

    async fn flood(&self, place: Place) -> Result<End, End> {
        let mut line = place.authenticated(ABUSER, &self.abuser).await?;
        let stanzas = stanzas::maximal(ABUSER, &self.limits).map(Arc::from);
        let mut stanzas = stanzas.iter().cycle();
        let next = || Arc::clone(stanzas.next().unwrap());
        let wrote = |bytes| self.wrote("stanzas of a peer", bytes);
        Ok(line.say_on(next, wrote).await)
    }

    fn wrote(&self, kind: &'static str, bytes: usize) {
        self.tally.borrow_mut().wrote(kind, bytes);
    }
}

/// Notes the end of a connection, however it comes.
struct Noted<'a> {
    site: &'a Site,
    kind: &'static str,
    end: End,
}

impl<'a> Noted<'a> {
    const fn new(site: &'a Site, kind: &'static str) -> Self {
        Self {
            site,
            kind,
            end: End::Dismissed,
        }
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.site.tally.borrow_mut().note(self.kind, self.end);
    }
}

/// A byte a second, until the service has enough.
async fn drip<T>(mut line: Line<T>, bytes: &[u8]) -> Result<End, End>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut second = interval(Duration::from_secs(1));
    for byte in bytes {
        tokio::select! {
            end = line.end() => return Ok(end),
            _ = second.tick() => {}
        }
        if line.io.write_all(&[*byte]).await.is_err() || line.io.flush().await.is_err() {
            return Ok(line.end().await);
        }
    }
    panic!("the service heard a stranger out");
}

/// Accepts what comes, and does nothing with it.
async fn be_silent(answers: TcpListener) {
    answers.set_nonblocking(true).unwrap();
    let answers = tokio::net::TcpListener::from_std(answers).unwrap();
    let mut held = Vec::new();
    while let Ok((socket, _)) = answers.accept().await {
        held.push(socket);
    }
}
