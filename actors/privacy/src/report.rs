//! What is held on a person: as JSON, as text, and as a page.

use messages::{
    CaseId, DeviceToken, JournalLine, RegistrationDetails, UnixSeconds, redacted_debug,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cases::Person;
use crate::facts::Facts;
use crate::{hex, html, time};

const SECRET: &str = "There is one. It is not stored but derived from a key of the service, and is not \
                      shown here: whoever has it can wake the device. Your XMPP server keeps it, and \
                      registering again shows it.";

/// Everything held on a person.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// When it was made.
    pub made_at: String,
    /// Whose it is.
    pub subject: Subject,
    /// The registrations.
    pub registrations: Vec<Registration>,
    /// What the journal says, the oldest first.
    pub journal: Vec<Line>,
    /// Whether the journal says more than is shown.
    pub journal_is_cut: bool,
    /// Files of the journal that could not be read, or not whole, so that what they say is missing here.
    #[serde(default)]
    pub journal_unreadable: u64,
    /// Cases in which the person is named.
    pub cases: Vec<CaseEntry>,
    /// What is counted about the person.
    pub limits: Limits,
    /// Purposes, times and recipients.
    pub processing: Facts,
}

redacted_debug!(Report);

/// By what a person is known.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A bare JID.
    Jid(String),
    /// A device token.
    DeviceToken(String),
    /// The key of a registration in the store, found by its node and secret.
    Registration(String),
}

redacted_debug!(Subject);

/// A registration.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Its key in the store.
    pub key: String,
    /// The served domain it was made at.
    pub service: String,
    /// The node.
    pub node: String,
    /// About the secret.
    pub secret: String,
    /// The app.
    pub app: String,
    /// The device token.
    pub device_token: String,
    /// The server that may publish.
    pub server: String,
    /// When it was made.
    pub registered_at: String,
    /// When it was last renewed.
    pub renewed_at: String,
    /// When a push last went to Apple.
    pub last_success_at: Option<String>,
    /// When Apple last refused one.
    pub last_error_at: Option<String>,
    /// Why.
    pub last_error: Option<String>,
}

redacted_debug!(Registration);

/// A line of the journal.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When it happened.
    pub at: String,
    /// What happened.
    pub event: String,
    /// The rest.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

redacted_debug!(Line);

/// A case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseEntry {
    /// Its name.
    pub case: String,
    /// When it was opened.
    pub opened_at: String,
    /// How far it is.
    pub state: String,
}

/// What is counted about the person, in memory alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Commands like this one that the account has begun within a day.
    pub commands: u32,
    /// How many it may.
    pub commands_max: u32,
}

impl Subject {
    pub(crate) fn of(person: &Person) -> Self {
        match person {
            Person::Account(account) => Self::Jid(account.as_str().to_owned()),
            Person::Token(token) => Self::DeviceToken(DeviceToken::as_str(token).to_owned()),
            Person::Registration(key) => Self::Registration(hex::text(*key)),
        }
    }

    fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Jid(text) => ("JID", text),
            Self::DeviceToken(text) => ("device token", text),
            Self::Registration(text) => ("registration", text),
        }
    }
}

impl Registration {
    pub(crate) fn of(details: &RegistrationDetails) -> Self {
        let error = details.last_error.as_ref();
        Self {
            key: hex::text(details.registration),
            service: details.service.to_string(),
            node: details.node.as_str().to_owned(),
            secret: SECRET.to_owned(),
            app: details.app.to_string(),
            device_token: details.device_token.as_str().to_owned(),
            server: details.domain.to_string(),
            registered_at: time::text(details.registered_at),
            renewed_at: time::text(details.renewed_at),
            last_success_at: details.last_success.map(time::text),
            last_error_at: error.map(|(at, _)| time::text(*at)),
            last_error: error.map(|(_, reason)| reason.to_string()),
        }
    }

    fn rows(&self) -> Vec<(&'static str, &str)> {
        let mut rows = vec![
            ("service", self.service.as_str()),
            ("node", &self.node),
            ("secret", &self.secret),
            ("app", &self.app),
            ("device token", &self.device_token),
            ("server that may push", &self.server),
            ("registered", &self.registered_at),
            ("renewed", &self.renewed_at),
        ];
        let never = "never";
        rows.push((
            "last push accepted by Apple",
            self.last_success_at.as_deref().unwrap_or(never),
        ));
        rows.push((
            "last push refused by Apple",
            self.last_error_at.as_deref().unwrap_or(never),
        ));
        rows.extend(self.last_error.as_deref().map(|why| ("why", why)));
        rows.push(("key in the store", &self.key));
        rows
    }
}

impl Line {
    pub(crate) fn of(line: &JournalLine) -> Self {
        let fields = line.fields.iter();
        Self {
            at: time::text(line.at),
            event: line.event.to_owned(),
            fields: fields
                .map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str())))
                .collect(),
        }
    }

    fn details(&self) -> String {
        let fields = self.fields.iter().map(|(name, value)| match value {
            Value::String(text) => format!("{name} {text}"),
            other => format!("{name} {other}"),
        });
        fields.collect::<Vec<_>>().join(", ")
    }
}

