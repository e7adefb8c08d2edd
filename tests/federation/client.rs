//! The users: a slixmpp process that logs in and talks as it is told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::ChildStdin;
use std::sync::mpsc;
use std::thread;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::net::Host;
use crate::process::Process;
use crate::server::{Component, Server};
use crate::wait;
use crate::world::PASSWORD;

/// All users of a test.
pub(crate) struct Client {
    requests: ChildStdin,
    answers: mpsc::Receiver<String>,
    process: Process,
}

/// The answer to an iq.
#[derive(Debug, Deserialize)]
pub(crate) struct Reply {
    /// `result` or `error`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Of the command (XEP-0050).
    #[serde(default)]
    pub(crate) status: Option<String>,
    /// Values of the form in it, by name.
    #[serde(default)]
    pub(crate) fields: BTreeMap<String, String>,
    /// All lines of the values, by name.
    #[serde(default)]
    pub(crate) lines: BTreeMap<String, Vec<String>>,
    /// Of the command.
    #[serde(default)]
    pub(crate) session: Option<String>,
    /// What may follow in the command.
    #[serde(default)]
    pub(crate) actions: Vec<String>,
    /// `type/condition`.
    #[serde(default)]
    pub(crate) error: Option<String>,
    /// The whole iq, attributes in a fixed order.
    pub(crate) xml: String,
}

impl Reply {
    /// A value of its form.
    #[track_caller]
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {}", self.xml))
    }

    /// All of it except the values that differ between any two requests.
    pub(crate) fn without(&self, values: &[&str]) -> String {
        let own = ["id", "sessionid"].into_iter().filter_map(|name| {
            let (_, rest) = self.xml.split_once(&format!(" {name}=\""))?;
            rest.split('"').next()
        });
        let known = own
            .chain(values.iter().copied())
            .filter(|value| !value.is_empty());
        known.fold(self.xml.clone(), |xml, value| xml.replace(value, "…"))
    }
}

