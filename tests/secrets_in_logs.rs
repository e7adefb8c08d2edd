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
use proptest::collection::vec;
use proptest::prelude::*;
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

/// Most steps of a random flow.
const STEPS_MAX: usize = 48;
/// People in it.
const PEOPLE: usize = 4;

/// Something that somebody does.
#[derive(Clone, Debug)]
enum Act {
    /// Registers, with the device token of before or another one.
    Register {
        new_token: bool,
    },
    Unregister,
    /// Apple is to answer so from now on.
    Answer(usize),
    Publish {
        secret: Knowledge,
        has_body: bool,
        shape: usize,
    },
    /// Asks an operator, whose commands are these.
    Ask(Request),
}

/// What the server knows that publishes.
#[derive(Clone, Copy, Debug)]
enum Knowledge {
    Right,
    Wrong,
    Nothing,
}

/// What a person wants of an operator.
#[derive(Clone, Copy, Debug)]
enum Request {
    ByWrongSecret,
    ByToken,
    Export,
    Erase,
}

/// One step: who, and what.
type Step = (usize, Act);

fn act() -> impl Strategy<Value = Act> {
    let knowledge = prop_oneof![
        6 => Just(Knowledge::Right),
        1 => Just(Knowledge::Wrong),
        1 => Just(Knowledge::Nothing),
    ];
    let publish = (knowledge, any::<bool>(), 0..SHAPES.len());
    let request = prop_oneof![
        Just(Request::ByWrongSecret),
        Just(Request::ByToken),
        Just(Request::Export),
        Just(Request::Erase),
    ];
    prop_oneof![
        10 => any::<bool>().prop_map(|new_token| Act::Register { new_token }),
        3 => Just(Act::Unregister),
        3 => (0..ANSWERS).prop_map(Act::Answer),
        20 => publish.prop_map(|(secret, has_body, shape)| Act::Publish {
            secret,
            has_body,
            shape
        }),
        2 => request.prop_map(Act::Ask),
    ]
}

const SHAPES: [PublishShape; 3] = [
    PublishShape::Prosody,
    PublishShape::Ejabberd,
    PublishShape::ProsodyWithContent,
];

const ANSWERS: usize = 4;

fn answer(number: usize) -> Verdict {
    match number {
        0 => Verdict::refuse(Reason::BadDeviceToken),
        1 => Verdict::refuse(Reason::Unregistered),
        2 => Verdict::refuse(Reason::TooManyRequests),
        _ => Verdict::unregistered(Clock::system().now_millis()),
    }
}

/// A person whose every word is random, so that it is nowhere by chance.
struct Person {
    user: String,
    node: NodeId,
    device_token: DeviceToken,
    secret: Option<Secret>,
}

/// Where words come from, and what they were.
struct Words {
    random: fastrand::Rng,
    /// None of these may be said.
    unspeakable: Vec<String>,
}

impl Words {
    fn one(&mut self, alphabet: &[u8], length: usize) -> String {
        let letter = || char::from(*self.random.choice(alphabet).unwrap());
        let word: String = std::iter::repeat_with(letter).take(length).collect();
        self.unspeakable.push(word.clone());
        word
    }

    fn token(&mut self) -> DeviceToken {
        DeviceToken::parse(&self.one(b"0123456789abcdef", 64)).unwrap()
    }

    fn person(&mut self) -> Person {
        Person {
            user: self.one(b"abcdefghijklmnopqrstuvwxyz", 16),
            node: NodeId::new(&self.one(b"0123456789ABCDEFGHJKLMN", 36)).unwrap(),
            device_token: self.token(),
            secret: None,
        }
    }

    /// Looks for all of them, as they are and as bytes of a Debug list.
    fn look_in(&self, said: &str) -> Result<(), TestCaseError> {
        let said = said.to_lowercase();
        for word in &self.unspeakable {
            let word = word.to_lowercase();
            let bytes = format!("{:?}", word.as_bytes()).replace(['[', ']'], "");
            let line = said
                .lines()
                .find(|line| line.contains(&word) || line.contains(&bytes));
            prop_assert!(line.is_none(), "{word} is in {line:?}");
        }
        Ok(())
    }
}