impl CaseEntry {
    pub(crate) fn new(case: &CaseId, opened_at: UnixSeconds, state: &str) -> Self {
        Self {
            case: case.to_string(),
            opened_at: time::text(opened_at),
            state: state.to_owned(),
        }
    }
}

impl Report {
    /// Whether nothing is held, as far as all could be read.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.registrations.is_empty()
            && self.journal.is_empty()
            && self.journal_unreadable == 0
            && self.cases.is_empty()
    }

    /// What is missing, in words.
    fn unreadable(&self) -> Option<String> {
        (self.journal_unreadable > 0).then(|| {
            format!(
                "Files of the journal that could not be read, or not whole: {}. They may say more; they are \
                 deleted when their time is over, as all files of the journal are.",
                self.journal_unreadable
            )
        })
    }

    /// As JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// As lines for people.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let (kind, name) = self.subject.words();
        let mut lines = vec![
            format!("What this service holds on the {kind} {name}"),
            format!("Made at {}", self.made_at),
            String::new(),
        ];
        lines.push(format!("Registrations: {}", self.registrations.len()));
        for registration in &self.registrations {
            let rows = registration.rows();
            lines.extend(
                rows.iter()
                    .map(|(name, value)| format!("  {name}: {value}")),
            );
            lines.push(String::new());
        }
        lines.push(format!("Lines of the journal: {}", self.journal.len()));
        for line in &self.journal {
            lines.push(format!("  {} {}: {}", line.at, line.event, line.details()));
        }
        if self.journal_is_cut {
            lines.push("  There are more, which your operator can export.".to_owned());
        }
        lines.extend(self.unreadable().map(|missing| format!("  {missing}")));
        lines.push(format!("Cases: {}", self.cases.len()));
        for case in &self.cases {
            lines.push(format!(
                "  {}, opened {}, {}",
                case.case, case.opened_at, case.state
            ));
        }
        if let Subject::Jid(_) = self.subject {
            lines.push(format!(
                "Counted, in memory alone: {} of {} commands about your data within a day",
                self.limits.commands, self.limits.commands_max
            ));
        }
        lines.push(String::new());
        lines.push("What is done with it".to_owned());
        for holding in &self.processing.holdings {
            lines.push(format!(
                "  {}: {}. {}. Kept: {}.",
                holding.occasion, holding.data, holding.purpose, holding.kept
            ));
        }
        for recipient in &self.processing.recipients {
            lines.push(format!(
                "  {} gets: {}. {}.",
                recipient.name, recipient.data, recipient.purpose
            ));
        }
        lines.extend(
            self.processing
                .rights
                .iter()
                .map(|right| format!("  {right}")),
        );
        lines
    }

    /// As a page.
    #[must_use]
    pub fn html(&self) -> String {
        let (kind, name) = self.subject.words();
        let mut body = format!(
            "<h1>What is held on the {} {}</h1>\n<p>Made at {}.</p>\n<h2>Registrations: {}</h2>\n",
            html::escape(kind),
            html::escape(name),
            html::escape(&self.made_at),
            self.registrations.len()
        );
        for registration in &self.registrations {
            let rows: Vec<_> = registration
                .rows()
                .into_iter()
                .map(|(name, value)| vec![name.to_owned(), value.to_owned()])
                .collect();
            body += &html::table(&["what", "value"], &rows);
        }
        body += &format!("<h2>Lines of the journal: {}</h2>\n", self.journal.len());
        let lines: Vec<_> = self
            .journal
            .iter()
            .map(|line| vec![line.at.clone(), line.event.clone(), line.details()])
            .collect();
        body += &html::table(&["when", "what", "details"], &lines);
        if self.journal_is_cut {
            body += "<p>The journal has more lines than one report shows.</p>\n";
        }
        if let Some(missing) = self.unreadable() {
            body += &format!("<p>{}</p>\n", html::escape(&missing));
        }
        body += &format!("<h2>Cases: {}</h2>\n", self.cases.len());
        let cases: Vec<_> = self
            .cases
            .iter()
            .map(|case| {
                vec![
                    case.case.clone(),
                    case.opened_at.clone(),
                    case.state.clone(),
                ]
            })
            .collect();
        body += &html::table(&["case", "opened", "state"], &cases);
        body += "<h2>What is done with it</h2>\n";
        let holdings: Vec<_> = self
            .processing
            .holdings
            .iter()
            .map(|holding| {
                [
                    &holding.occasion,
                    &holding.data,
                    &holding.purpose,
                    &holding.kept,
                ]
                .map(Clone::clone)
                .to_vec()
            })
            .collect();
        body += &html::table(&["when", "what", "what for", "how long"], &holdings);
        let recipients: Vec<_> = self
            .processing
            .recipients
            .iter()
            .map(|one| {
                [&one.name, &one.data, &one.purpose]
                    .map(Clone::clone)
                    .to_vec()
            })
            .collect();
        body += &html::table(&["who", "gets what", "what for"], &recipients);
        let rights = self.processing.rights.iter();
        let rights = rights.map(|right| format!("<li>{}</li>\n", html::escape(right)));
        body += &format!("<ul>\n{}</ul>\n", rights.collect::<String>());
        html::page("Your data", &body)
    }
}
