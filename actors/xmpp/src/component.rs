//! Served domains that are components of an XMPP server (XEP-0114).
//!
//! A component is a session as any other, but for its stream: we open it, it goes both ways, and when it
//! breaks a new one takes its place. Tickets and answers outlive it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use actix::{Addr, Message};
use messages::Domain;
use tokio::time::{Instant, sleep_until};

use crate::accounts::Source;
use crate::backlog::Queue;
use crate::backoff::Backoff;
use crate::gate::Lane;
use crate::jid::{self, Jid};
use crate::service::Service;
use crate::session::{Batch, Core, Order, Pause, Rule, Session};
use crate::stream::component::{self, Connection, Target, Words};
use crate::stream::{Fault, ns};
use crate::xml::skipper::Skipper;
use crate::xml::splitter::Unit;
use crate::xml::{XmlError, write};
use crate::{ComponentConfig, Config, DomainConfig, Error, Finding};

/// The longest wait between two tries to connect.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// How long a stream must have lasted for the next one to be tried without delay.
const LASTING: Duration = Duration::from_secs(60);
/// Times the keepalive without a word from the server until it is pinged, and until it is given up.
const SILENCES_TO_PING: u32 = 5;
const SILENCES_TO_END: u32 = 6;
/// How long `inspect` waits for a server.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// A component for a gate to keep connected.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Component {
    domain: Domain,
    target: Target,
    secret_file: PathBuf,
    keepalive: Duration,
}

impl Component {
    /// The served domain.
    #[must_use]
    pub const fn domain(&self) -> &Domain {
        &self.domain
    }
}

/// Prepares the components.
///
/// # Errors
/// All that is wrong with them, and with domains that are neither component nor able to accept streams.
pub fn prepare(
    config: &Config,
    domains: &[DomainConfig],
    components: &[ComponentConfig],
) -> Result<Vec<Component>, Vec<Error>> {
    let mut errors = unreachable(config, domains, components);
    let prepared = load(domains, components, &mut errors);
    match errors.is_empty() {
        true => Ok(prepared),
        false => Err(errors),
    }
}

/// Finds everything that is wrong with components for `campanile check`, servers that are not there
/// included.
#[must_use]
pub fn inspect(
    config: &Config,
    domains: &[DomainConfig],
    components: &[ComponentConfig],
) -> Vec<Finding> {
    let mut errors = unreachable(config, domains, components);
    let prepared = load(domains, components, &mut errors);
    let fatal = errors
        .into_iter()
        .map(|error| Finding { fatal: true, error });
    let absent = prepared.iter().filter_map(|component| {
        let source = component.target.probe(PROBE_LIMIT).err()?;
        Some(Finding {
            fatal: false,
            error: Error::NoHost {
                name: component.domain.to_string(),
                connect: component.target.to_string(),
                source,
            },
        })
    });
    fatal.chain(absent).collect()
}

fn load(
    domains: &[DomainConfig],
    components: &[ComponentConfig],
    errors: &mut Vec<Error>,
) -> Vec<Component> {
    let served: BTreeSet<Domain> = domains
        .iter()
        .filter_map(|domain| jid::prepare_domain(&domain.name).ok())
        .collect();
    let mut places = BTreeSet::new();
    let mut loaded = Vec::new();
    for config in components {
        let name = || config.domain.clone();
        let connect = || config.connect.clone();
        let domain = jid::prepare_domain(&config.domain).ok();
        let domain = domain.filter(|domain| served.contains(domain));
        if domain.is_none() {
            errors.push(Error::UnknownComponent { name: name() });
        }
        let target = Target::parse(&config.connect);
        if target.is_none() {
            errors.push(Error::ComponentTarget {
                name: name(),
                connect: connect(),
            });
        }
        if config.keepalive_seconds == 0 {
            errors.push(Error::KeepaliveTooSmall { name: name() });
        }
        // It is read again at each connection; here it only has to be there.
        errors.extend(component::secret(&config.secret_file).err());
        let (Some(domain), Some(target)) = (domain, target) else {
            continue;
        };
        if !places.insert((domain.clone(), connect())) {
            errors.push(Error::DuplicateComponent {
                name: name(),
                connect: connect(),
            });
        }
        loaded.push(Component {
            domain,
            target,
            secret_file: config.secret_file.clone(),
            keepalive: Duration::from_secs(config.keepalive_seconds),
        });
    }
    loaded
}

