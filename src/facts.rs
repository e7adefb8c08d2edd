//! What the configuration in effect says about the handling of data.
//!
//! Each sentence here is about something that the program does because of a key, so that a changed key
//! changes the statement. What no key says is named as missing, never made up.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use apns::Shown;
use privacy::{Facts, Holding, Place, Recipient};

use crate::{Settings, telemetry};

/// Gathers the facts.
#[must_use]
pub fn facts(settings: &Settings) -> Facts {
    let privacy = &settings.privacy;
    let contact = contact(settings);
    let mut missing = Vec::new();
    let mut say = |is_missing: bool, text: &str| {
        if is_missing {
            missing.push(text.to_owned());
        }
    };
    say(
        privacy.controller.is_empty(),
        "privacy.controller: who is responsible, with a postal address",
    );
    say(
        contact.is_empty(),
        "privacy.contact: whom to ask about data",
    );
    say(
        privacy.locations.is_empty(),
        "privacy.locations: where the machines of the service are",
    );
    Facts {
        services: services(settings),
        controller: stated(&privacy.controller),
        contact,
        authority: stated(&privacy.authority),
        locations: privacy.locations.clone(),
        holdings: holdings(settings),
        never: never(settings),
        recipients: recipients(settings),
        rights: rights(settings),
        missing,
    }
}

