//! The log shows nothing of people at any level.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod support;

use campanile::dev::world::{Plan, World};
use campanile::exit;
use messages::{Clock, DeviceToken, NodeId, Secret};
use simulators::apple::{Reason, Verdict};
use simulators::server::{
    Answer, PublishShape, RegisterDevice, SENDER, TEXT, Trigger, UnregisterDevice,
};
use support::process::Campanile;

const USER: &str = "augustaadaking";
const NODE: &str = "C0FFEE00-FEED-4BAD-8BAD-5EC4E75EC4E7";
const TOKEN: &str = "feedfacecafebeef5ca1ab1eba5eba11feedfacecafebeef5ca1ab1eba5eba11";

#[actix_rt::test]
async fn a_whole_life_at_level_trace_leaves_no_trace_of_the_person() {
    let world = World::start(Plan {
        listen: support::anywhere(),
        ..Plan::default()
    })
    .await
    .unwrap();
    let environment = [("CAMPANILE__LOG__FILTER", "trace")];
    let mut service = Campanile::serve_with(world.config_file(), &environment);
    world.service_is_at(service.address().await).await;

    let node = NodeId::new(NODE).unwrap();
    let device_token = DeviceToken::parse(TOKEN).unwrap();
    let request = RegisterDevice {
        user: USER.to_owned(),
        node: node.clone(),
        device_token,
    };
    let device = world.chat.register.send(request).await.unwrap().unwrap();
    let secret = device.secret.as_str().to_owned();
    for (has_body, secret, expected) in [
        (true, Some(device.secret.clone()), Answer::Result),
        (false, Some(device.secret.clone()), Answer::Result),
        (true, None, support::item_not_found()),
    ] {
        let shape = PublishShape::default();
        let trigger = Trigger {
            node: device.node.clone(),
            secret,
            has_body,
            shape,
        };
        let answered = world.chat.trigger.send(trigger).await.unwrap().unwrap();
        assert_eq!(answered.answer, expected);
    }
    let unregister = UnregisterDevice {
        user: USER.to_owned(),
        node,
    };
    world
        .chat
        .unregister
        .send(unregister)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(service.terminate().await, Some(exit::OK));

    let log = service.lines.join("\n").to_lowercase();
    assert!(log.contains("trace"), "the level was not trace");
    assert!(
        log.contains("chat.localhost"),
        "the peer's domain may and shall be there"
    );
    for fixture in [
        USER,
        NODE,
        TOKEN,
        secret.as_str(),
        "New Message!",
        "bearer ey",
    ] {
        let fixture = fixture.to_lowercase();
        let line = service
            .lines
            .iter()
            .find(|line| line.to_lowercase().contains(&fixture));
        assert!(line.is_none(), "{line:?}");
    }
    // The same in other clothes: as bytes of a Debug list, or base64.
    let bytes = format!("{:?}", TOKEN.as_bytes()).replace(['[', ']'], "");
    assert!(!log.contains(&bytes));
    world.stop().await;
}

/// Steps of a random flow.
const STEPS: usize = 250;
/// People in it.
const PEOPLE: usize = 12;

/// A person whose every word is random, so that it is nowhere by chance.
struct Person {
    user: String,
    node: NodeId,
    device_token: DeviceToken,
    /// All secrets the person was given.
    secrets: Vec<Secret>,
}

fn random(alphabet: &[u8], length: usize) -> String {
    (0..length)
        .map(|_| char::from(alphabet[fastrand::usize(..alphabet.len())]))
        .collect()
}

fn random_token() -> DeviceToken {
    DeviceToken::parse(&random(b"0123456789abcdef", 64)).unwrap()
}

impl Person {
    fn new() -> Self {
        Self {
            user: random(b"abcdefghijklmnopqrstuvwxyz", 16),
            node: NodeId::new(&random(b"0123456789ABCDEFGHJKLMN-", 36)).unwrap(),
            device_token: random_token(),
            secrets: Vec::new(),
        }
    }
}