/// The domains that nobody can reach, and a listener that nobody can use.
fn unreachable(
    config: &Config,
    domains: &[DomainConfig],
    components: &[ComponentConfig],
) -> Vec<Error> {
    let prepared = |name: &str| jid::prepare_domain(name).ok();
    let is_component = |domain: &DomainConfig| {
        let domain = prepared(&domain.name);
        let mut components = components.iter();
        components.any(|component| prepared(&component.domain) == domain)
    };
    let has_identity = |domain: &DomainConfig| domain.certificate.is_some() || domain.key.is_some();
    let listens = !config.listen.is_empty();
    let is_reachable = |domain: &&DomainConfig| {
        let by_servers = listens && has_identity(domain);
        by_servers || is_component(domain)
    };
    let mut errors: Vec<Error> = domains
        .iter()
        .filter(|domain| !is_reachable(domain))
        .map(|domain| {
            let name = domain.name.clone();
            match has_identity(domain) {
                true => Error::Unreachable { name },
                false => Error::NoIdentity { name },
            }
        })
        .collect();
    if errors.is_empty() && listens && !domains.is_empty() && !domains.iter().any(has_identity) {
        errors.push(Error::ListensInVain);
    }
    errors
}

/// Starts a session for a component on the current arbiter.
pub(crate) fn start(lane: Rc<Lane>, component: Component) -> Addr<Session> {
    let queue = RefCell::new(Queue::default());
    let source = Source::Component(component.domain.clone());
    let account = lane.ingress.account(source);
    Session::start_with(lane, account, Some(queue), |core, session| {
        let task = Task {
            core,
            session,
            component,
            backoff: Backoff::new(BACKOFF_MAX),
        };
        task.run()
    })
}

/// The task that keeps the component connected.
struct Task {
    core: Rc<Core>,
    session: Addr<Session>,
    component: Component,
    backoff: Backoff,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.core.open.set(false);
        self.core.settled.notify_one();
        let left = self.queue(|queue| queue.replies());
        self.core.lane.counters.replies_lost.add(left);
    }
}

/// One stream of the component.
struct Stream {
    framed: Connection,
    /// Passes over a stanza that is beyond a limit. Strangers send stanzas through the server, so ending
    /// the stream would let any of them cut off all others.
    skipper: Option<Skipper>,
    /// When something was written last.
    wrote: Instant,
    /// When something was heard last.
    heard: Instant,
    /// Whether the server was pinged since.
    pinged: bool,
}

impl Stream {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.framed.send(bytes).await?;
        self.wrote = Instant::now();
        Ok(())
    }
}

impl Task {
    async fn run(mut self) {
        let lane = Rc::clone(&self.core.lane);
        let counters = &lane.counters;
        let (component, connect) = (
            &self.component.domain.clone(),
            self.component.target.to_string(),
        );
        while self.core.order.get() != Order::Close {
            counters.component_connects.add(1);
            let opening = component::open(
                lane.ingress.config(),
                component,
                &self.component.target,
                &self.component.secret_file,
            );
            let opened = tokio::select! {
                opened = opening => opened,
                () = self.closing() => return,
            };
            match opened {
                Ok(framed) => {
                    tracing::info!(%component, connect, "component connected");
                    counters.components_open.add(1);
                    let lasted = self.converse(framed).await;
                    counters.components_open.remove(1);
                    if lasted >= LASTING {
                        self.backoff.reset();
                    }
                }
                Err(failure) => {
                    counters.component_connects_failed.add(1);
                    tracing::warn!(%component, connect, reason = %failure, "component not connected");
                }
            }
            self.pause().await;
        }
    }

