//! A small XMPP server that has users with devices, and federates with the push service or has it as a
//! component.

mod component;
mod dialback;
mod flood;
mod hub;
mod inbound;
mod outbound;
mod stanza;
mod stream;
mod xml;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler, Message, Recipient, ResponseFuture};
use messages::{Clock, DeviceToken, Domain, Drain, Drained, Health, NodeId, Probe, Secret};
use rustls::RootCertStore;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::{Identity, SimulatorError};

use hub::Hub;
use xml::Element;

/// How the simulated server listens and behaves.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Its domain. Default `chat.localhost`.
    pub domain: String,
    /// Where other servers reach it; port 0 takes a free one. Default 127.0.0.1:0.
    pub address: SocketAddr,
    /// The domain of the push service. Default `push.localhost`.
    pub service: String,
    /// Where the push service listens for servers; may be told later by [`ServiceAt`]. Default none.
    pub service_address: Option<SocketAddr>,
    /// How it proves its domain on the stream it opens. Default `external`.
    pub authentication: Authentication,
    /// Where the push service connects as a component, over whose stream then goes all that is for it.
    /// Default none: it is another server.
    pub component: Option<ComponentPort>,
    /// How long a request may take until it counts as unanswered, in milliseconds. Default 30000.
    pub reply_timeout_millis: u64,
    /// How long connecting and authenticating may take, in milliseconds. Default 10000.
    pub connect_timeout_millis: u64,
    /// Requests that may be unanswered at a time, floods aside. Default 4096.
    pub requests_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            domain: "chat.localhost".into(),
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            service: "push.localhost".into(),
            service_address: None,
            authentication: Authentication::External,
            component: None,
            reply_timeout_millis: 30_000,
            connect_timeout_millis: 10_000,
            requests_max: 4096,
        }
    }
}

/// Where a server takes the push service as a component (XEP-0114). One stream at a time: a newer one
/// takes the place of the older.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComponentPort {
    /// Where to listen; port 0 takes a free one ([`Handles::component`] tells which).
    pub address: SocketAddr,
    /// What the component's handshake proves to know.
    pub secret: String,
}

impl fmt::Debug for ComponentPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComponentPort")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// How a server proves its domain to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Authentication {
    /// SASL EXTERNAL with its certificate (XEP-0178).
    #[default]
    External,
    /// Server dialback (XEP-0220).
    Dialback,
}

/// What the simulated server stands on.
pub struct Edges {
    /// Its certificate, for its domain.
    pub identity: Identity,
    /// Whom it trusts.
    pub roots: Arc<RootCertStore>,
    /// What certificates are compared with.
    pub clock: Clock,
}

/// How to reach a running simulator. All of it works from any thread.
#[derive(Clone, Debug)]
pub struct Handles {
    /// Its domain.
    pub domain: Domain,
    /// Where it listens for servers.
    pub address: SocketAddr,
    /// Where it listens for the component, if it does.
    pub component: Option<SocketAddr>,
    /// Tells it where the push service listens.
    pub service_at: Recipient<ServiceAt>,
    /// Registers a device for a user.
    pub register: Recipient<RegisterDevice>,
    /// Ends a registration.
    pub unregister: Recipient<UnregisterDevice>,
    /// Publishes a push.
    pub trigger: Recipient<Trigger>,
    /// Pings the push service.
    pub ping: Recipient<Ping>,
    /// Writes raw XML on its stream.
    pub send: Recipient<SendRaw>,
    /// Opens the stream of stanzas that nobody waits for.
    pub watch: Recipient<Watch>,
    /// Publishes very many pushes.
    pub flood: Recipient<Flood>,
    /// Tells how far the flood is that runs.
    pub progress: Recipient<AskProgress>,
    /// Tells what was counted.
    pub count: Recipient<Count>,
    /// Stops it: closes its streams and takes no new ones.
    pub drain: Recipient<Drain>,
    /// Tells its counters in the form all actors share.
    pub probe: Recipient<Probe>,
}

/// The push service listens there now. Streams that are open stay.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct ServiceAt(pub SocketAddr);

