//! kill -9 while the journal is written, closed, compressed and erased: no record that was called durable is
//! lost, and no record that was called erased comes back.
//!
//! The test runs itself as the process that is killed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests fail by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use journal::{Config, Handles, Journal};
use messages::{
    AppId, BareJid, Clock, DeviceToken, Dialect, Domain, EraseJournal, JournalBatch, JournalEntry,
    JournalEvent, NodeId, ReadJournal, RegisteredEvent, RegistrationKey, Subject, SyncJournal,
};

const ROUNDS: u32 = 50;
/// A new directory after so many, so that an erasure stays shorter than a life.
const ROUNDS_PER_DIRECTORY: u32 = 5;
/// In the environment of the process that is killed: its directory.
const DIRECTORY: &str = "CAMPANILE_JOURNAL_TO_KILL";
/// And the number of its first record.
const FIRST: &str = "CAMPANILE_JOURNAL_FIRST";
/// People of one life, one of whom is erased now and then and replaced by another.
const PEOPLE: u32 = 6;

fn main() {
    let system = actix::System::new();
    match std::env::var(DIRECTORY) {
        Ok(directory) => {
            let first = std::env::var(FIRST).unwrap().parse().unwrap();
            system.block_on(live(Path::new(&directory), first));
        }
        Err(_) => system.block_on(kill_again_and_again()),
    }
}

fn open(directory: &Path) -> Handles {
    let config = Config {
        path: directory.join("journal"),
        key_file: directory.join("journal.key"),
        // Some dozens of records: it is always closing and compressing.
        segment_bytes_max: 4_096,
        free_bytes_min: 0,
        ..Config::default()
    };
    journal::start(Journal::open(&config, Clock::system()).unwrap()).unwrap()
}

/// All records have it, so that all can be read at once.
fn device_token() -> DeviceToken {
    DeviceToken::parse(&"ab".repeat(32)).unwrap()
}

fn account(person: u32) -> BareJid {
    BareJid::new(&format!("person{person}"), Domain::new("chat.example"))
}

fn entry(person: u32, number: u32) -> JournalEntry {
    let mut registration = [0; 16];
    registration[..4].copy_from_slice(&person.to_be_bytes());
    JournalEntry {
        at: Clock::system().now(),
        event: JournalEvent::Registered(Box::new(RegisteredEvent {
            account: account(person),
            registration: RegistrationKey(registration),
            service: Domain::new("push.example"),
            app: AppId::new("app"),
            dialect: Dialect::V1,
            node: NodeId::new(&number.to_string()).unwrap(),
            device_token: device_token(),
            renewed: false,
        })),
    }
}

/// Writes, asks for durability, erases, and tells each step, until it is killed.
async fn live(directory: &Path, first: u32) {
    let journal = open(directory);
    let registrations = journal.record.clone();
    let mut people: Vec<u32> = (first..first + PEOPLE).collect();
    let mut next_person = first + PEOPLE;
    let mut number = first;
    println!("open");
    loop {
        let items: Vec<_> = (0..fastrand::u32(1..40))
            .map(|_| {
                number += 1;
                let person = people[fastrand::usize(..people.len())];
                println!("sent {person} {number}");
                entry(person, number)
            })
            .collect();
        registrations.try_send(JournalBatch { items }).unwrap();
        if fastrand::u8(..) < 128 {
            journal
                .sync
                .send(SyncJournal::default())
                .await
                .unwrap()
                .unwrap();
            println!("durable {number}");
        }
        if fastrand::u8(..) < 20 {
            let place = fastrand::usize(..people.len());
            let person = std::mem::replace(&mut people[place], next_person);
            next_person += 1;
            println!("erasing {person}");
            let subject = Subject {
                account: Some(account(person)),
                ..Subject::default()
            };
            let erase = EraseJournal {
                subject,
                until: None,
            };
            journal.erase.send(erase).await.unwrap().unwrap();
            println!("erased {person}");
        }
    }
}