async fn step(world: &World, person: &mut Person, words: &mut Vec<String>) {
    let chat = &world.chat;
    match fastrand::u8(..10) {
        0..3 => {
            if fastrand::bool() {
                person.device_token = random_token();
            }
            words.push(person.device_token.as_str().to_owned());
            let request = RegisterDevice {
                user: person.user.clone(),
                node: person.node.clone(),
                device_token: person.device_token.clone(),
            };
            // Refused where an app is not what it was; the log must be silent in any case.
            if let Ok(device) = chat.register.send(request).await.unwrap() {
                words.push(device.secret.as_str().to_owned());
                person.secrets.push(device.secret);
            }
        }
        3 => {
            let request = UnregisterDevice {
                user: person.user.clone(),
                node: person.node.clone(),
            };
            let _ = chat.unregister.send(request).await.unwrap();
        }
        4 => {
            let verdicts = [
                Verdict::refuse(Reason::BadDeviceToken),
                Verdict::refuse(Reason::Unregistered),
                Verdict::refuse(Reason::TooManyRequests),
                Verdict::unregistered(Clock::system().now_millis()),
            ];
            let verdict = verdicts[fastrand::usize(..verdicts.len())];
            world
                .apple
                .control
                .set_verdict(&person.device_token, verdict);
        }
        _ => {
            let wrong = random(b"0123456789abcdef", 64);
            let secret = match (fastrand::u8(..8), person.secrets.last()) {
                (0, _) => None,
                (1, _) | (_, None) => Some(Secret::new(&wrong).unwrap()),
                (_, Some(secret)) => Some(secret.clone()),
            };
            words.push(wrong);
            let shapes = [
                PublishShape::Prosody,
                PublishShape::Ejabberd,
                PublishShape::ProsodyWithContent,
            ];
            let trigger = Trigger {
                node: person.node.clone(),
                secret,
                has_body: fastrand::bool(),
                shape: shapes[fastrand::usize(..3)],
            };
            let _ = chat.trigger.send(trigger).await.unwrap();
        }
    }
}

/// Log lines, and the counters in them, of a random flow through a service whose log is as loud as it can be,
/// written to files.
#[actix_rt::test]
async fn random_flows_at_level_trace_leave_no_trace_of_anybody() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    fastrand::seed(seed);
    let world = World::start(Plan {
        listen: support::anywhere(),
        ..Plan::default()
    })
    .await
    .unwrap();
    let logs = world.directory().join("logs");
    let environment = [
        ("CAMPANILE__LOG__FILTER", "trace"),
        // The listening line is waited for on standard error, the rest is in the files of the second life.
        ("CAMPANILE__GUARDIAN__INTERVAL_SECONDS", "1"),
    ];
    let mut service = Campanile::serve_with(world.config_file(), &environment);
    world.service_is_at(service.address().await).await;
    let mut people: Vec<Person> = (0..PEOPLE).map(|_| Person::new()).collect();
    let mut words: Vec<String> = people
        .iter()
        .flat_map(|person| [person.user.clone(), person.node.as_str().to_owned()])
        .collect();
    words.extend(["New Message!", "bearer ey", SENDER].map(str::to_owned));
    // The rest of it is written otherwise in JSON.
    words.extend(TEXT.split('"').next().map(str::to_owned));
    for _ in 0..STEPS {
        let person = &mut people[fastrand::usize(..PEOPLE)];
        step(&world, person, &mut words).await;
    }
    // The counters of the journal among them.
    service.line("journal_entries_written_total").await;
    // A device that APNs calls too busy is held back, and its push given up at the end.
    let ended = service.terminate().await;
    assert!(
        matches!(ended, Some(exit::OK | exit::ABANDONED)),
        "{ended:?}"
    );

    // What it says when it cannot start, with a journal full of people and a disk that was meddled with.
    let journal = world.directory().join("journal");
    let opened = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&journal, opened).unwrap();
    let path = logs.display().to_string();
    let mut refused = Campanile::serve_with(
        world.config_file(),
        &[
            ("CAMPANILE__LOG__FILTER", "trace"),
            ("CAMPANILE__LOG__TO", "files"),
            ("CAMPANILE__LOG__PATH", &path),
        ],
    );
    assert_eq!(refused.ended().await, Some(exit::CONFIGURATION));
    assert!(
        refused
            .lines
            .iter()
            .any(|line| line.contains("open to others")),
        "{:?}",
        refused.lines
    );

    let mut said = service.lines.join("\n");
    said.push_str(&refused.lines.join("\n"));
    for entry in std::fs::read_dir(&logs).unwrap() {
        said.push_str(&std::fs::read_to_string(entry.unwrap().path()).unwrap());
    }
    let said = said.to_lowercase();
    assert!(said.contains("\"trace\""), "the level was not trace");
    for word in &words {
        let word = word.to_lowercase();
        let line = said.lines().find(|line| line.contains(&word));
        assert!(line.is_none(), "{line:?}");
        let bytes = format!("{:?}", word.as_bytes()).replace(['[', ']'], "");
        assert!(!said.contains(&bytes), "as bytes");
    }
    // The journal is where they are: else the test has looked for nothing.
    assert!(words.len() > PEOPLE * 3);
    world.stop().await;
}