fn stated(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Those for data, or else those that service discovery shows.
fn contact(settings: &Settings) -> Vec<String> {
    if !settings.privacy.contact.is_empty() {
        return settings.privacy.contact.clone();
    }
    let mut all = Vec::new();
    for domain in &settings.domains {
        for address in domain.contacts.admin.iter().chain(&domain.contacts.support) {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
    }
    all
}

fn services(settings: &Settings) -> Vec<Place> {
    let listened: Vec<&SocketAddr> = settings
        .xmpp
        .listen
        .iter()
        .chain(&settings.xmpp.listen_tls)
        .collect();
    let has = |family: fn(&SocketAddr) -> bool| listened.iter().any(|address| family(address));
    let mut families = Vec::new();
    if has(SocketAddr::is_ipv4) {
        families.push("IPv4".to_owned());
    }
    if has(SocketAddr::is_ipv6) {
        families.push("IPv6".to_owned());
    }
    settings
        .domains
        .iter()
        .map(|domain| Place {
            domain: domain.name.clone(),
            families: match domain.certificate {
                Some(_) => families.clone(),
                None => Vec::new(),
            },
        })
        .collect()
}

fn holding(occasion: &str, data: &str, purpose: &str, kept: String) -> Holding {
    Holding {
        occasion: occasion.to_owned(),
        data: data.to_owned(),
        purpose: purpose.to_owned(),
        kept,
    }
}

fn days(days: u32) -> String {
    match days {
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

fn holdings(settings: &Settings) -> Vec<Holding> {
    let idle = settings.retention.registrations_idle_days;
    let until = match idle {
        0 => "until the device unregisters or Apple says that its token is dead; there is no other limit"
            .to_owned(),
        idle => format!(
            "until the device unregisters, until Apple says that its token is dead, or until {} without \
             renewal and without a successful push; bytes that were removed may stay in unused parts of \
             the file until it is rewritten, which an erasure does at once",
            days(idle)
        ),
    };
    let mut holdings = vec![
        holding(
            "registering, stored for each device",
            "the device token of Apple, the push node (in most apps a UUID of the device), the name of the \
             app, the served domain, the domain of the user's XMPP server, the times of the registration \
             and of its last renewal, and a keyed hash of the user's JID; the JID itself is not stored with them",
            "to know which device to wake when the server asks, and for whom to end it",
            until,
        ),
        holding(
            "registering, not stored",
            "the secret that the server has to show; it is derived from a random number of the \
             registration with a key that is kept apart",
            "so that nobody else can wake the device",
            "as long as the registration".to_owned(),
        ),
        holding(
            "pushing, stored for each device",
            "the time of the last push that Apple accepted, and the time and reason of the last that it \
             refused",
            "to find registrations that nobody uses, and faults",
            "as long as the registration".to_owned(),
        ),
        holding(
            "pushing, seen",
            "the node, the secret, the domain of the user's server, whether there is a message with text, \
             and how many messages wait",
            "to find the device and to choose the kind of notification",
            format!(
                "in memory until the push is delivered or given up, at most {} seconds",
                settings.apns.fresh_seconds
            ),
        ),
    ];
    let shown = shown(settings);
    if shown != Shown::None {
        holdings.push(holding(
            "pushing, seen",
            words(shown),
            "to show it in notifications, as the operator has chosen for this service",
            format!(
                "in memory until the push is delivered or given up, at most {} seconds; not stored",
                settings.apns.fresh_seconds
            ),
        ));
    }
    holdings.push(holding(
        "pushing, remembered",
        "the device tokens that Apple has just called dead, and of those that it took or refused as bad a \
         hash that nobody can compute after the process has ended",
        "to end a registration once, and to tell a wrong configuration from a bad device token",
        "in memory: device tokens for minutes, hashes until newer ones take their place or the process ends"
            .to_owned(),
    ));
    holdings.extend(journalled(settings));
    holdings.push(holding(
        "operating, logged",
        "domains and IP addresses of XMPP servers, times, faults, and hashes of nodes that nobody can \
         compute after the process has ended; no JIDs of users, no tokens, no secrets, no messages",
        "to operate the service and to keep attackers out",
        match settings.log.to {
            telemetry::Target::Stderr => format!(
                "written to standard error; for how long it is kept is up to the operator's log \
                 collection; files of an earlier time for {}",
                days(settings.log.keep_days)
            ),
            telemetry::Target::Files => days(settings.log.keep_days),
        },
    ));
    let privacy = &settings.privacy;
    holdings.push(holding(
        "asking the operator about data",
        "the JID, node key or device token that is asked about, the times, and a keyed hash of the code",
        "to make sure that data goes to nobody else",
        format!(
            "for {} until it is confirmed, then until the operator closes it, at most {}; nothing of the \
             person is kept of what is closed, and its number and times for {}",
            days(privacy.code_days),
            days(privacy.confirmed_days),
            days(privacy.closed_days)
        ),
    ));
    holdings.push(holding(
        "asking the operator about data, given out",
        "a copy of all of it, in files that the operator writes for the person",
        "to answer the person",
        "these files are outside of the service: the operator deletes them once they are handed over"
            .to_owned(),
    ));
    if privacy.self_service {
        holdings.push(holding(
            "asking by command about data",
            "how many commands an account and its domain have begun",
            "to bound what they cost",
            "in memory for a day".to_owned(),
        ));
    }
    holdings
}

/// What the journal has of people.
fn journalled(settings: &Settings) -> Vec<Holding> {
    let journal = &settings.journal;
    let kept = format!("{} and at most an hour more", days(journal.keep_days));
    let identifiers = match journal.identifiers {
        journal::Identifiers::Clear => "the push node and the device token",
        journal::Identifiers::Hashed => "keyed hashes of the push node and of the device token",
    };
    let node = match journal.identifiers {
        journal::Identifiers::Clear => "the push node",
        journal::Identifiers::Hashed => "a keyed hash of the push node",
    };
    let mut holdings = Vec::new();
    if journal.record < journal::Record::Pushes {
        holdings.push(holding(
            "recorded in the journal before",
            "what was recorded while the configuration was another one and is not named in this table now; \
             nothing is added to it",
            "none any more",
            kept.clone(),
        ));
    }
    if journal.record >= journal::Record::Registrations {
        holdings.push(holding(
            "registering, recorded in the journal",
            &format!(
                "the user's JID and a keyed hash of it, {identifiers}, the name of the app, the served domain, and when a device \
                 was registered, renewed or ended, and why"
            ),
            "to find faults and abuse, and to tell people what happened with their data",
            kept.clone(),
        ));
        holdings.push(holding(
            "asking about data, recorded in the journal",
            "that data was given out or erased, when, how the person was identified, and the JID of who \
             asked by command for a copy, or the operator's words for showing data without a confirmation; \
             nothing of what was erased",
            "to show that requests were answered",
            kept.clone(),
        ));
    }
    if journal.record >= journal::Record::Pushes {
        holdings.push(holding(
            "pushing, recorded in the journal",
            &format!("a keyed hash of the user's JID, {node}, the domain of the user's server, the time and the outcome"),
            "to find faults and abuse, and to tell people what happened with their data",
            kept,
        ));
    }
    holdings
}

/// What apps of this service show of messages, the most of it.
fn shown(settings: &Settings) -> Shown {
    let mut shown = Shown::None;
    for (_, app) in apps(settings) {
        match app.content {
            Shown::None => {}
            Shown::Body if shown == Shown::BodyAndSender => {}
            more => shown = more,
        }
    }
    shown
}

const fn words(shown: Shown) -> &'static str {
    match shown {
        Shown::None => "nothing of the message, its sender, or the JID",
        Shown::Body => "the text of the message, where the server sends it along",
        Shown::BodyAndSender => {
            "the text of the message and who wrote it, where the server sends them along"
        }
    }
}

/// The apps that devices can register for.
fn apps(settings: &Settings) -> impl Iterator<Item = (&String, &apns::AppConfig)> {
    let used: BTreeSet<&String> = settings
        .domains
        .iter()
        .flat_map(|domain| &domain.apps)
        .collect();
    let apps = settings.apps.iter();
    apps.filter(move |(name, _)| used.contains(name))
}

fn never(settings: &Settings) -> Vec<String> {
    let messages = match shown(settings) {
        Shown::None => {
            "Texts and senders of messages: where a server sends them along, they are not read further, not \
             stored, and not passed on."
        }
        Shown::Body => {
            "Senders of messages: where a server sends them along, they are not read further, not stored, \
             and not passed on. Texts of messages are passed on to Apple and not stored here."
        }
        Shown::BodyAndSender => {
            "Texts and senders of messages are passed on to Apple; they are not stored or logged here."
        }
    };
    [
        messages,
        "Contacts and rosters, presence, and addresses of the users' devices: the service never sees them.",
        "Profiles and automated decisions: there are none.",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn recipients(settings: &Settings) -> Vec<Recipient> {
    let mut recipients = Vec::new();
    for (_, app) in apps(settings) {
        let (name, purpose) = match &app.endpoint {
            None => (
                "Apple (Apple Inc., United States of America), which runs the push service of its devices"
                    .to_owned(),
                "to wake the device, which no one else can do",
            ),
            Some(endpoint) => (
                format!("{endpoint}, to which the configuration sends notifications instead of Apple"),
                "to pass the notification on to Apple (Apple Inc., United States of America)",
            ),
        };
        recipients.push(Recipient {
            name,
            data: match app.content {
                Shown::None => format!(
                    "for the app {}: the device token, the time, and a notification whose text is the same \
                     for everybody; {}",
                    app.topic,
                    words(Shown::None)
                ),
                shown => format!(
                    "for the app {}: the device token, the time, and a notification with {}; Apple can read \
                     it, and keeps it for a device that is off",
                    app.topic,
                    words(shown)
                ),
            },
            purpose: purpose.to_owned(),
        });
        if let Some(proxy) = &app.proxy {
            recipients.push(Recipient {
                name: format!("{}, a proxy on the way there", host_of(proxy)),
                data: "encrypted connections, which it cannot read".to_owned(),
                purpose: "to reach Apple".to_owned(),
            });
        }
    }
    recipients.push(Recipient {
        name: "the user's own XMPP server, and what runs it".to_owned(),
        data:
            "the node and the secret that it shows here, and whether each push could be delivered"
                .to_owned(),
        purpose: "to ask for pushes, and to stop when the device is gone".to_owned(),
    });
    recipients
}

/// A proxy without what may be a password.
fn host_of(proxy: &str) -> &str {
    let rest = proxy.rsplit_once('@').map_or(proxy, |(_, rest)| rest);
    rest.strip_prefix("http://").unwrap_or(rest)
}

fn rights(settings: &Settings) -> Vec<String> {
    let privacy = &settings.privacy;
    let mut rights = Vec::new();
    if privacy.self_service {
        rights.push(
            "See, get and erase your data yourself: the commands \"Get my data\" (also as JSON, to take it \
             elsewhere) and \"Erase my data\" of the service, in any XMPP client that knows ad-hoc \
             commands."
                .to_owned(),
        );
    }
    let addresses: Vec<_> = settings
        .domains
        .iter()
        .map(|domain| format!("{}@{}", privacy.localpart, domain.name))
        .collect();
    rights.push(format!(
        "Ask the operator for your data (articles 15 and 20 GDPR) or for its erasure (article 17). You are \
         identified by a message with a code that you send from your JID to {}; the code is good for {}. \
         Who has no account any more is identified by node and secret, or by the device token.",
        addresses.join(" or "),
        days(privacy.code_days)
    ));
    rights.push("Correct your data: register again, or unregister; your app does both.".to_owned());
    rights.push(match stated(&privacy.authority) {
        Some(authority) => format!("Complain to a supervisory authority: {authority}."),
        None => "Complain to a supervisory authority.".to_owned(),
    });
    rights
}

#[cfg(test)]
mod tests {
    use privacy::{Format, statement};

    use super::*;

    /// What the statement says after it, and the change.
    type Change = (&'static str, fn(&mut Settings));

    fn settings() -> Settings {
        let text = include_str!("../conf/example.toml");
        let example: Settings = toml::from_str(text).unwrap();
        // What is said of the service must come from the test.
        Settings {
            privacy: privacy::Config::default(),
            domains: example
                .domains
                .into_iter()
                .map(|domain| xmpp::DomainConfig {
                    contacts: xmpp::Contacts::default(),
                    ..domain
                })
                .collect(),
            ..example
        }
    }

    fn written(change: impl FnOnce(&mut Settings)) -> String {
        let mut settings = settings();
        change(&mut settings);
        statement(&facts(&settings), Format::Markdown)
    }

    #[test]
    fn a_changed_configuration_changes_the_statement() {
        let before = written(|_| {});
        let changes: [Change; 18] = [
            ("files of an earlier time for 8 days", |s| {
                s.log.keep_days = 8;
            }),
            ("notification with the text of the message, where", |s| {
                for app in s.apps.values_mut() {
                    app.content = Shown::Body;
                }
            }),
            ("the text of the message and who wrote it", |s| {
                for app in s.apps.values_mut() {
                    app.content = Shown::BodyAndSender;
                }
            }),
            ("5 days and at most an hour more", |s| {
                s.journal.keep_days = 5;
            }),
            ("keyed hashes of the push node", |s| {
                s.journal.identifiers = journal::Identifiers::Hashed;
            }),
            ("| 9 days |", |s| {
                s.log.to = telemetry::Target::Files;
                s.log.keep_days = 9;
            }),
            ("90 days without", |s| {
                s.retention.registrations_idle_days = 90;
            }),
            ("there is no other limit", |s| {
                s.retention.registrations_idle_days = 0;
            }),
            ("at most 77 seconds", |s| s.apns.fresh_seconds = 77),
            ("data@push.example.org", |s| {
                s.privacy.localpart = "data".to_owned();
            }),
            ("good for 3 days", |s| s.privacy.code_days = 3),
            ("at most 33 days", |s| s.privacy.confirmed_days = 33),
            ("Controller: Ada Ltd", |s| {
                s.privacy.controller = "Ada Ltd".to_owned();
            }),
            ("Iceland", |s| {
                s.privacy.locations = vec!["Iceland".to_owned()];
            }),
            ("The Authority", |s| {
                s.privacy.authority = "The Authority".to_owned();
            }),
            ("relay.example:443, to which", |s| {
                for app in s.apps.values_mut() {
                    app.endpoint = Some("relay.example:443".to_owned());
                }
            }),
            ("proxy.example:3128, a proxy", |s| {
                for app in s.apps.values_mut() {
                    app.proxy = Some("http://ada:secret@proxy.example:3128".to_owned());
                }
            }),
            ("| IPv6 |", |s| {
                s.xmpp.listen.retain(SocketAddr::is_ipv6);
                s.xmpp.listen_tls.clear();
            }),
        ];
        for (expected, change) in changes {
            assert!(!before.contains(expected), "{expected}");
            let after = written(change);
            assert!(after.contains(expected), "{expected}: {after}");
            assert!(!after.contains("ada:secret"));
        }
        for (record, has) in [
            (journal::Record::Off, [false, false, true]),
            (journal::Record::Registrations, [true, false, true]),
            (journal::Record::Pushes, [true, true, false]),
        ] {
            let text = written(|s| s.journal.record = record);
            let registering = text.contains("registering, recorded in the journal");
            let pushing = text.contains("pushing, recorded in the journal");
            let before = text.contains("recorded in the journal before");
            assert_eq!([registering, pushing, before], has);
        }
        let without = written(|s| s.privacy.self_service = false);
        assert!(before.contains("Get my data") && !without.contains("Get my data"));
    }

    #[test]
    fn what_no_key_says_is_missing() {
        let mut settings = settings();
        settings.domains[0].contacts = xmpp::Contacts::default();
        assert_eq!(facts(&settings).missing.len(), 3);
        settings.privacy.controller = "Ada Ltd".to_owned();
        settings.privacy.contact = vec!["mailto:ada@example.org".to_owned()];
        settings.privacy.locations = vec!["Iceland".to_owned()];
        assert!(facts(&settings).missing.is_empty());
    }
}
