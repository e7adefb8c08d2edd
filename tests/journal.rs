//! What happens to a registration is in the journal when the service has stopped, and no more than that.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod support;

use campanile::dev::world::{Plan, World};
use campanile::{Settings, exit};
use messages::{
    BareJid, Clock, Domain, JournalLine, NodeId, ReadJournal, RegistrationKey, Secret, Subject,
};
use simulators::server::{
    Answer, PublishShape, RegisterDevice, RegisteredDevice, Trigger, UnregisterDevice,
};
use support::process::Campanile;
use support::{device_token, item_not_found, uuid};

async fn push(world: &World, node: NodeId, secret: Option<Secret>) -> Answer {
    let trigger = Trigger {
        node,
        secret,
        has_body: true,
        shape: PublishShape::ProsodyWithContent,
    };
    let answered = world.chat.trigger.send(trigger).await.unwrap().unwrap();
    answered.answer
}

/// The life of a registration, and a push that means none.
async fn live(world: &World) {
    let request = RegisterDevice {
        user: "ada".to_owned(),
        node: uuid(1),
        device_token: device_token(1),
    };
    let RegisteredDevice { node, secret, .. } =
        world.chat.register.send(request).await.unwrap().unwrap();
    let answer = push(world, node.clone(), Some(secret.clone())).await;
    assert_eq!(answer, Answer::Result);
    let answer = push(world, uuid(2), Some(secret)).await;
    assert_eq!(answer, item_not_found());
    let request = UnregisterDevice {
        user: "ada".to_owned(),
        node,
    };
    world.chat.unregister.send(request).await.unwrap().unwrap();
}

/// Lets a service live and stop, and gives what its journal has on a person.
async fn lines(environment: &[(&str, &str)]) -> Vec<JournalLine> {
    let world = World::start(Plan {
        listen: support::anywhere(),
        ..Plan::default()
    })
    .await
    .unwrap();
    let mut service = Campanile::serve_with(world.config_file(), environment);
    world.service_is_at(service.address().await).await;
    live(&world).await;
    assert_eq!(service.terminate().await, Some(exit::OK));

    let config = Settings::load(world.config_file()).unwrap().journal;
    let opened = journal::Journal::open(&config, Clock::system()).unwrap();
    let journal = journal::start(opened).unwrap();
    let ada = BareJid::new("ada", Domain::new("chat.localhost"));
    let request = ReadJournal {
        subject: Subject {
            account: Some(ada),
            registrations: vec![RegistrationKey([0; 16])],
            ..Subject::default()
        },
        after: None,
        limit: 100,
    };
    let page = journal.read.send(request).await.unwrap().unwrap();
    world.stop().await;
    page.lines
}

fn field<'a>(line: &'a JournalLine, name: &str) -> Option<&'a str> {
    let mut fields = line.fields.iter();
    let found = fields.find(|(known, _)| *known == name)?;
    Some(&found.1)
}

fn events(lines: &[JournalLine]) -> Vec<&str> {
    let events = lines.iter().map(|line| line.event);
    // Two threads tell: the order of a push and of what is done to its registration is not promised.
    let mut events: Vec<_> = events.collect();
    events.sort_unstable();
    events
}

#[actix_rt::test]
async fn a_life_is_in_the_journal() {
    let lines = lines(&[]).await;
    assert_eq!(events(&lines), ["ended", "pushed", "registered"]);
    let of = |event: &str| lines.iter().find(|line| line.event == event).unwrap();
    let (registered, pushed, ended) = (of("registered"), of("pushed"), of("ended"));
    for line in [registered, ended] {
        assert_eq!(field(line, "account"), Some("ada@chat.localhost"));
        assert_eq!(field(line, "device-token"), Some(device_token(1).as_str()));
    }
    for line in [registered, pushed, ended] {
        assert_eq!(field(line, "node"), Some(uuid(1).as_str()));
        assert!(line.at.0 + 600 > Clock::system().now().0);
    }
    assert_eq!(field(registered, "dialect"), Some("v1"));
    assert_eq!(field(ended, "cause"), Some("unregistered"));
    assert_eq!(field(pushed, "domain"), Some("chat.localhost"));
    assert_eq!(field(pushed, "outcome"), Some("accepted"));
}

#[actix_rt::test]
async fn the_journal_records_no_more_than_it_is_told_to() {
    let registrations = lines(&[("CAMPANILE__JOURNAL__RECORD", "registrations")]).await;
    assert_eq!(events(&registrations), ["ended", "registered"]);
    let hashed = lines(&[("CAMPANILE__JOURNAL__IDENTIFIERS", "hashed")]).await;
    assert_eq!(events(&hashed), ["ended", "pushed", "registered"]);
    for line in &hashed {
        let node = field(line, "node").unwrap();
        assert!(node.starts_with("hmac-sha256:"), "{node}");
    }
    let off = lines(&[("CAMPANILE__JOURNAL__RECORD", "off")]).await;
    assert_eq!(events(&off), [""; 0]);
}