/// A user registers a device with the push service, by the command `v1-register-push` of legacy Monal.
/// The answer's status must literally be `complete`.
#[derive(Clone, Message)]
#[rtype(result = "Result<RegisteredDevice, SimulatorError>")]
pub struct RegisterDevice {
    /// Localpart of the user; the command comes from `user@domain/phone`.
    pub user: String,
    /// The device UUID that the client chose.
    pub node: NodeId,
    /// The device's token.
    pub device_token: DeviceToken,
}

/// What the push service gave for a device.
#[derive(Debug)]
pub struct RegisteredDevice {
    /// The node to publish to.
    pub node: NodeId,
    /// The secret to publish with.
    pub secret: Secret,
    /// From the request to its answer, connecting included.
    pub took: Duration,
}

/// A user ends a registration, by the command `v1-unregister-push`. Answered with the time it took.
#[derive(Clone, Message)]
#[rtype(result = "Result<Duration, SimulatorError>")]
pub struct UnregisterDevice {
    /// Localpart of the user.
    pub user: String,
    /// The node registered.
    pub node: NodeId,
}

/// The server publishes a push to a node. An error stanza is an answer too.
#[derive(Clone, Message)]
#[rtype(result = "Result<Answered, SimulatorError>")]
pub struct Trigger {
    /// The node.
    pub node: NodeId,
    /// The secret that the client enabled push with.
    pub secret: Option<Secret>,
    /// Whether there is a message with a body.
    pub has_body: bool,
    /// Whose form the publish has.
    pub shape: PublishShape,
}

/// What a message of [`PublishShape::ProsodyWithContent`] says.
pub const TEXT: &str = "Lunch at <noon> & \"more\"?";
/// Who wrote it.
pub const SENDER: &str = "bob@chat.localhost/desk";

/// Whose publishes to imitate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PublishShape {
    /// Prosody with `mod_cloud_notify`: a summary form of type `form` with empty fields.
    #[default]
    Prosody,
    /// The same with `push_notification_with_body` and `push_notification_with_sender`: [`TEXT`] by
    /// [`SENDER`].
    ProsodyWithContent,
    /// ejabberd with `mod_push`: a summary of type `submit` for a body, else no summary at all.
    Ejabberd,
}

/// The server pings the push service (XEP-0199). An error stanza is an answer too.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Answered, SimulatorError>")]
pub struct Ping;

/// The answer to an iq and how long it took, connecting included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What was answered.
    pub answer: Answer,
    /// From the request to its answer.
    pub took: Duration,
}

/// What an iq was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `result`.
    Result,
    /// `error`.
    Error(StanzaError),
}

/// Type and condition of an error stanza (RFC 6120 §8.3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StanzaError {
    /// `cancel`, `wait` and so on.
    pub kind: String,
    /// The condition's element name, such as `item-not-found`.
    pub condition: String,
}

impl fmt::Display for StanzaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.condition)
    }
}

/// Writes XML on the stream to the push service as it is, for tests that misbehave. Answered when it is
/// written.
#[derive(Clone, Message)]
#[rtype(result = "Result<(), SimulatorError>")]
pub struct SendRaw(pub String);

/// Opens the stream of stanzas that came in and that no request waits for; a stream opened before ends.
/// What does not fit is counted.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Incoming")]
pub struct Watch {
    /// Most stanzas that wait to be looked at.
    pub capacity: usize,
    /// Whether requests are left to the watcher, to be answered by [`SendRaw`] or not at all. If not,
    /// pings are answered and all else is refused.
    pub takes_requests: bool,
}

/// The stream of stanzas that no request waits for.
#[derive(actix::MessageResponse)]
pub struct Incoming(pub mpsc::Receiver<Stanza>);

/// A stanza as it came in, for a test to look at.
#[derive(Clone, PartialEq, Eq)]
pub struct Stanza {
    /// `iq`, `message` or `presence`.
    pub name: String,
    /// Sender.
    pub from: String,
    /// Addressee.
    pub to: String,
    /// The `type` attribute.
    pub kind: Option<String>,
    /// The `id` attribute.
    pub id: Option<String>,
    /// The whole stanza.
    pub xml: String,
}

