//! A scripted component connects to a simulated server.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use messages::{Clock, Drain, NodeId, Secret};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use simulators::server::{
    self, Answer, ComponentPort, Config, Count, Edges, Flood, Handles, Pace, Ping, PublishShape,
};
use simulators::{Authority, Kind, SimulatorError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &str = "open-sesame";

/// `a.test`, of which `b.test` is a component.
fn start() -> (Handles, SocketAddr) {
    let authority = Authority::new(&Clock::system()).unwrap();
    let config = Config {
        domain: "a.test".to_owned(),
        service: "b.test".to_owned(),
        component: Some(ComponentPort {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            secret: SECRET.to_owned(),
        }),
        ..Config::default()
    };
    let edges = Edges {
        identity: authority.issue(&["a.test"], Kind::ServerAndClient).unwrap(),
        roots: authority.roots().unwrap(),
        clock: Clock::system(),
    };
    let handles = server::start(&config, edges).unwrap();
    let address = handles.component.unwrap();
    (handles, address)
}

/// The component's end of its stream.
struct Component {
    socket: TcpStream,
    unread: String,
}

impl Component {
    /// Connects and sends a header; gives the id of the stream.
    async fn open(port: SocketAddr, namespace: &str, domain: &str) -> Self {
        let mut socket = TcpStream::connect(port).await.unwrap();
        let header = format!(
            "<stream:stream xmlns='{namespace}' xmlns:stream='http://etherx.jabber.org/streams' \
             to='{domain}'>"
        );
        socket.write_all(header.as_bytes()).await.unwrap();
        Self {
            socket,
            unread: String::new(),
        }
    }

    /// Connects and proves to know a secret; gives what is said to that.
    async fn connect(port: SocketAddr, secret: &str) -> (Self, String) {
        let mut component = Self::open(port, "jabber:component:accept", "b.test").await;
        let header = component.until("'>").await;
        assert!(
            header.contains("xmlns='jabber:component:accept'"),
            "{header}"
        );
        assert!(header.contains("from='b.test'"), "{header}");
        let (_, id) = header.split_once(" id='").unwrap();
        let (id, _) = id.split_once('\'').unwrap();
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, [id, secret].concat().as_bytes());
        let proof = hash.as_ref().iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
        component
            .send(&format!("<handshake>{proof}</handshake>"))
            .await;
        let answer = component.until("/>").await;
        (component, answer)
    }

    async fn admitted(port: SocketAddr) -> Self {
        let (component, answer) = Self::connect(port, SECRET).await;
        assert_eq!(answer, "<handshake/>");
        component
    }

    async fn send(&mut self, xml: &str) {
        self.socket.write_all(xml.as_bytes()).await.unwrap();
    }

    /// Everything up to and with `end`, or to the end of the connection.
    async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.unread.find(end) {
                let rest = self.unread.split_off(at + end.len());
                return std::mem::replace(&mut self.unread, rest);
            }
            let mut buffer = [0; 4096];
            let read = timeout(PATIENCE, self.socket.read(&mut buffer));
            let read = read.await.unwrap().unwrap_or(0);
            if read == 0 {
                return std::mem::take(&mut self.unread);
            }
            self.unread += str::from_utf8(&buffer[..read]).unwrap();
        }
    }

    /// The id of the next iq.
    async fn asked(&mut self) -> String {
        let iq = self.until("</iq>").await;
        assert!(iq.contains("from='a.test' to='b.test'"), "{iq}");
        let (_, id) = iq.split_once(" id='").unwrap();
        id.split_once('\'').unwrap().0.to_owned()
    }

    async fn answer(&mut self, id: &str) {
        self.send(&format!(
            "<iq type='result' from='b.test' to='a.test' id='{id}'/>"
        ))
        .await;
    }
}

async fn violations(server: &Handles) -> Vec<&'static str> {
    let counters = server.count.send(Count).await.unwrap();
    counters.violations.into_keys().collect()
}

#[actix::test]
async fn who_knows_the_secret_is_asked_and_answers() {
    let (server, port) = start();
    // It was asked before it came.
    let pinged = server.ping.send(Ping);
    let answered = async {
        let mut component = Component::admitted(port).await;
        let id = component.asked().await;
        component.answer(&id).await;
        component
    };
    let (pinged, mut component) = tokio::join!(pinged, answered);
    assert_eq!(pinged.unwrap().unwrap().answer, Answer::Result);

    // What it sends to itself comes back, and what it asks the server is answered.
    let own = "<iq type='get' id='1' from='b.test' to='b.test'><ping xmlns='urn:xmpp:ping'/></iq>";
    component.send(own).await;
    assert_eq!(component.until("</iq>").await, own);
    component
        .send("<iq type='get' id='2' from='b.test' to='a.test'><ping xmlns='urn:xmpp:ping'/></iq>")
        .await;
    let pong = component.until("</iq>").await;
    assert!(pong.starts_with("<iq type='result' from='a.test' to='b.test' id='2'>"));

    let counters = server.count.send(Count).await.unwrap();
    assert_eq!((counters.streams_in, counters.streams_out), (1, 0));
    assert!(counters.violations.is_empty(), "{counters:?}");
    let drain = Drain {
        deadline: Instant::now() + PATIENCE,
        farewell: Duration::ZERO,
    };
    let drained = tokio::join!(
        server.drain.send(drain),
        component.until("</stream:stream>")
    );
    assert_eq!(drained.1, "</stream:stream>");
    assert_eq!(drained.0.unwrap().abandoned, 0);
}

