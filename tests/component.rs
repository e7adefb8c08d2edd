//! The whole service as a component of a server that somebody already runs: no listener, no certificate.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "tests fail by panicking"
)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use campanile::dev::world::{Plan, SERVICE, World};
use campanile::wiring::Extras;
use campanile::{Settings, check, serve};
use messages::Clock;
use simulators::apple::{Reason, Verdict};
use support::{PATIENCE, device_token, uuid};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

const USERS: &str = "chat.example";
/// SHA-1 of `c0ffee42` and `open-sesame`.
const PROOF: &str = "b837926650f1013de2fea94cab83fed1a3b9464e";

/// The stream of a component, at the server's end.
struct Stream {
    socket: TcpStream,
    unread: String,
}

impl Stream {
    async fn send(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).await.unwrap();
    }

    /// Everything up to and with `end`.
    async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.unread.find(end) {
                let rest = self.unread.split_off(at + end.len());
                return std::mem::replace(&mut self.unread, rest);
            }
            let mut bytes = [0; 4096];
            let read = timeout(PATIENCE, self.socket.read(&mut bytes)).await;
            let len = read.expect("nothing came").unwrap();
            assert!(len > 0, "the stream ended after {:?}", self.unread);
            self.unread
                .push_str(std::str::from_utf8(&bytes[..len]).unwrap());
        }
    }

    /// Registers a device of ada as her server passes it on. Returns node and secret.
    async fn register(&mut self, n: u32) -> (String, String) {
        let (node, token) = (uuid(n), device_token(n));
        self.send(&format!(
            "<iq id='r' type='set' from='ada@{USERS}/phone' to='{SERVICE}'>\
             <command xmlns='http://jabber.org/protocol/commands' node='v1-register-push'>\
             <x xmlns='jabber:x:data' type='submit'>\
             <field var='type'><value>apns</value></field>\
             <field var='node'><value>{}</value></field>\
             <field var='token'><value>{}</value></field></x></command></iq>",
            node.as_str(),
            token.as_str(),
        ))
        .await;
        let answer = self.until("</iq>").await;
        assert!(answer.contains("type='result'"), "{answer}");
        let value = |name: &str| {
            let (_, field) = answer.split_once(&format!(" var='{name}'")).unwrap();
            let (_, value) = field.split_once("<value>").unwrap();
            value.split_once("</value>").unwrap().0.to_owned()
        };
        (value("node"), value("secret"))
    }

    async fn publish(&mut self, id: &str, node: &str, secret: &str) {
        self.send(&format!(
            "<iq id='{id}' type='set' from='{USERS}' to='{SERVICE}'>\
             <pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='{node}'><item>\
             <notification xmlns='urn:xmpp:push:0'><x xmlns='jabber:x:data' type='submit'>\
             <field var='FORM_TYPE'><value>urn:xmpp:push:summary</value></field>\
             <field var='last-message-body'><value>New message</value></field></x></notification>\
             </item></publish><publish-options><x xmlns='jabber:x:data' type='submit'>\
             <field var='secret'><value>{secret}</value></field></x></publish-options></pubsub></iq>"
        ))
        .await;
    }
}

fn result(id: &str) -> String {
    format!("<iq type='result' id='{id}' from='{SERVICE}' to='{USERS}'/>")
}

/// Takes the component's connection.
async fn admit(host: &TcpListener) -> Stream {
    let (socket, _) = timeout(PATIENCE, host.accept())
        .await
        .expect("no component")
        .unwrap();
    let mut stream = Stream {
        socket,
        unread: String::new(),
    };
    let opening = stream.until(&format!(" to='{SERVICE}'>")).await;
    assert!(opening.contains("xmlns='jabber:component:accept'"));
    stream
        .send(&format!(
            "<?xml version='1.0'?><stream:stream xmlns:stream='http://etherx.jabber.org/streams' \
             xmlns='jabber:component:accept' id='c0ffee42' from='{SERVICE}'>"
        ))
        .await;
    stream
        .until(&format!("<handshake>{PROOF}</handshake>"))
        .await;
    stream.send("<handshake/>").await;
    stream
}

/// A world, and what the service in it needs to be a component of `host`.
async fn component_of(host: &TcpListener) -> (World, Settings) {
    let world = World::start(Plan::default()).await.unwrap();
    let secret_file = world.directory().join("component.secret");
    fs::write(&secret_file, "open-sesame\n").unwrap();
    fs::set_permissions(&secret_file, fs::Permissions::from_mode(0o600)).unwrap();
    let mut settings = Settings::load(world.config_file()).unwrap();
    settings.domains[0].certificate = None;
    settings.domains[0].key = None;
    settings.components.push(xmpp::ComponentConfig {
        domain: SERVICE.to_owned(),
        connect: host.local_addr().unwrap().to_string(),
        secret_file,
        keepalive_seconds: 60,
    });
    (world, settings)
}

#[actix_rt::test]
async fn devices_are_registered_and_woken_through_somebody_elses_server() {
    let host = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (world, settings) = component_of(&host).await;
    let control = &world.apple.control;
    let listeners = xmpp::listener::bind(&settings.xmpp).unwrap();
    assert!(listeners.is_empty());
    let (stop, stopped) = oneshot::channel::<()>();
    let (clock, extras) = (Clock::system(), Extras::default());
    let service = actix_rt::spawn(serve::run(settings, listeners, clock, extras, async {
        let _ = stopped.await;
    }));
    let mut stream = admit(&host).await;
    let (node, secret) = stream.register(1).await;

    stream.publish("a", &node, &secret).await;
    assert_eq!(stream.until("/>").await, result("a"));
    assert_eq!(control.delivered(&device_token(1)), 1);
    stream.publish("b", &node, "wrong").await;
    let refused = stream.until("</iq>").await;
    assert!(refused.contains("<item-not-found "), "{refused}");

    // The server restarts: the component is back, and knows its devices.
    drop(stream);
    let mut stream = admit(&host).await;
    stream.publish("c", &node, &secret).await;
    assert_eq!(stream.until("/>").await, result("c"));
    assert_eq!(control.delivered(&device_token(1)), 2);

    control.set_default_verdict(Verdict::refuse(Reason::TopicDisallowed));
    stream.publish("d", &node, &secret).await;
    let kept = stream.until("</iq>").await;
    assert!(kept.contains("<error type='wait'>"), "{kept}");

    drop(stop);
    stream.until("</stream:stream>").await;
    drop(stream);
    assert_eq!(service.await.unwrap().unwrap().abandoned, 0);
    world.stop().await;
}

#[actix_rt::test]
async fn check_tells_what_a_component_lacks() {
    let host = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (world, mut settings) = component_of(&host).await;
    let found = |settings: &Settings| -> Vec<(bool, String)> {
        let findings = check::inspect(settings, &Clock::system());
        let findings = findings.into_iter();
        findings.map(|found| (found.fatal, found.text)).collect()
    };
    assert_eq!(found(&settings), []);
    drop(host);
    let absent = found(&settings);
    assert_eq!(absent.len(), 1, "{absent:?}");
    assert!(!absent[0].0 && absent[0].1.contains("cannot connect to 127.0.0.1:"));
    settings.components.clear();
    let nobody = found(&settings);
    assert_eq!(nobody.len(), 1, "{nobody:?}");
    assert!(nobody[0].0 && nobody[0].1.contains("no certificate and is no component"));
    world.stop().await;
}