/// Publishes very many pushes in the shortest form that Prosody would send, and waits for all answers.
#[derive(Clone, Message)]
#[rtype(result = "Result<FloodReport, SimulatorError>")]
pub struct Flood {
    /// Whom to publish to, in turn: node and secret.
    pub devices: Vec<(NodeId, Secret)>,
    /// How many pushes.
    pub pushes: u32,
    /// How fast.
    pub pace: Pace,
    /// Streams to publish on, each a connection of its own, in turn. A component has one in any case.
    pub streams: usize,
    /// Whether there is a message with a body.
    pub has_body: bool,
    /// Whose form the publishes have.
    pub shape: PublishShape,
    /// How long to wait for the answers once all is written.
    pub patience: Duration,
}

/// How fast a flood flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As many unanswered at a time, over all streams: a new one for each answer.
    Outstanding(u32),
    /// As many per second, whatever is unanswered. Pushes are written a millisecond or two after they
    /// were due, because nobody spins for the moment; that is told apart from the time to the answer, in
    /// [`FloodReport::lateness_micros`].
    PerSecond(u32),
}

/// What came of a flood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FloodReport {
    /// Pushes written.
    pub sent: u64,
    /// Answered with `result`.
    pub results: u64,
    /// Answered with `error`, by type and condition.
    pub errors: BTreeMap<StanzaError, u64>,
    /// Answers to an iq that had its answer before.
    pub duplicates: u64,
    /// Answers with a wrong address or to an iq that was never sent.
    pub strays: u64,
    /// Pushes without an answer.
    pub unanswered: u64,
    /// From the first push to the last answer.
    pub elapsed: Duration,
    /// Time from the write of each answered push to its answer, sorted, in microseconds.
    pub latencies_micros: Vec<u32>,
    /// Time from when each push was due to its write, sorted, in microseconds; of floods with a rate. It
    /// is the flood's own, or a sign that what was written before was not read in time.
    pub lateness_micros: Vec<u32>,
}

impl FloodReport {
    /// The latency that `share` (0 to 1) of the answered pushes did not exceed, in microseconds.
    #[must_use]
    pub fn quantile_micros(&self, share: f64) -> u32 {
        quantile(&self.latencies_micros, share)
    }

    /// The lateness that `share` (0 to 1) of the pushes of a flood with a rate did not exceed, in
    /// microseconds.
    #[must_use]
    pub fn lateness_quantile_micros(&self, share: f64) -> u32 {
        quantile(&self.lateness_micros, share)
    }

    /// Answered pushes per second.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn rate(&self) -> f64 {
        let answered = self.latencies_micros.len() as f64;
        answered / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// Whether every push got exactly one answer and that a `result`.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.results == self.sent && self.duplicates == 0 && self.strays == 0
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an index into a list of times"
)]
fn quantile(sorted: &[u32], share: f64) -> u32 {
    let last = sorted.len().saturating_sub(1);
    let index = (last as f64 * share.clamp(0.0, 1.0)).ceil() as usize;
    sorted.get(index).copied().unwrap_or(0)
}

/// Asks how far the flood is that runs now.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Progress")]
pub struct AskProgress;

/// How far a flood is; nothing without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, actix::MessageResponse)]
pub struct Progress {
    /// Pushes written.
    pub written: u32,
    /// Those of them that have their answer.
    pub answered: u32,
}

/// Asks what was counted.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Counters")]
pub struct Count;

/// What was counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, actix::MessageResponse)]
pub struct Counters {
    /// Iqs written that want an answer.
    pub requests: u64,
    /// Answers that a request waited for.
    pub answers: u64,
    /// Answers to an iq that was answered before, or is unknown.
    pub strays: u64,
    /// Answers with the right id from or to a wrong address.
    pub wrong_addresses: u64,
    /// Requests that were not answered in time.
    pub unanswered: u64,
    /// Breaches of the rules of streams and stanzas, each with its explanation.
    pub violations: BTreeMap<&'static str, u64>,
    /// Streams that other servers, or components, opened and authenticated.
    pub streams_in: u64,
    /// Streams opened and authenticated.
    pub streams_out: u64,
    /// Stanzas that no watcher could take.
    pub unobserved: u64,
}