/// What the processes that were killed had said.
#[derive(Default)]
struct Said {
    /// Durable records by number, with their person.
    durable: BTreeMap<u32, u32>,
    erasing: BTreeSet<u32>,
    erased: BTreeSet<u32>,
}

impl Said {
    fn hear(&mut self, lines: &[String]) {
        let mut sent = BTreeMap::new();
        for line in lines {
            let words: Vec<_> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u32>().unwrap();
            match words[0] {
                "open" => {}
                "sent" => drop(sent.insert(number(2), number(1))),
                "durable" => self.durable.append(&mut sent),
                "erasing" => drop(self.erasing.insert(number(1))),
                "erased" => {
                    self.erased.insert(number(1));
                    // What is written in the end of an erasure is written for good.
                    self.durable.append(&mut sent);
                }
                other => panic!("{other}"),
            }
        }
    }

    /// Looks at what is there now.
    async fn check(&self, directory: &Path, round: u32) {
        let journal = open(directory);
        let mut subject = Subject {
            device_tokens: vec![device_token()],
            ..Subject::default()
        };
        let mut after = None;
        let mut there = BTreeMap::new();
        loop {
            let request = ReadJournal {
                subject,
                after,
                limit: 10_000,
            };
            let page = journal.read.send(request).await.unwrap().unwrap();
            for line in &page.lines {
                let field = |name: &str| {
                    let found = line.fields.iter().find(|(known, _)| *known == name);
                    found.unwrap().1.clone()
                };
                let number: u32 = field("node").parse().unwrap();
                let twice = there.insert(number, field("account"));
                assert!(twice.is_none(), "round {round}: {number} is there twice");
            }
            if page.next.is_none() {
                break;
            }
            (subject, after) = (page.subject, page.next);
        }
        for (number, person) in &self.durable {
            if !self.erasing.contains(person) {
                let found = there.get(number).map(String::as_str);
                let jid = account(*person);
                assert_eq!(found, Some(jid.as_str()), "round {round}: {number} is lost");
            }
        }
        let bytes = unpacked(&directory.join("journal"));
        for person in &self.erased {
            let jid = account(*person);
            let jid = jid.as_str().as_bytes();
            let found = bytes.windows(jid.len()).any(|window| window == jid);
            assert!(!found, "round {round}: {person} came back");
        }
    }
}

/// All bytes of all files, as they are and unpacked.
fn unpacked(directory: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let Ok(bytes) = std::fs::read(&path) else {
            // Just compressed by the archive: its other form is listed as well, or looked at next time.
            continue;
        };
        if path.extension().is_some_and(|extension| extension == "zst") {
            all.extend(zstd::decode_all(bytes.as_slice()).unwrap());
        }
        all.extend(bytes);
    }
    all
}

async fn kill_again_and_again() {
    let mut durable = 0;
    let mut erased = 0;
    let mut cut_short = 0;
    let mut directory = tempfile::tempdir().unwrap();
    let mut said = Said::default();
    for round in 0..ROUNDS {
        if round % ROUNDS_PER_DIRECTORY == 0 {
            directory = tempfile::tempdir().unwrap();
            said = Said::default();
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(DIRECTORY, directory.path())
            .env(FIRST, ((round + 1) * 1_000_000).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "open");
        let reader =
            std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<String>>());
        // A random moment is the point of this test; nothing waits for it to be over.
        std::thread::sleep(Duration::from_millis(fastrand::u64(10..300)));
        child.kill().unwrap();
        child.wait().unwrap();
        let lines = reader.join().unwrap();
        let before = (said.durable.len(), said.erased.len());
        said.hear(&lines);
        durable += said.durable.len() - before.0;
        erased += said.erased.len() - before.1;
        cut_short += u32::from(said.erasing.len() > said.erased.len());
        said.check(directory.path(), round).await;
        // An erasure that was cut short may have done its work or not; it is no more looked at.
    }
    println!(
        "{ROUNDS} rounds: {durable} durable records, {erased} erasures, {cut_short} rounds after one was cut short"
    );
    assert!(durable > 0 && erased > 0, "nothing was tested");
}