    /// Waits before the next try.
    async fn pause(&mut self) {
        let wait = self.backoff.next();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.closing() => {}
        }
        let since = Instant::now().checked_sub(self.core.lane.ingress.config().egress_wait());
        let lost = since.map(|since| self.queue(|queue| queue.expire(since)));
        self.core
            .lane
            .counters
            .replies_lost
            .add(lost.unwrap_or_default());
    }

    async fn closing(&self) {
        while self.core.order.get() != Order::Close {
            self.core.changed.notified().await;
        }
    }

    fn queue<T: Default>(&self, with: impl FnOnce(&mut Queue) -> T) -> T {
        let queue = self.core.queue.as_ref();
        queue.map_or_else(T::default, |queue| with(&mut queue.borrow_mut()))
    }

    /// Serves one stream to its end. Returns how long it lasted.
    async fn converse(&self, framed: Connection) -> Duration {
        let begun = Instant::now();
        let mut stream = Stream {
            framed,
            skipper: None,
            wrote: begun,
            heard: begun,
            pinged: false,
        };
        match self.serve(&mut stream).await {
            Ok(()) => stream.framed.leave().await,
            Err(fault) => {
                let (component, connect) = (&self.component.domain, &self.component.target);
                tracing::warn!(%component, %connect, reason = %Words(&fault), "component disconnected");
                stream.framed.close_after(&fault).await;
            }
        }
        begun.elapsed()
    }

    /// Reads and writes until the stream ends, or `Ok` when it shall be closed.
    async fn serve(&self, stream: &mut Stream) -> Result<(), Fault> {
        let service = self.core.lane.ingress.service(&self.component.domain);
        let rule = Membership {
            lane: &self.core.lane,
            service: service.ok_or(Fault::Ended)?,
            last: RefCell::default(),
        };
        loop {
            let pause = self.take_units(stream, &rule)?;
            while !self.queue(|queue| queue.is_empty()) {
                self.write(stream).await?;
            }
            if self.core.order.get() == Order::Close {
                return Ok(());
            }
            if pause == Some(Pause::Turn) {
                stream.framed.rest().await;
                continue;
            }
            let reading = self.core.order.get() == Order::Run && pause.is_none();
            if !reading {
                // Who is not listened to cannot be silent.
                stream.heard = Instant::now();
            }
            let sign = self.next_sign(stream);
            tokio::select! {
                () = self.core.changed.notified() => {}
                read = stream.framed.fill(), if reading => {
                    read?;
                    stream.heard = Instant::now();
                    stream.pinged = false;
                }
                () = sleep_until(sign) => self.give_sign(stream).await?,
            }
            self.core.stalled.set(false);
            if !reading {
                stream.framed.rested();
            }
        }
    }

    /// When the silence will have been too long.
    fn next_sign(&self, stream: &Stream) -> Instant {
        let silences = match stream.pinged {
            false => SILENCES_TO_PING,
            true => SILENCES_TO_END,
        };
        let keepalive = self.component.keepalive;
        (stream.wrote + keepalive).min(stream.heard + keepalive * silences)
    }

    /// Breaks the silence.
    async fn give_sign(&self, stream: &mut Stream) -> Result<(), Fault> {
        let silence = stream.heard.elapsed();
        let keepalive = self.component.keepalive;
        if silence >= keepalive * SILENCES_TO_END {
            return Err(Fault::TimedOut("the server did not answer a ping"));
        }
        if silence < keepalive * SILENCES_TO_PING || stream.pinged {
            return stream.send(b" ").await;
        }
        stream.pinged = true;
        stream.send(&ping(&self.component.domain)).await
    }

    /// Writes one piece of what waits.
    async fn write(&self, stream: &mut Stream) -> Result<(), Fault> {
        let counters = &self.core.lane.counters;
        let chunks = self.queue(Queue::take);
        let stanzas: Vec<&[u8]> = chunks
            .iter()
            .map(|chunk| chunk.stanzas.as_slice())
            .collect();
        let written = stream.send(&stanzas.concat()).await;
        match &written {
            Ok(()) => {
                let replies = chunks.iter().map(|chunk| chunk.replies).sum();
                counters.component_replies.add(replies);
            }
            Err(_) => {
                let lost = self.queue(|queue| queue.put_back(chunks));
                counters.replies_lost.add(lost);
            }
        }
        written
    }

    /// Takes all whole units off the buffer. Returns why it stopped before, if it did.
    fn take_units(
        &self,
        stream: &mut Stream,
        rule: &Membership<'_>,
    ) -> Result<Option<Pause>, Fault> {
        if self.core.order.get() != Order::Run {
            return Ok(None);
        }
        let mut batch = Batch::new(&self.core.lane);
        let taken = self.take_each(stream, rule, &mut batch);
        self.core.pass_on(&self.session, &mut batch);
        taken
    }

    fn take_each(
        &self,
        stream: &mut Stream,
        rule: &Membership<'_>,
        batch: &mut Batch,
    ) -> Result<Option<Pause>, Fault> {
        let counters = &self.core.lane.counters;
        loop {
            if let Some(skipper) = &mut stream.skipper {
                if !stream.framed.skip(skipper)? {
                    return Ok(None);
                }
                stream.skipper = None;
            }
            if self.core.is_full() {
                self.core.stalled.set(true);
                counters.stalls.add(1);
                return Ok(Some(Pause::Full));
            }
            if stream.framed.is_turn_over() {
                return Ok(Some(Pause::Turn));
            }
            let len = match stream.framed.unit() {
                Ok(Unit::Element(len)) => len,
                Ok(Unit::Incomplete) => return Ok(None),
                Ok(Unit::Close(_)) => return Err(Fault::Ended),
                Ok(Unit::Header(_)) => return Err(XmlError::BadFormat.into()),
                Ok(Unit::Whitespace(len)) => {
                    stream.framed.consume(len);
                    continue;
                }
                Err(error) if error.is_limit() => {
                    counters.passed_over.add(1);
                    stream.skipper = Some(Skipper::default());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            match self.core.take_stanza(&stream.framed, len, rule, batch) {
                Ok(None) => {}
                // The server cut it out as one stanza, so what is wrong with it ends where it ends.
                Ok(Some(_)) | Err(Fault::Xml(_)) => counters.passed_over.add(1),
                Err(fault) => return Err(fault),
            }
            stream.framed.consume(len);
        }
    }
}

/// A ping that goes to the server and back to ourselves: of the server we know no other address that it
/// has for certain.
fn ping(domain: &Domain) -> Vec<u8> {
    let mut out = Vec::new();
    let attributes = [
        ("type", "get"),
        ("id", "ping"),
        ("from", domain.as_str()),
        ("to", domain.as_str()),
    ];
    write::element(&mut out, "iq", &attributes, |out| {
        write::empty(out, "ping", &[("xmlns", ns::PING)]);
    });
    out
}

/// The server has authenticated whom it lets send (XEP-0114 §3). A stanza whose addresses do not fit is
/// passed over, as is one of our own domain: that is our ping on its way back.
struct Membership<'a> {
    lane: &'a Lane,
    service: &'a Service,
    /// The server that sent last: most of what comes is of one.
    last: RefCell<Option<Domain>>,
}

impl Membership<'_> {
    fn sender(&self, from: &str, to: &str) -> Option<Domain> {
        let own = &self.service.domain;
        let ours = to == own.as_str() || Jid::parse(to).is_ok_and(|to| to.domain == *own);
        let mut last = self.last.borrow_mut();
        let from = match &*last {
            Some(last) if last.as_str() == from => last,
            _ => last.insert(Jid::parse(from).ok()?.domain),
        };
        (ours && from != own).then(|| from.clone())
    }
}

impl Rule for Membership<'_> {
    fn allow(&self, from: &str, to: &str) -> Result<Option<(Domain, &Service)>, Fault> {
        let sender = self.sender(from, to);
        if sender.is_none() {
            self.lane.counters.passed_over.add(1);
        }
        Ok(sender.map(|sender| (sender, self.service)))
    }

    fn odd(&self, _: Fault) -> Result<(), Fault> {
        self.lane.counters.passed_over.add(1);
        Ok(())
    }
}