/// Starts on the current arbiter. To give it a thread of its own, call this inside
/// `actix::Arbiter::spawn_fn`.
///
/// # Errors
/// [`SimulatorError::Bind`] and [`SimulatorError::Tls`].
#[allow(
    clippy::needless_pass_by_value,
    reason = "all actors take their edges by value"
)]
pub fn start(config: &Config, edges: Edges) -> Result<Handles, SimulatorError> {
    let hub = Rc::new(Hub::new(config, &edges)?);
    let (listener, address) = crate::bind(config.address)?;
    actix_rt::spawn(inbound::listen(Rc::clone(&hub), listener));
    let component = match &config.component {
        Some(port) => {
            let (listener, address) = crate::bind(port.address)?;
            actix_rt::spawn(component::listen(Rc::clone(&hub), listener));
            Some(address)
        }
        None => None,
    };
    let server = Server { hub }.start();
    Ok(Handles {
        domain: Domain::new(&config.domain),
        address,
        component,
        service_at: server.clone().recipient(),
        register: server.clone().recipient(),
        unregister: server.clone().recipient(),
        trigger: server.clone().recipient(),
        ping: server.clone().recipient(),
        send: server.clone().recipient(),
        watch: server.clone().recipient(),
        flood: server.clone().recipient(),
        progress: server.clone().recipient(),
        count: server.clone().recipient(),
        drain: server.clone().recipient(),
        probe: server.recipient(),
    })
}

struct Server {
    hub: Rc<Hub>,
}

impl Actor for Server {
    type Context = Context<Self>;
}

impl Handler<ServiceAt> for Server {
    type Result = ();

    fn handle(&mut self, ServiceAt(address): ServiceAt, _: &mut Self::Context) {
        self.hub.service_address.set(Some(address));
    }
}

impl Handler<RegisterDevice> for Server {
    type Result = ResponseFuture<Result<RegisteredDevice, SimulatorError>>;

    fn handle(&mut self, request: RegisterDevice, _: &mut Self::Context) -> Self::Result {
        let hub = Rc::clone(&self.hub);
        Box::pin(async move {
            let node = request.node.as_str();
            let payload = stanza::register(node, request.device_token.as_str());
            let asker = user(&hub, &request.user);
            let (answer, took) = hub.ask("set", &asker, &payload).await?;
            let fields = completed(&answer, "v1-register-push", &hub.config.service, node)?;
            let secret = fields
                .get("secret")
                .and_then(|secret| Secret::new(secret).ok())
                .ok_or(SimulatorError::Protocol("the form has no secret"))?;
            Ok(RegisteredDevice {
                node: request.node,
                secret,
                took,
            })
        })
    }
}

impl Handler<UnregisterDevice> for Server {
    type Result = ResponseFuture<Result<Duration, SimulatorError>>;

    fn handle(&mut self, request: UnregisterDevice, _: &mut Self::Context) -> Self::Result {
        let hub = Rc::clone(&self.hub);
        Box::pin(async move {
            let node = request.node.as_str();
            let asker = user(&hub, &request.user);
            let payload = stanza::unregister(node);
            let (answer, took) = hub.ask("set", &asker, &payload).await?;
            completed(&answer, "v1-unregister-push", &hub.config.service, node)?;
            Ok(took)
        })
    }
}

impl Handler<Trigger> for Server {
    type Result = ResponseFuture<Result<Answered, SimulatorError>>;

    fn handle(&mut self, push: Trigger, _: &mut Self::Context) -> Self::Result {
        let secret = push.secret.as_ref().map(Secret::as_str);
        let payload = stanza::publish(push.shape, push.node.as_str(), secret, push.has_body);
        ask_as_server(&self.hub, "set", payload)
    }
}

impl Handler<Ping> for Server {
    type Result = ResponseFuture<Result<Answered, SimulatorError>>;

    fn handle(&mut self, _: Ping, _: &mut Self::Context) -> Self::Result {
        ask_as_server(&self.hub, "get", hub::ping())
    }
}

impl Handler<SendRaw> for Server {
    type Result = ResponseFuture<Result<(), SimulatorError>>;

    fn handle(&mut self, SendRaw(xml): SendRaw, _: &mut Self::Context) -> Self::Result {
        let hub = Rc::clone(&self.hub);
        Box::pin(async move { hub.send(xml.as_bytes()).await })
    }
}

impl Handler<Watch> for Server {
    type Result = Incoming;

    fn handle(&mut self, watch: Watch, _: &mut Self::Context) -> Self::Result {
        let (sender, receiver) = mpsc::channel(watch.capacity.max(1));
        *self.hub.watcher.borrow_mut() = Some(hub::Watcher {
            sender,
            takes_requests: watch.takes_requests,
        });
        Incoming(receiver)
    }
}