impl Client {
    pub(crate) fn start(host: &Host, directory: &Path) -> Self {
        // The interpreter that Debian's slixmpp is installed for, whatever else is in the path.
        let mut command = host.command("/usr/bin/python3");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/federation/client.py"));
        let mut process = Process::converse("client", command, &directory.join("client.log"));
        let (requests, stdout) = process.pipes();
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            requests,
            answers,
            process,
        }
    }

    #[track_caller]
    fn ask(&mut self, request: &Value) -> Value {
        let answer = writeln!(self.requests, "{request}")
            .ok()
            .and_then(|()| self.answers.recv_timeout(wait::LIMIT).ok())
            .unwrap_or_else(|| panic!("no answer to {request}\n{}", self.process.log()));
        let answer: Value = serde_json::from_str(&answer).expect("the client speaks JSON");
        assert!(answer.get("failure").is_none(), "{answer} for {request}");
        answer
    }

    #[track_caller]
    fn iq(&mut self, request: &Value) -> Reply {
        serde_json::from_value(self.ask(request)).expect("the client describes the answer")
    }

    /// Logs a user in, and makes her available.
    #[track_caller]
    pub(crate) fn login(&mut self, name: &str, server: &dyn Server) {
        self.login_as(name, server, false);
    }

    /// The same with a stream that can be resumed (XEP-0198).
    #[track_caller]
    pub(crate) fn login_resumably(&mut self, name: &str, server: &dyn Server) {
        self.login_as(name, server, true);
    }

    #[track_caller]
    fn login_as(&mut self, name: &str, server: &dyn Server, resumable: bool) {
        let (host, port) = server.client_address();
        self.ask(&json!({
            "do": "login", "name": name, "jid": format!("{name}@{}/phone", server.domain()),
            "password": PASSWORD, "host": host.to_string(), "port": port, "ca_file": server.trust(),
            "resumable": resumable,
        }));
    }

    /// Breaks the connection of a user.
    #[track_caller]
    pub(crate) fn lose(&mut self, name: &str) {
        self.ask(&json!({ "do": "lose", "name": name }));
    }

    /// Connects a user again, and resumes the stream.
    #[track_caller]
    pub(crate) fn resume(&mut self, name: &str, server: &dyn Server) {
        let (host, port) = server.client_address();
        self.ask(&json!({ "do": "resume", "name": name, "host": host.to_string(), "port": port }));
    }

    /// The messages that a user has got.
    #[track_caller]
    pub(crate) fn bodies(&mut self, name: &str) -> Vec<String> {
        let answer = self.ask(&json!({ "do": "bodies", "name": name }));
        serde_json::from_value(answer["bodies"].clone()).expect("the client lists texts")
    }

    /// Logs a component in; its name is its domain.
    #[track_caller]
    pub(crate) fn attach(&mut self, component: &Component) {
        let (host, port) = component.address;
        self.ask(&json!({
            "do": "attach", "name": component.domain, "jid": component.domain,
            "secret": component.secret, "host": host.to_string(), "port": port,
        }));
    }

    /// Logs a user out and waits for the end of her stream.
    #[track_caller]
    pub(crate) fn logout(&mut self, name: &str) {
        self.ask(&json!({ "do": "logout", "name": name }));
    }

    /// Sends an ad-hoc command (XEP-0050) and waits for its answer.
    #[track_caller]
    pub(crate) fn command(
        &mut self,
        name: &str,
        to: &str,
        node: &str,
        fields: &[(&str, &str)],
    ) -> Reply {
        self.command_from(None, name, to, node, fields)
    }

    /// The same by a component for one of its own users.
    #[track_caller]
    pub(crate) fn command_from(
        &mut self,
        sender: Option<&str>,
        name: &str,
        to: &str,
        node: &str,
        fields: &[(&str, &str)],
    ) -> Reply {
        let fields: BTreeMap<_, _> = fields.iter().copied().collect();
        self.iq(&json!({
            "do": "command", "sender": sender, "name": name, "to": to, "node": node, "fields": fields,
        }))
    }

    /// Enables push at the user's server (XEP-0357 §5).
    #[track_caller]
    pub(crate) fn enable(&mut self, name: &str, service: &str, node: &str, secret: &str) -> Reply {
        self.iq(&json!({
            "do": "enable", "name": name, "service": service, "node": node, "secret": secret,
        }))
    }

    /// Ends push to a service at the user's server (XEP-0357 §6).
    #[track_caller]
    pub(crate) fn disable(&mut self, name: &str, service: &str) -> Reply {
        self.iq(&json!({ "do": "disable", "name": name, "service": service }))
    }

    /// Publishes from the domain of a component, as the push module of a server does.
    #[track_caller]
    pub(crate) fn publish(
        &mut self,
        component: &Component,
        service: &str,
        node: &str,
        secret: &str,
    ) -> Reply {
        let domain = component.domain;
        self.iq(&json!({
            "do": "publish", "name": domain, "service": service, "node": node, "secret": secret,
            "sender": domain,
        }))
    }

    /// Sends a chat message.
    #[track_caller]
    pub(crate) fn message(&mut self, name: &str, to: &str, body: &str) {
        self.ask(&json!({ "do": "message", "name": name, "to": to, "body": body }));
    }

    /// Sends a chat message from an account of a component.
    #[track_caller]
    pub(crate) fn message_from(&mut self, sender: &str, component: &str, to: &str, body: &str) {
        self.ask(&json!({
            "do": "message", "name": component, "to": to, "body": body, "sender": sender,
        }));
    }

    /// Goes on with an ad-hoc command of several stages.
    #[track_caller]
    pub(crate) fn stage(
        &mut self,
        name: &str,
        to: &str,
        node: &str,
        action: &str,
        session: Option<&str>,
    ) -> Reply {
        self.iq(&json!({
            "do": "stage", "name": name, "to": to, "node": node, "action": action, "session": session,
        }))
    }

    /// Asks what an address is (XEP-0030).
    #[track_caller]
    pub(crate) fn info(&mut self, name: &str, to: &str) -> Reply {
        self.iq(&json!({ "do": "info", "name": name, "to": to }))
    }

    /// Sends a stanza as it is.
    #[track_caller]
    pub(crate) fn raw(&mut self, name: &str, stanza: &str) {
        self.ask(&json!({ "do": "raw", "name": name, "stanza": stanza }));
    }

    /// Asks for somebody's presence.
    #[track_caller]
    pub(crate) fn subscribe(&mut self, name: &str, to: &str) {
        self.ask(&json!({ "do": "subscribe", "name": name, "to": to }));
    }

    /// What was answered to subscriptions: type and sender.
    #[track_caller]
    pub(crate) fn presences(&mut self, name: &str) -> Vec<[String; 2]> {
        let answer = self.ask(&json!({ "do": "presences", "name": name }));
        serde_json::from_value(answer["presences"].clone()).expect("the client lists presences")
    }
}