#[actix::test]
async fn who_does_not_know_the_secret_is_refused() {
    let (server, port) = start();
    for wrong in ["open sesame", ""] {
        let (mut component, answer) = Component::connect(port, wrong).await;
        assert!(answer.contains("<not-authorized "), "{answer}");
        component.until("</stream:stream>").await;
        assert_eq!(component.until("/").await, "", "the stream goes on");
    }
    assert_eq!(
        violations(&server).await,
        ["the component's handshake is wrong"]
    );
    // Nothing was put into the place of the component.
    let mut component = Component::admitted(port).await;
    let answered = async {
        let id = component.asked().await;
        component.answer(&id).await;
    };
    let (pinged, ()) = tokio::join!(server.ping.send(Ping), answered);
    assert_eq!(pinged.unwrap().unwrap().answer, Answer::Result);
}

#[actix::test]
async fn who_is_another_is_refused() {
    let (server, port) = start();
    let mut other = Component::open(port, "jabber:component:accept", "c.test").await;
    assert!(
        other
            .until("</stream:stream>")
            .await
            .contains("<host-unknown ")
    );
    let mut peer = Component::open(port, "jabber:server", "b.test").await;
    assert_eq!(peer.until("</stream:stream>").await, "");
    assert_eq!(
        violations(&server).await,
        [
            "the component has another domain",
            "the default namespace is not jabber:component:accept"
        ]
    );
}

#[actix::test]
async fn a_newer_one_takes_the_place_of_the_older() {
    let (server, port) = start();
    let mut older = Component::admitted(port).await;
    let mut newer = Component::admitted(port).await;
    assert!(older.until("</stream:stream>").await.contains("<conflict "));
    assert_eq!(older.until("/").await, "", "the older one is served yet");
    let answered = async {
        let id = newer.asked().await;
        newer.answer(&id).await;
    };
    let (pinged, ()) = tokio::join!(server.ping.send(Ping), answered);
    assert_eq!(pinged.unwrap().unwrap().answer, Answer::Result);
}

#[actix::test]
async fn stanzas_that_break_the_rules_end_the_stream() {
    for (stanza, condition, violation) in [
        (
            "<message xmlns='jabber:server' from='b.test' to='a.test'/>",
            "<invalid-namespace ",
            "a stanza is not in jabber:component:accept",
        ),
        (
            "<message from='c.test' to='a.test'/>",
            "<invalid-from ",
            "a stanza is from a domain that is not authenticated on its stream",
        ),
    ] {
        let (server, port) = start();
        let mut component = Component::admitted(port).await;
        component.send(stanza).await;
        let said = component.until("</stream:stream>").await;
        assert!(said.contains(condition), "{said}");
        assert_eq!(violations(&server).await, [violation]);
    }
}

fn flood(pace: Pace) -> Flood {
    Flood {
        devices: vec![(NodeId::new("node").unwrap(), Secret::new("secret").unwrap())],
        pushes: 50,
        pace,
        streams: 3,
        has_body: true,
        shape: PublishShape::Prosody,
        patience: Duration::from_secs(2),
    }
}

#[actix::test]
async fn a_flood_goes_over_the_stream_of_the_component() {
    for pace in [Pace::Outstanding(4), Pace::PerSecond(1_000)] {
        let (server, port) = start();
        let answering = async {
            let mut component = Component::admitted(port).await;
            for _ in 0..50 {
                let id = component.asked().await;
                component.answer(&id).await;
            }
        };
        let (report, ()) = tokio::join!(server.flood.send(flood(pace)), answering);
        let report = report.unwrap().unwrap();
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.latencies_micros.len(), 50);
        let (timed, lateness) = match pace {
            Pace::Outstanding(_) => (0, &[][..]),
            Pace::PerSecond(_) => (50, &report.lateness_micros[..]),
        };
        assert_eq!(report.lateness_micros.len(), timed);
        assert!(lateness.is_sorted());
    }
}

#[actix::test]
async fn an_answer_in_the_namespace_of_servers_is_none() {
    let (server, port) = start();
    let answering = async {
        let mut component = Component::admitted(port).await;
        for _ in 0..50 {
            let id = component.asked().await;
            component
                .send(&format!(
                    "<iq xmlns='jabber:server' type='result' from='b.test' to='a.test' id='{id}'/>"
                ))
                .await;
        }
    };
    let flood = flood(Pace::Outstanding(50));
    let (report, ()) = tokio::join!(server.flood.send(flood), answering);
    let report = report.unwrap().unwrap();
    assert_eq!((report.results, report.strays), (0, 50));
}

#[actix::test]
async fn without_a_component_a_request_fails() {
    let authority = Authority::new(&Clock::system()).unwrap();
    let config = Config {
        component: Some(ComponentPort {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            secret: SECRET.to_owned(),
        }),
        connect_timeout_millis: 50,
        ..Config::default()
    };
    let edges = Edges {
        identity: authority
            .issue(&["chat.localhost"], Kind::ServerAndClient)
            .unwrap(),
        roots: authority.roots().unwrap(),
        clock: Clock::system(),
    };
    let server = server::start(&config, edges).unwrap();
    let pinged = server.ping.send(Ping).await.unwrap();
    assert!(matches!(pinged, Err(SimulatorError::TimedOut)));
}