impl Handler<Flood> for Server {
    type Result = ResponseFuture<Result<FloodReport, SimulatorError>>;

    fn handle(&mut self, flood: Flood, _: &mut Self::Context) -> Self::Result {
        let hub = Rc::clone(&self.hub);
        Box::pin(async move { flood::run(&hub, flood).await })
    }
}

impl Handler<AskProgress> for Server {
    type Result = Progress;

    fn handle(&mut self, _: AskProgress, _: &mut Self::Context) -> Self::Result {
        let flood = self.hub.flood.borrow();
        flood
            .as_ref()
            .map(flood::Table::progress)
            .unwrap_or_default()
    }
}

impl Handler<Count> for Server {
    type Result = Counters;

    fn handle(&mut self, _: Count, _: &mut Self::Context) -> Self::Result {
        self.hub.counters.borrow().clone()
    }
}

impl Handler<Drain> for Server {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, drain: Drain, _: &mut Self::Context) -> Self::Result {
        let hub = Rc::clone(&self.hub);
        Box::pin(async move {
            let abandoned = hub.settle(drain.deadline).await;
            hub.stop.send_replace(true);
            let deadline = drain.deadline.into();
            let closed = async {
                hub.disconnect().await;
                hub.stop.closed().await;
            };
            // Peers that do not close by the deadline are left alone.
            let _ended = tokio::time::timeout_at(deadline, closed).await;
            Drained { abandoned }
        })
    }
}

impl Handler<Probe> for Server {
    type Result = Health;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
        let counters = self.hub.counters.borrow();
        Health {
            counters: vec![
                ("server_requests_total", counters.requests),
                ("server_answers_total", counters.answers),
                ("server_strays_total", counters.strays),
                ("server_unanswered_total", counters.unanswered),
                (
                    "server_violations_total",
                    counters.violations.values().sum(),
                ),
            ],
        }
    }
}

/// The address of a user's phone.
fn user(hub: &Hub, localpart: &str) -> String {
    format!("{localpart}@{}/phone", hub.config.domain)
}

/// Sends an iq from the server itself.
fn ask_as_server(
    hub: &Rc<Hub>,
    kind: &'static str,
    payload: String,
) -> ResponseFuture<Result<Answered, SimulatorError>> {
    let hub = Rc::clone(hub);
    Box::pin(async move {
        let domain = hub.config.domain.clone();
        let (answer, took) = hub.ask(kind, &domain, &payload).await?;
        Ok(Answered {
            answer: hub::answer_of(&answer),
            took,
        })
    })
}

/// Checks the answer to a v1 command as legacy Monal would, and gives the fields of its form.
fn completed<'a>(
    answer: &'a Element,
    command: &str,
    service: &str,
    node: &str,
) -> Result<BTreeMap<&'a str, &'a str>, SimulatorError> {
    let wrong = |explanation| Err(SimulatorError::Protocol(explanation));
    if let Answer::Error(error) = hub::answer_of(answer) {
        return Err(SimulatorError::Refused(error));
    }
    let Some(done) = answer.child("command", stanza::COMMANDS) else {
        return wrong("the answer has no command");
    };
    if done.attribute("node") != Some(command) {
        return wrong("the command's node is not the one asked for");
    }
    // XEP-0050 has `completed`, but legacy Monal looks for this.
    if done.attribute("status") != Some("complete") {
        return wrong("the command's status is not literally complete");
    }
    let Some(form) = done.child("x", stanza::FORMS) else {
        return wrong("the command has no form");
    };
    let fields: BTreeMap<&str, &str> = form
        .children
        .iter()
        .filter(|field| field.is("field", stanza::FORMS))
        .filter_map(|field| {
            let value = field.child("value", stanza::FORMS)?;
            Some((field.attribute("var")?, value.text.as_str()))
        })
        .collect();
    let form_type = fields
        .get("FORM_TYPE")
        .and_then(|form_type| form_type.strip_prefix(stanza::FORM_TYPE));
    if form_type != Some(command) {
        return wrong("the form's FORM_TYPE is wrong");
    }
    if fields.get("jid") != Some(&service) {
        return wrong("the form's jid is not the service");
    }
    if fields.get("node") != Some(&node) {
        return wrong("the form's node is not the one sent");
    }
    Ok(fields)
}