/// An operator's command. What it prints is for the operator, who asks about a person; gives that, and what it
/// complains of.
async fn operate(world: &World, arguments: &[&str]) -> (String, String) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_campanile"))
        .arg("privacy")
        .args(arguments)
        .arg("--config")
        .arg(world.config_file())
        .output()
        .await
        .unwrap();
    (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

async fn ask(world: &World, person: &Person, request: Request, words: &mut Words) -> String {
    let file = world.directory().join("shown");
    let path = file.to_str().unwrap();
    let jid = format!("{}@chat.localhost", person.user);
    match request {
        Request::ByWrongSecret => {
            let wrong = words.one(b"0123456789abcdef", 64);
            std::fs::write(&file, wrong).unwrap();
            let node = person.node.as_str();
            let open = ["request", "--node", node, "--secret-file", path];
            operate(world, &open).await.1
        }
        Request::ByToken => {
            std::fs::write(&file, person.device_token.as_str()).unwrap();
            operate(world, &["request", "--token-file", path]).await.1
        }
        Request::Export | Request::Erase => {
            let (opened, mut complaints) = operate(world, &["request", "--jid", &jid]).await;
            let case = opened.split_whitespace().nth(1).unwrap();
            let code = opened.lines().find(|line| line.trim().len() == 19).unwrap();
            words.unspeakable.push(code.trim().to_owned());
            let export = file.with_extension(case);
            let mut arguments = match request {
                Request::Export => vec!["export", case, "--out", export.to_str().unwrap()],
                _ => vec!["erase", case],
            };
            // Refused: nobody has confirmed it. Then the operator answers for it.
            complaints.push_str(&operate(world, &arguments).await.1);
            let reason = format!("„{jid}“ has called");
            arguments.extend(["--override", &reason]);
            complaints.push_str(&operate(world, &arguments).await.1);
            complaints
        }
    }
}

/// Takes a step; gives what was complained of.
async fn take(world: &World, person: &mut Person, act: &Act, words: &mut Words) -> String {
    let chat = &world.chat;
    match *act {
        Act::Register { new_token } => {
            if new_token {
                person.device_token = words.token();
            }
            let request = RegisterDevice {
                user: person.user.clone(),
                node: person.node.clone(),
                device_token: person.device_token.clone(),
            };
            // Refused where an app is not what it was; the log must be silent in any case.
            if let Ok(device) = chat.register.send(request).await.unwrap() {
                words.unspeakable.push(device.secret.as_str().to_owned());
                person.secret = Some(device.secret);
            }
        }
        Act::Unregister => {
            let request = UnregisterDevice {
                user: person.user.clone(),
                node: person.node.clone(),
            };
            let _ = chat.unregister.send(request).await.unwrap();
        }
        Act::Answer(number) => {
            let control = &world.apple.control;
            control.set_verdict(&person.device_token, answer(number));
        }
        Act::Publish {
            secret,
            has_body,
            shape,
        } => {
            let secret = match secret {
                Knowledge::Right => person.secret.clone(),
                Knowledge::Wrong => Some(Secret::new(&words.one(b"0123456789abcdef", 64)).unwrap()),
                Knowledge::Nothing => None,
            };
            let trigger = Trigger {
                node: person.node.clone(),
                secret,
                has_body,
                shape: SHAPES[shape],
            };
            let _ = chat.trigger.send(trigger).await.unwrap();
        }
        Act::Ask(request) => return ask(world, person, request, words).await,
    }
    String::new()
}

/// A flow through a service whose log is as loud as it can be: all its lines, the counters among them, what
/// commands complain of, and what it says when it cannot start.
async fn flow(seed: u64, steps: &[Step]) -> Result<(), TestCaseError> {
    let world = World::start(Plan {
        listen: support::anywhere(),
        ..Plan::default()
    })
    .await
    .unwrap();
    let environment = [
        ("CAMPANILE__LOG__FILTER", "trace"),
        ("CAMPANILE__GUARDIAN__INTERVAL_SECONDS", "1"),
        // What waits for Apple at the end is given up soon.
        ("CAMPANILE__SHUTDOWN__GRACE_SECONDS", "1"),
    ];
    let mut service = Campanile::serve_with(world.config_file(), &environment);
    world.service_is_at(service.address().await).await;
    let mut words = Words {
        random: fastrand::Rng::with_seed(seed),
        unspeakable: ["New Message!", "bearer ey", SENDER]
            .map(str::to_owned)
            .into(),
    };
    // The rest of it is written otherwise in JSON.
    let text = TEXT.split('"').next().unwrap();
    words.unspeakable.push(text.to_owned());
    let mut people: Vec<_> = (0..PEOPLE).map(|_| words.person()).collect();
    let mut said = String::new();
    // A push that travels, so that every level has something to say.
    let publish = Act::Publish {
        secret: Knowledge::Right,
        has_body: true,
        shape: 0,
    };
    let begin = [(0, Act::Register { new_token: false }), (0, publish)];
    for (who, act) in begin.iter().chain(steps) {
        let complaints = take(&world, &mut people[*who], act, &mut words).await;
        said.push_str(&complaints);
    }
    // The counters of all actors after all this, of the journal among them.
    service.catch_up();
    service.line("journal_entries_written_total").await;
    // A device that APNs calls too busy is held back, and its push given up at the end.
    let ended = service.terminate().await;
    prop_assert!(
        matches!(ended, Some(exit::OK | exit::ABANDONED)),
        "{ended:?}"
    );

    // What it says when it cannot start, with a journal full of people and a disk that was meddled with.
    let journal = world.directory().join("journal");
    let opened = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&journal, opened).unwrap();
    let logs = world.directory().join("logs");
    let path = logs.display().to_string();
    let mut refused = Campanile::serve_with(
        world.config_file(),
        &[
            ("CAMPANILE__LOG__FILTER", "trace"),
            ("CAMPANILE__LOG__TO", "files"),
            ("CAMPANILE__LOG__PATH", &path),
        ],
    );
    prop_assert_eq!(refused.ended().await, Some(exit::CONFIGURATION));
    let cause = refused
        .lines
        .iter()
        .any(|line| line.contains("open to others"));
    prop_assert!(cause, "{:?}", refused.lines);

    for lines in [&service.lines, &refused.lines] {
        said.push_str(&lines.join("\n"));
    }
    for entry in std::fs::read_dir(&logs).unwrap() {
        said.push_str(&std::fs::read_to_string(entry.unwrap().path()).unwrap());
    }
    prop_assert!(
        said.to_lowercase().contains("\"trace\""),
        "the level was not trace"
    );
    words.look_in(&said)?;
    world.stop().await;
    Ok(())
}

proptest! {
    // Each is a service with its world for two seconds, and so is each step of shrinking.
    #![proptest_config(ProptestConfig {
        cases: 8,
        max_shrink_iters: 256,
        max_shrink_time: 120_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Words come from a seed that does not shrink: shorter ones would be in a log by chance.
    #[test]
    fn random_flows_at_level_trace_leave_no_trace_of_anybody(
        seed in any::<u64>().no_shrink(),
        steps in vec((0..PEOPLE, act()), 1..STEPS_MAX),
    ) {
        actix_rt::System::new().block_on(flow(seed, &steps))?;
    }
}
