//! Two simulated servers federate with each other, and with scripted peers.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use messages::{Clock, DeviceToken, Drain, Drained, NodeId, Probe, Secret};
use rustls::RootCertStore;
use simulators::server::{
    self, Answer, Authentication, Config, Count, Edges, Flood, Handles, Pace, Ping, PublishShape,
    RegisterDevice, SendRaw, ServiceAt, Stanza, StanzaError, Trigger, UnregisterDevice, Watch,
};
use simulators::{Authority, Identity, Kind, SimulatorError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn start(
    domain: &str,
    service: &str,
    authentication: Authentication,
    identity: Identity,
    roots: &Arc<RootCertStore>,
) -> Handles {
    let config = Config {
        domain: domain.to_owned(),
        service: service.to_owned(),
        authentication,
        ..Config::default()
    };
    let edges = Edges {
        identity,
        roots: Arc::clone(roots),
        clock: Clock::system(),
    };
    server::start(&config, edges).unwrap()
}

/// Two servers, `a.test` and `b.test`, that know each other's address.
async fn two(authentication: Authentication) -> (Handles, Handles) {
    let authority = Authority::new(&Clock::system()).unwrap();
    two_of(&authority, authentication).await
}

async fn two_of(authority: &Authority, authentication: Authentication) -> (Handles, Handles) {
    let roots = authority.roots().unwrap();
    let server = |domain, service| {
        let identity = authority.issue(&[domain], Kind::ServerAndClient).unwrap();
        start(domain, service, authentication, identity, &roots)
    };
    let (a, b) = (server("a.test", "b.test"), server("b.test", "a.test"));
    a.service_at.send(ServiceAt(b.address)).await.unwrap();
    b.service_at.send(ServiceAt(a.address)).await.unwrap();
    (a, b)
}

async fn next(stanzas: &mut server::Incoming) -> Stanza {
    timeout(PATIENCE, stanzas.0.recv()).await.unwrap().unwrap()
}

fn unavailable() -> StanzaError {
    StanzaError {
        kind: "cancel".to_owned(),
        condition: "service-unavailable".to_owned(),
    }
}

#[actix::test]
async fn iqs_travel_both_ways() {
    for authentication in [Authentication::External, Authentication::Dialback] {
        let (a, b) = two(authentication).await;
        for server in [&a, &b, &a] {
            let answered = server.ping.send(Ping).await.unwrap().unwrap();
            assert_eq!(answered.answer, Answer::Result);
        }
        for server in [&a, &b] {
            let counters = server.count.send(Count).await.unwrap();
            assert_eq!((counters.streams_in, counters.streams_out), (1, 1));
            assert_eq!(counters.requests, counters.answers);
            assert!(counters.violations.is_empty(), "{counters:?}");
        }
        let health = a.probe.send(Probe).await.unwrap();
        assert!(health.counters.contains(&("server_answers_total", 2)));
    }
}

#[actix::test]
async fn publishes_and_commands_are_sent_and_errors_are_answers() {
    let (a, b) = two(Authentication::External).await;
    let mut seen = b
        .watch
        .send(Watch {
            capacity: 10,
            takes_requests: false,
        })
        .await
        .unwrap();
    let node = NodeId::new("n<1>").unwrap();
    let secret = Secret::new("s&1").unwrap();
    for shape in [PublishShape::Prosody, PublishShape::Ejabberd] {
        let push = Trigger {
            node: node.clone(),
            secret: Some(secret.clone()),
            has_body: true,
            shape,
        };
        let answered = a.trigger.send(push).await.unwrap().unwrap();
        assert_eq!(answered.answer, Answer::Error(unavailable()));
        let publish = next(&mut seen).await;
        assert_eq!(
            (publish.from.as_str(), publish.to.as_str()),
            ("a.test", "b.test")
        );
        assert_eq!(publish.kind.as_deref(), Some("set"));
        assert!(publish.xml.contains("node='n&lt;1&gt;'"));
        assert!(publish.xml.contains("<value>s&amp;1</value>"));
    }
    let registered = a.register.send(RegisterDevice {
        user: "ada".to_owned(),
        node: node.clone(),
        device_token: DeviceToken::parse(&"ab".repeat(32)).unwrap(),
    });
    match registered.await.unwrap() {
        Err(SimulatorError::Refused(error)) => assert_eq!(error, unavailable()),
        other => panic!("{other:?}"),
    }
    assert_eq!(next(&mut seen).await.from, "ada@a.test/phone");
    let user = "ada".to_owned();
    let ended = a.unregister.send(UnregisterDevice { user, node }).await;
    assert!(matches!(ended.unwrap(), Err(SimulatorError::Refused(_))));
    assert!(next(&mut seen).await.xml.contains("v1-unregister-push"));
}

/// How a registration ends when the push service's answer to it is this, with `ID` for its id.
async fn register_with(answer: &str) -> Result<server::RegisteredDevice, SimulatorError> {
    let (a, b) = two(Authentication::External).await;
    let mut seen = b.watch.send(TAKE).await.unwrap();
    let request = a.register.send(RegisterDevice {
        user: "ada".to_owned(),
        node: NodeId::new("uuid-1").unwrap(),
        device_token: DeviceToken::parse(&"ab".repeat(32)).unwrap(),
    });
    let answered = async {
        let asked = next(&mut seen).await;
        let answer = answer.replace("ID", &asked.id.unwrap());
        b.send.send(SendRaw(answer)).await.unwrap().unwrap();
    };
    let (registered, ()) = tokio::join!(request, answered);
    registered.unwrap()
}

const TAKE: Watch = Watch {
    capacity: 1000,
    takes_requests: true,
};

const COMPLETE: &str = "<iq type='result' from='b.test' to='ada@a.test/phone' id='ID'>\
    <command xmlns='http://jabber.org/protocol/commands' node='v1-register-push' sessionid='s' \
    status='complete'><x xmlns='jabber:x:data' type='form'>\
    <field var='FORM_TYPE' type='hidden'>\
    <value>https://github.com/tmolitor-stud-tu/mod_push_appserver/#v1-register-push</value></field>\
    <field var='jid' type='jid-single'><value>b.test</value></field>\
    <field var='node'><value>uuid-1</value></field>\
    <field var='secret'><value>c0ffee</value></field></x></command></iq>";

#[actix::test]
async fn a_registration_is_complete_when_its_form_is() {
    let registered = register_with(COMPLETE).await.unwrap();
    assert_eq!(registered.node.as_str(), "uuid-1");
    assert_eq!(registered.secret.as_str(), "c0ffee");
    for (right, wrong) in [
        ("'complete'", "'completed'"),
        ("node='v1-register-push'", "node='v1-unregister-push'"),
        (
            "appserver/#v1-register-push<",
            "appserver/#v1-unregister-push<",
        ),
        (">b.test<", ">c.test<"),
        (">uuid-1<", ">UUID-1<"),
        ("'secret'", "'token'"),
        ("jabber:x:data", "jabber:x:date"),
        ("protocol/commands", "protocol/command"),
    ] {
        match register_with(&COMPLETE.replace(right, wrong)).await {
            Err(SimulatorError::Protocol(_)) => {}
            other => panic!("{wrong}: {other:?}"),
        }
    }
}

#[actix::test]
async fn only_the_right_answer_counts() {
    let (a, b) = two(Authentication::External).await;
    let mut requests = b.watch.send(TAKE).await.unwrap();
    let mut strays = a.watch.send(TAKE).await.unwrap();
    let say = async |xml: String| b.send.send(SendRaw(xml)).await.unwrap().unwrap();
    let answered = async {
        let id = next(&mut requests).await.id.unwrap();
        say(format!(
            "<iq type='result' from='x@b.test' to='a.test' id='{id}'/>"
        ))
        .await;
        say(format!(
            "<iq type='result' from='b.test' to='u@a.test' id='{id}'/>"
        ))
        .await;
        say(format!(
            "<iq type='result' from='b.test' to='a.test' id='x{id}'/>"
        ))
        .await;
        say("<iq type='what' from='b.test' to='a.test' id='1'/>".to_owned()).await;
        say("<message from='b.test' to='a.test'/>".to_owned()).await;
        say(format!(
            "<iq type='result' from='b.test' to='a.test' id='{id}'/>"
        ))
        .await;
        say(format!(
            "<iq type='result' from='b.test' to='a.test' id='{id}'/>"
        ))
        .await;
        id
    };
    let (pinged, id) = tokio::join!(a.ping.send(Ping), answered);
    assert_eq!(pinged.unwrap().unwrap().answer, Answer::Result);
    assert_eq!(next(&mut strays).await.id, Some(format!("x{id}")));
    assert_eq!(next(&mut strays).await.name, "message");
    assert_eq!(next(&mut strays).await.id, Some(id));
    let counters = a.count.send(Count).await.unwrap();
    assert_eq!((counters.strays, counters.wrong_addresses), (2, 2));
    assert_eq!(counters.violations["an iq has no proper type"], 1);
}

#[actix::test]
async fn stanzas_that_break_the_rules_end_the_stream() {
    for (stanza, violation, our_view) in [
        (
            "<message from='c.test' to='a.test'/>",
            "a stanza is from a domain that is not authenticated on its stream",
            "the service closed our stream with a stream error",
        ),
        (
            "<message from='b.test' to='c.test'/>",
            "a stanza is to a domain that is not here",
            "the service closed our stream with a stream error",
        ),
        (
            "<message to='a.test'/>",
            "a stanza has no from or no to",
            "the service closed our stream with a stream error",
        ),
        (
            "<message xmlns='jabber:client' from='b.test' to='a.test'/>",
            "a stanza is not in jabber:server",
            "the service closed our stream with a stream error",
        ),
    ] {
        let (a, b) = two(Authentication::External).await;
        b.send
            .send(SendRaw(stanza.to_owned()))
            .await
            .unwrap()
            .unwrap();
        let told = async {
            while !b
                .count
                .send(Count)
                .await
                .unwrap()
                .violations
                .contains_key(our_view)
            {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, told).await.unwrap();
        let counters = a.count.send(Count).await.unwrap();
        assert_eq!(counters.violations[violation], 1, "{stanza}");
        // A new stream takes its place.
        let pinged = b.ping.send(Ping).await.unwrap().unwrap();
        assert_eq!(pinged.answer, Answer::Result);
    }
}

#[actix::test]
async fn a_certificate_that_does_not_fit_does_not_authenticate() {
    let authority = Authority::new(&Clock::system()).unwrap();
    let stranger = Authority::new(&Clock::system()).unwrap();
    let roots = authority.roots().unwrap();
    for (identity, is_good) in [
        (authority.issue(&["a.test"], Kind::ServerAndClient), true),
        (authority.issue(&["a.test"], Kind::ServerOnly), true),
        (authority.issue(&["c.test"], Kind::ServerAndClient), false),
        (authority.issue(&["a.test"], Kind::Expired), false),
        (authority.issue(&["a.test"], Kind::SelfSigned), false),
        (stranger.issue(&["a.test"], Kind::ServerAndClient), false),
    ] {
        let good = authority.issue(&["b.test"], Kind::ServerAndClient).unwrap();
        let external = Authentication::External;
        let a = start("a.test", "b.test", external, identity.unwrap(), &roots);
        let b = start("b.test", "a.test", external, good, &roots);
        a.service_at.send(ServiceAt(b.address)).await.unwrap();
        b.service_at.send(ServiceAt(a.address)).await.unwrap();
        // As the client of the connection.
        let sent = a.send.send(SendRaw(String::new())).await.unwrap();
        match sent {
            Ok(()) => assert!(is_good),
            Err(SimulatorError::NotAuthenticated) => assert!(!is_good),
            Err(other) => panic!("{other:?}"),
        }
        // As its server.
        let sent = b.send.send(SendRaw(String::new())).await.unwrap();
        match sent {
            Ok(()) => assert!(is_good),
            Err(SimulatorError::Connection(_)) => assert!(!is_good),
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[actix::test]
async fn a_key_that_was_not_made_here_does_not_authenticate() {
    let authority = Authority::new(&Clock::system()).unwrap();
    let (a, b) = two_of(&authority, Authentication::Dialback).await;
    // A third server that says it is a.test, and even has the certificate.
    let edges = Edges {
        identity: authority.issue(&["a.test"], Kind::ServerAndClient).unwrap(),
        roots: authority.roots().unwrap(),
        clock: Clock::system(),
    };
    let config = Config {
        domain: "a.test".to_owned(),
        service: "b.test".to_owned(),
        service_address: Some(b.address),
        authentication: Authentication::Dialback,
        ..Config::default()
    };
    let impostor = server::start(&config, edges).unwrap();
    match impostor.ping.send(Ping).await.unwrap() {
        Err(SimulatorError::NotAuthenticated) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(b.count.send(Count).await.unwrap().streams_in, 0);
    assert!(a.ping.send(Ping).await.unwrap().is_ok());
}

/// A dialogue in clear text: what the server says to what is written, until it closes.
async fn clear_text(said: &str) -> String {
    let (a, _b) = two(Authentication::External).await;
    let mut socket = TcpStream::connect(a.address).await.unwrap();
    socket.write_all(said.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the last word is an end too.
    let _reset = timeout(PATIENCE, socket.read_to_end(&mut answer))
        .await
        .unwrap();
    String::from_utf8(answer).unwrap()
}

#[actix::test]
async fn clear_text_is_for_starttls_alone() {
    let header = "<?xml version='1.0'?><stream:stream xmlns='jabber:server' \
        xmlns:stream='http://etherx.jabber.org/streams' from='b.test' to='a.test' version='1.0'>";
    let refused = clear_text(&format!("{header}<message from='b.test' to='a.test'/>")).await;
    assert!(refused.contains("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/>"));
    assert!(refused.contains("<policy-violation "));
    let unknown = clear_text(&header.replace("to='a.test'", "to='z.test'")).await;
    assert!(unknown.contains("from='a.test' to='b.test'"));
    assert!(unknown.contains("<host-unknown "));
    let injected = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/><message/>";
    let injected = clear_text(&format!("{header}{injected}")).await;
    assert!(injected.ends_with("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"));
    assert_eq!(clear_text("<a xmlns='jabber:client'>").await, "");
    assert_eq!(
        clear_text(&header.replace("jabber:server", "jabber:client")).await,
        ""
    );
}

#[actix::test]
async fn a_request_without_an_address_or_an_answer_fails() {
    let authority = Authority::new(&Clock::system()).unwrap();
    let roots = authority.roots().unwrap();
    let identity = authority.issue(&["a.test"], Kind::ServerAndClient).unwrap();
    let lost = start(
        "a.test",
        "b.test",
        Authentication::External,
        identity,
        &roots,
    );
    let pinged = lost.ping.send(Ping).await.unwrap();
    assert!(matches!(pinged, Err(SimulatorError::NoServiceAddress)));

    let identity = authority.issue(&["a.test"], Kind::ServerAndClient).unwrap();
    let service = authority.issue(&["b.test"], Kind::ServerAndClient).unwrap();
    let b = start(
        "b.test",
        "a.test",
        Authentication::External,
        service,
        &roots,
    );
    let config = Config {
        domain: "a.test".to_owned(),
        service: "b.test".to_owned(),
        service_address: Some(b.address),
        reply_timeout_millis: 50,
        requests_max: 1,
        ..Config::default()
    };
    let edges = Edges {
        identity,
        roots,
        clock: Clock::system(),
    };
    let a = server::start(&config, edges).unwrap();
    let _unanswering = b.watch.send(TAKE).await.unwrap();
    let (first, second) = tokio::join!(a.ping.send(Ping), a.ping.send(Ping));
    assert!(matches!(first.unwrap(), Err(SimulatorError::TimedOut)));
    assert!(matches!(second.unwrap(), Err(SimulatorError::Busy)));
    assert_eq!(a.count.send(Count).await.unwrap().unanswered, 1);
}

#[actix::test]
async fn a_drain_waits_for_answers_and_closes_streams() {
    let (a, b) = two(Authentication::External).await;
    let mut requests = b.watch.send(TAKE).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    let answered = async {
        let id = next(&mut requests).await.id.unwrap();
        let drained = a.drain.send(Drain {
            deadline,
            farewell: Duration::from_secs(1),
        });
        let answer = format!("<iq type='result' from='b.test' to='a.test' id='{id}'/>");
        let (drained, sent) = tokio::join!(drained, b.send.send(SendRaw(answer)));
        sent.unwrap().unwrap();
        drained.unwrap()
    };
    let (pinged, drained) = tokio::join!(a.ping.send(Ping), answered);
    assert_eq!(pinged.unwrap().unwrap().answer, Answer::Result);
    assert_eq!(drained, Drained { abandoned: 0 });
    assert!(matches!(
        a.ping.send(Ping).await.unwrap(),
        Err(SimulatorError::Stopping)
    ));
    assert!(TcpStream::connect(a.address).await.is_err());
    assert!(b.count.send(Count).await.unwrap().violations.is_empty());
}

fn flood(pushes: u32, pace: Pace) -> Flood {
    let device = |n: u32| {
        let secret = Secret::new(&format!("secret-{n}")).unwrap();
        (NodeId::new(&format!("node-{n}")).unwrap(), secret)
    };
    Flood {
        devices: (0..3).map(device).collect(),
        pushes,
        pace,
        streams: 2,
        has_body: true,
        shape: PublishShape::Prosody,
        patience: PATIENCE,
    }
}

#[actix::test]
async fn a_flood_counts_every_answer_once() {
    for pace in [Pace::Outstanding(32), Pace::PerSecond(20_000)] {
        let (a, _b) = two(Authentication::External).await;
        let report = a.flood.send(flood(2_000, pace)).await.unwrap().unwrap();
        assert_eq!(report.sent, 2_000);
        assert_eq!(report.errors[&unavailable()], 2_000);
        assert_eq!((report.results, report.unanswered), (0, 0));
        assert_eq!((report.duplicates, report.strays), (0, 0));
        assert_eq!(report.latencies_micros.len(), 2_000);
        assert!(report.latencies_micros.is_sorted());
        assert!(report.quantile_micros(0.5) <= report.quantile_micros(0.99));
        assert!(report.rate() > 0.0 && !report.is_clean());
        // The server goes on as before.
        assert!(a.ping.send(Ping).await.unwrap().is_ok());
    }
}

#[actix::test]
async fn a_flood_notices_answers_that_are_wrong() {
    let (a, b) = two(Authentication::External).await;
    let mut requests = b.watch.send(TAKE).await.unwrap();
    let answering = async {
        for n in 0..6 {
            let push = next(&mut requests).await;
            assert!(push.xml.contains(&format!("node='node-{}'", n % 3)));
            let id = push.id.unwrap();
            let answer = match n {
                0..3 => format!("<iq type='result' from='b.test' to='a.test' id='{id}'/>"),
                3 => format!(
                    "<iq  id=\"{id}\" to='a.test' from='b.test' xmlns='jabber:server' type = 'result'></iq>\
                     <iq type='result' from='b.test' to='a.test' id='{id}'/>"
                ),
                4 => format!("<iq type='result' from='c.b.test' to='a.test' id='{id}'/>"),
                _ => format!("<iq type='result' from='b.test' to='a.test' id='{id}9'/>"),
            };
            b.send.send(SendRaw(answer)).await.unwrap().unwrap();
        }
    };
    let flood = Flood {
        streams: 1,
        patience: Duration::from_secs(2),
        ..flood(6, Pace::Outstanding(6))
    };
    let (report, ()) = tokio::join!(a.flood.send(flood), answering);
    let report = report.unwrap().unwrap();
    assert_eq!((report.sent, report.results, report.unanswered), (6, 4, 2));
    assert_eq!((report.duplicates, report.strays), (1, 2));
    assert!(!report.is_clean());
}

#[actix::test]
async fn a_flood_of_right_answers_is_clean() {
    let (a, b) = two(Authentication::External).await;
    let mut requests = b.watch.send(TAKE).await.unwrap();
    let answering = async {
        for _ in 0..50 {
            let id = next(&mut requests).await.id.unwrap();
            let answer = format!("<iq type='result' from='b.test' to='a.test' id='{id}'/>");
            b.send.send(SendRaw(answer)).await.unwrap().unwrap();
        }
    };
    let (report, ()) = tokio::join!(a.flood.send(flood(50, Pace::Outstanding(4))), answering);
    assert!(report.unwrap().unwrap().is_clean());
}

/// Each stream has its own pushes and its own part of what may be unanswered: one that gets no answers does not
/// hold up the other, and none takes it all.
#[actix::test]
async fn streams_of_a_flood_share_it() {
    let (a, b) = two(Authentication::External).await;
    let mut requests = b.watch.send(TAKE).await.unwrap();
    let answering = async {
        let mut held = Vec::new();
        let mut seen = Vec::new();
        for _ in 0..4 {
            let id = next(&mut requests).await.id.unwrap();
            let number: u32 = id.rsplit('f').next().unwrap().parse().unwrap();
            seen.push(number);
            if number.is_multiple_of(2) {
                held.push(id);
            } else {
                let answer = format!("<iq type='result' from='b.test' to='a.test' id='{id}'/>");
                b.send.send(SendRaw(answer)).await.unwrap().unwrap();
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 3, 5]);
        assert_eq!(held.len(), 1);
        while let Some(id) = held.pop() {
            let answer = format!("<iq type='result' from='b.test' to='a.test' id='{id}'/>");
            b.send.send(SendRaw(answer)).await.unwrap().unwrap();
            if seen.len() < 6 {
                seen.push(0);
                held.push(next(&mut requests).await.id.unwrap());
            }
        }
    };
    let (report, ()) = tokio::join!(a.flood.send(flood(6, Pace::Outstanding(2))), answering);
    assert!(report.unwrap().unwrap().is_clean());
}
