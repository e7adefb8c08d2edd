//! The actor alone, with real files.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use journal::{Config, Error, Handles, Identifiers, Journal, Record};
use messages::{
    AccessedEvent, AccountKey, AppId, BareJid, Clock, DeviceToken, Dialect, Domain, Drain,
    EndCause, EndedEvent, EraseJournal, ErasedRecords, JournalBatch, JournalEntry, JournalError,
    JournalEvent, JournalPage, NodeId, Probe, Proof, PushOutcome, PushTarget, PushedEvent,
    ReadJournal, RegisteredEvent, RegistrationKey, Rejection, Subject, SweepOutdated,
    SweptOutdated, SyncJournal, UnixSeconds,
};
use tempfile::TempDir;

/// 2026-06-01T00:00:00Z.
const NOW: u64 = 1_780_272_000;
const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;

struct Desk {
    directory: TempDir,
    config: Config,
    clock: Clock,
    journal: Handles,
}

impl Desk {
    fn start(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config {
            path: directory.path().join("journal"),
            key_file: directory.path().join("journal.key"),
            free_bytes_min: 0,
            ..Config::default()
        };
        change(&mut config);
        let clock = Clock::manual(UnixSeconds(NOW).millis());
        let journal = open(&config, &clock);
        Self {
            directory,
            config,
            clock,
            journal,
        }
    }

    fn at(&self, now: u64) {
        self.clock.set(UnixSeconds(now).millis());
    }

    fn send(&self, events: impl IntoIterator<Item = JournalEvent>) {
        let at = self.clock.now();
        let items: Vec<_> = events
            .into_iter()
            .map(|event| JournalEntry { at, event })
            .collect();
        let batch = JournalBatch { items };
        self.journal.record.try_send(batch).unwrap();
    }

    async fn sync(&self) {
        self.journal
            .sync
            .send(SyncJournal::default())
            .await
            .unwrap()
            .unwrap();
    }

    async fn page(&self, subject: Subject, limit: u32) -> JournalPage {
        let request = ReadJournal {
            subject,
            after: None,
            limit,
        };
        self.journal.read.send(request).await.unwrap().unwrap()
    }

    /// All events of a subject, in order.
    async fn events(&self, subject: Subject) -> Vec<&'static str> {
        let page = self.page(subject, 10_000).await;
        assert!(page.next.is_none());
        page.lines.iter().map(|line| line.event).collect()
    }

    async fn erase(&self, subject: Subject) -> ErasedRecords {
        let erase = EraseJournal {
            subject,
            until: None,
        };
        self.journal.erase.send(erase).await.unwrap().unwrap()
    }

    async fn sweep(&self, limit: u32) -> SweptOutdated {
        let now = self.clock.now();
        let sweep = SweepOutdated { now, limit };
        self.journal.sweep.send(sweep).await.unwrap().unwrap()
    }

    async fn counter(&self, name: &str) -> u64 {
        let health = self.journal.probe.send(Probe).await.unwrap();
        let found = health.counters.iter().find(|(known, _)| *known == name);
        found.unwrap().1
    }

    async fn restart(&mut self) {
        self.stop().await;
        self.journal = open(&self.config, &self.clock);
    }

    async fn stop(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let farewell = Duration::ZERO;
        let drain = Drain { deadline, farewell };
        let drained = self.journal.drain.send(drain).await.unwrap();
        assert_eq!(drained.abandoned, 0);
    }

    fn files(&self) -> Vec<PathBuf> {
        files(&self.config.path)
    }
}

fn open(config: &Config, clock: &Clock) -> Handles {
    journal::start(Journal::open(config, clock.clone()).unwrap()).unwrap()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

/// All bytes of all segments, unpacked.
fn bytes(directory: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for path in files(directory) {
        let bytes = fs::read(&path).unwrap();
        if path.extension().unwrap() == "zst" {
            all.extend(zstd::decode_all(bytes.as_slice()).unwrap());
        }
        all.extend(bytes);
    }
    all
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

fn account(name: &str) -> BareJid {
    BareJid::new(name, Domain::new("chat.example"))
}

fn of(name: &str) -> Subject {
    Subject {
        account: Some(account(name)),
        ..Subject::default()
    }
}

fn device_token(digit: u8) -> DeviceToken {
    DeviceToken::parse(&format!("{digit:02x}").repeat(32)).unwrap()
}

const fn key(digit: u8) -> RegistrationKey {
    RegistrationKey([digit; 16])
}

fn registered(name: &str, digit: u8) -> JournalEvent {
    JournalEvent::Registered(Box::new(RegisteredEvent {
        account: account(name),
        registration: key(digit),
        service: Domain::new("push.example"),
        app: AppId::new("app"),
        dialect: Dialect::V1,
        node: node(digit),
        device_token: device_token(digit),
        renewed: false,
    }))
}

fn node(digit: u8) -> NodeId {
    NodeId::new(&format!("C0FFEE00-{digit:02x}")).unwrap()
}

fn pushed(digit: u8) -> JournalEvent {
    JournalEvent::Pushed(PushedEvent {
        target: Some(PushTarget {
            registration: key(digit),
            account: AccountKey([digit; 16]),
            node: node(digit),
        }),
        domain: Domain::new("chat.example"),
        outcome: PushOutcome::Accepted,
    })
}

fn ended(digit: u8) -> JournalEvent {
    JournalEvent::Ended(Box::new(EndedEvent {
        registration: key(digit),
        account: None,
        account_key: AccountKey([digit; 16]),
        service: Domain::new("push.example"),
        app: AppId::new("app"),
        node: node(digit),
        device_token: device_token(digit),
        cause: EndCause::Idle,
    }))
}

/// The lines of registrations are the oldest, and go first: no JID leads to what came later.
#[actix::test]
async fn records_without_a_jid_are_found_and_erased_by_the_key_of_the_account() {
    let desk = Desk::start(|_| {});
    desk.send([pushed(1), pushed(2), ended(1), ended(2)]);
    let subject = || Subject {
        account_keys: vec![AccountKey([9; 16]), AccountKey([1; 16])],
        ..of("ada")
    };
    assert!(desk.events(of("ada")).await.is_empty());
    assert_eq!(desk.events(subject()).await, ["pushed", "ended"]);
    assert_eq!(desk.erase(subject()).await.records, 2);
    assert!(desk.events(subject()).await.is_empty());
    let others = Subject {
        account_keys: vec![AccountKey([2; 16])],
        ..Subject::default()
    };
    assert_eq!(desk.events(others).await, ["pushed", "ended"]);
}

#[actix::test]
async fn a_persons_records_are_found_by_the_jid_and_what_it_leads_to() {
    let desk = Desk::start(|_| {});
    desk.send([
        registered("ada", 1),
        registered("bob", 2),
        pushed(1),
        pushed(2),
        JournalEvent::Pushed(PushedEvent {
            target: None,
            domain: Domain::new("chat.example"),
            outcome: PushOutcome::Rejected(Rejection::UnknownNode),
        }),
        ended(1),
    ]);
    assert_eq!(
        desk.events(of("ada")).await,
        ["registered", "pushed", "ended"]
    );
    assert_eq!(desk.events(of("bob")).await, ["registered", "pushed"]);
    assert_eq!(desk.events(of("eve")).await, [""; 0]);
    let by_token = Subject {
        device_tokens: vec![device_token(1)],
        ..Subject::default()
    };
    let page = desk.page(by_token, 10).await;
    assert_eq!(page.subject.registrations, [key(1)]);
    assert_eq!(page.lines.len(), 3);
    let shown = page.lines[0].fields.iter();
    let shown: Vec<_> = shown
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let token = "device-token=".to_owned() + device_token(1).as_str();
    assert_eq!(
        shown,
        [
            "account=ada@chat.example",
            "service=push.example",
            "app=app",
            "dialect=v1",
            "node=C0FFEE00-01",
            &token
        ]
    );
}

#[actix::test]
async fn pages_are_whole_and_in_order() {
    let desk = Desk::start(|config| config.segment_bytes_max = 4_096);
    for hour in 0..3 {
        desk.at(NOW + hour * HOUR);
        for _ in 0..100 {
            desk.send([pushed(1), pushed(2)]);
        }
        desk.sync().await;
    }
    let mut subject = Subject {
        registrations: vec![key(1)],
        ..Subject::default()
    };
    let mut after = None;
    let mut times = Vec::new();
    loop {
        let request = ReadJournal {
            subject,
            after,
            limit: 7,
        };
        let page = desk.journal.read.send(request).await.unwrap().unwrap();
        times.extend(page.lines.iter().map(|line| line.at.0));
        if page.next.is_none() {
            break;
        }
        assert!(page.lines.len() == 7);
        (subject, after) = (page.subject, page.next);
    }
    let expected: Vec<_> = (0..3).flat_map(|hour| [NOW + hour * HOUR; 100]).collect();
    assert_eq!(times, expected);
}

#[actix::test]
async fn what_is_erased_is_in_no_file_and_does_not_come_back() {
    let mut desk = Desk::start(|config| config.segment_bytes_max = 8_192);
    for hour in 0..4 {
        desk.at(NOW + hour * HOUR);
        desk.send([registered("ada", 1), registered("bob", 2)]);
        for _ in 0..50 {
            desk.send([pushed(1), pushed(2)]);
        }
        desk.sync().await;
    }
    let before = desk.events(of("bob")).await;
    let erased = desk.erase(of("ada")).await;
    assert_eq!(erased.records, 4 * 51);
    assert!(erased.segments >= 4);
    // A push that was on its way.
    desk.send([pushed(1), pushed(2)]);
    desk.sync().await;
    let gone = |bytes: &[u8]| {
        for text in ["ada@", node(1).as_str(), device_token(1).as_str()] {
            assert!(!contains(bytes, text), "{text}");
        }
        assert!(!bytes.windows(16).any(|window| window == [1; 16]));
        assert!(contains(bytes, "bob@"));
    };
    gone(&bytes(&desk.config.path));
    assert_eq!(desk.events(of("ada")).await, [""; 0]);
    assert_eq!(desk.events(of("bob")).await.len(), before.len() + 1);
    desk.restart().await;
    gone(&bytes(&desk.config.path));
    assert_eq!(desk.events(of("ada")).await, [""; 0]);
    assert_eq!(desk.events(of("bob")).await.len(), before.len() + 1);
    // Registered again, a person has a journal again.
    desk.send([registered("ada", 3), pushed(3)]);
    assert_eq!(desk.events(of("ada")).await, ["registered", "pushed"]);
}

#[actix::test]
async fn a_segment_goes_whole_when_its_hour_is_as_old_as_it_may_be() {
    let desk = Desk::start(|_| {});
    desk.at(NOW + HOUR / 2);
    desk.send([registered("ada", 1)]);
    desk.sync().await;
    // Nothing comes for days: the open segment ages as well.
    desk.at(NOW + 14 * DAY - 1);
    assert_eq!(desk.sweep(10).await, SweptOutdated::default());
    desk.at(NOW + 14 * DAY);
    let swept = SweptOutdated {
        removed: 1,
        more: false,
    };
    assert_eq!(desk.sweep(10).await, swept);
    assert!(desk.files().is_empty());
    assert_eq!(desk.counter("journal_bytes").await, 0);
    assert_eq!(desk.counter("journal_segments").await, 0);
}

#[actix::test]
async fn sweeps_go_in_steps() {
    let desk = Desk::start(|_| {});
    for hour in 0..5 {
        desk.at(NOW + hour * HOUR);
        desk.send([pushed(1)]);
        desk.sync().await;
    }
    desk.at(NOW + 14 * DAY + 3 * HOUR);
    for (removed, more) in [(3, true), (1, false), (0, false)] {
        assert_eq!(desk.sweep(3).await, SweptOutdated { removed, more });
    }
    assert_eq!(desk.files().len(), 1);
}

#[actix::test]
async fn what_was_written_while_the_clock_was_ahead_ages_from_when_that_is_found() {
    let desk = Desk::start(|_| {});
    desk.at(NOW + 3_000 * DAY);
    desk.send([pushed(1)]);
    desk.sync().await;
    desk.at(NOW);
    desk.send([pushed(1)]);
    desk.sync().await;
    assert_eq!(desk.sweep(10).await.removed, 0);
    assert_eq!(
        desk.events(Subject {
            registrations: vec![key(1)],
            ..Subject::default()
        })
        .await
        .len(),
        2
    );
    desk.at(NOW + 14 * DAY);
    assert_eq!(desk.sweep(10).await.removed, 2);
    assert!(desk.files().is_empty());
}

#[actix::test]
async fn a_torn_end_is_cut_off_and_the_rest_is_kept() {
    let mut desk = Desk::start(|_| {});
    desk.send([registered("ada", 1), pushed(1)]);
    desk.sync().await;
    let open = desk.files();
    assert_eq!(open.len(), 1);
    let whole = fs::read(&open[0]).unwrap();
    desk.stop().await;
    for cut in [1, 7, 8, 9, 40] {
        for path in desk.files() {
            fs::remove_file(path).unwrap();
        }
        let mut file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(&open[0])
            .unwrap();
        file.write_all(&whole).unwrap();
        file.write_all(&whole[..cut]).unwrap();
        desk.restart().await;
        assert_eq!(
            desk.events(of("ada")).await,
            ["registered", "pushed"],
            "{cut}"
        );
        assert_eq!(desk.counter("journal_segments_damaged_total").await, 0);
    }
}

#[actix::test]
async fn leftovers_of_a_crash_count_for_nothing() {
    let mut desk = Desk::start(|_| {});
    desk.send([registered("ada", 1)]);
    desk.sync().await;
    let raw = desk.files().remove(0);
    let bytes = fs::read(&raw).unwrap();
    desk.restart().await;
    // Compressed before the first answer.
    assert_eq!(desk.events(of("ada")).await, ["registered"]);
    let compressed = raw.with_extension("zst");
    assert_eq!(desk.files(), [compressed.as_path()]);
    fs::write(&raw, &bytes).unwrap();
    fs::write(raw.with_extension("tmp"), "half").unwrap();
    desk.restart().await;
    assert_eq!(desk.events(of("ada")).await, ["registered"]);
    assert_eq!(desk.files(), [compressed.as_path()]);
}

/// Where the text begins.
fn place(bytes: &[u8], text: &str) -> usize {
    bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes())
        .unwrap()
}

/// A file in whose place nothing can be opened, whoever asks.
fn hide(path: &Path) {
    fs::rename(path, hidden(path)).unwrap();
    symlink(path, path).unwrap();
}

fn show(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::rename(hidden(path), path).unwrap();
}

fn hidden(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap().to_str().unwrap();
    path.parent().unwrap().with_file_name(name)
}

#[actix::test]
async fn what_lies_behind_damage_is_kept_and_what_is_damaged_goes() {
    let people = ["ada", "bob", "eve", "fay"];
    for spoilt in 0..3 {
        let mut desk = Desk::start(|_| {});
        desk.send(people.iter().zip(1..).map(|(name, n)| registered(name, n)));
        desk.sync().await;
        let path = desk.files().remove(0);
        let mut whole = fs::read(&path).unwrap();
        desk.stop().await;
        // The localpart stays legible.
        let at = place(&whole, &format!("{}@", people[spoilt])) + 6;
        whole[at] ^= 0x10;
        fs::write(&path, &whole).unwrap();
        desk.restart().await;
        for (n, name) in people.iter().enumerate() {
            let lines = if n == spoilt { 0 } else { 1 };
            assert_eq!(desk.events(of(name)).await.len(), lines, "{name}");
        }
        assert!(desk.counter("journal_segments_damaged_total").await > 0);
        let left = bytes(&desk.config.path);
        for (n, name) in people.iter().enumerate() {
            let is_there = contains(&left, &format!("{name}@"));
            assert_eq!(is_there, n != spoilt, "{name}");
        }
    }
}

#[actix::test]
async fn a_bad_block_costs_what_lies_in_it() {
    let mut desk = Desk::start(|_| {});
    desk.send((0..400).map(|_| registered("ada", 1)));
    desk.sync().await;
    let path = desk.files().remove(0);
    let mut whole = fs::read(&path).unwrap();
    desk.stop().await;
    let record = whole.len() / 400;
    whole[8_192..12_288].fill(0);
    // And an end that was cut short.
    whole.truncate(whole.len() - 1);
    fs::write(&path, &whole).unwrap();
    desk.restart().await;
    let left = desk.events(of("ada")).await.len();
    assert_eq!(left, 399 - (12_288_usize.div_ceil(record) - 8_192 / record));
    let page = desk.page(of("ada"), 10_000).await;
    assert_eq!(page.unreadable, 0, "nothing of it is left");
}

#[actix::test]
async fn a_segment_without_a_whole_record_is_told_of_until_it_goes() {
    let garbage = b"ada@chat.example, and whatever else the disk has made of it";
    let mut desk = Desk::start(|_| {});
    for is_erased in [true, false] {
        let path = desk.config.path.join(format!("{NOW}-0001.log"));
        fs::write(&path, garbage).unwrap();
        desk.restart().await;
        let page = desk.page(of("ada"), 10).await;
        assert_eq!((page.lines.len(), page.unreadable), (0, 1));
        assert!(desk.counter("journal_segments_damaged_total").await > 0);
        assert_eq!(desk.sweep(10).await, SweptOutdated::default());
        assert_eq!(fs::read(&path).unwrap(), garbage, "it was not asked for");
        if is_erased {
            let erased = desk.erase(of("bob")).await;
            assert_eq!((erased.dropped, erased.unreached), (1, 0));
        } else {
            desk.at(NOW + 14 * DAY);
            assert_eq!(desk.sweep(10).await.removed, 1);
        }
        assert!(desk.files().is_empty());
        assert_eq!(desk.page(of("ada"), 10).await.unreadable, 0);
    }
}

#[actix::test]
async fn what_a_crash_leaves_of_a_first_record_goes() {
    let mut desk = Desk::start(|_| {});
    desk.send([registered("ada", 1)]);
    desk.sync().await;
    let path = desk.files().remove(0);
    let whole = fs::read(&path).unwrap();
    desk.stop().await;
    for left in [&[][..], &whole[..5], &whole[..20], &[0; 20_000]] {
        fs::write(&path, left).unwrap();
        desk.restart().await;
        let page = desk.page(of("ada"), 10).await;
        assert_eq!((page.lines.len(), page.unreadable), (0, 0));
        assert!(desk.files().is_empty());
        assert_eq!(desk.counter("journal_segments_damaged_total").await, 0);
    }
}

/// Three segments: ada's registration, pushes to it, and bob's.
async fn three_hours() -> (Desk, Vec<PathBuf>) {
    let desk = Desk::start(|_| {});
    for (hour, event) in (0..).zip([registered("ada", 1), pushed(1), registered("bob", 2)]) {
        desk.at(NOW + hour * HOUR);
        desk.send([event]);
        desk.sync().await;
    }
    assert_eq!(desk.events(of("ada")).await, ["registered", "pushed"]);
    let files = desk.files();
    assert_eq!(files.len(), 3);
    (desk, files)
}

#[actix::test]
async fn a_segment_that_cannot_be_read_keeps_nothing_from_the_others() {
    for restarts in [false, true] {
        let (mut desk, files) = three_hours().await;
        hide(&files[1]);
        if restarts {
            desk.restart().await;
        }
        let page = desk.page(of("ada"), 10).await;
        assert_eq!((page.lines.len(), page.unreadable), (1, 1));
        assert_eq!(desk.events(of("bob")).await, ["registered"]);
        let erased = desk.erase(of("ada")).await;
        let expected = ErasedRecords {
            records: 1,
            segments: 1,
            dropped: 0,
            unreached: 1,
        };
        assert_eq!(erased, expected);
        assert!(!files[0].exists() && files[2].exists());
        // What is still there is reached later, by what led to it.
        show(&files[1]);
        let subject = Subject {
            registrations: vec![key(1)],
            ..of("ada")
        };
        let erased = desk.erase(subject).await;
        assert_eq!((erased.records, erased.unreached), (1, 0));
        assert_eq!(desk.files(), [files[2].as_path()]);
        // Its time comes all the same.
        hide(&files[2]);
        desk.at(NOW + 15 * DAY);
        assert_eq!(desk.sweep(10).await.removed, 1);
        assert!(desk.files().is_empty());
    }
}

/// What leads to the rest of a person's records may be in what could not be read.
#[actix::test]
async fn a_segment_that_could_not_be_searched_leaves_an_erasure_open() {
    let (desk, files) = three_hours().await;
    hide(&files[0]);
    let erased = desk.erase(of("ada")).await;
    assert_eq!((erased.records, erased.unreached), (0, 1));
    show(&files[0]);
    let erased = desk.erase(of("ada")).await;
    assert_eq!((erased.records, erased.unreached), (2, 0));
    assert_eq!(desk.files(), [files[2].as_path()]);
}

#[actix::test]
async fn a_segment_that_was_open_and_cannot_be_read_stops_no_start() {
    let mut desk = Desk::start(|_| {});
    desk.send([registered("ada", 1)]);
    desk.sync().await;
    let path = desk.files().remove(0);
    let whole = fs::read(&path).unwrap();
    desk.stop().await;
    let next = desk.config.path.join(format!("{}-0001.log", NOW - HOUR));
    fs::write(&next, &whole).unwrap();
    hide(&next);
    desk.restart().await;
    let page = desk.page(of("ada"), 10).await;
    assert_eq!((page.lines.len(), page.unreadable), (1, 1));
    show(&next);
    assert_eq!(desk.sweep(10).await, SweptOutdated::default());
    assert!(next.with_extension("zst").exists() && !next.exists());
    assert_eq!(desk.events(of("ada")).await.len(), 2);
}

#[actix::test]
async fn of_a_damaged_segment_an_erasure_keeps_what_can_be_read() {
    let mut desk = Desk::start(|_| {});
    let random = |n: u32| {
        let text = format!("{n:08x}").repeat(8);
        let mixed: String = (0..64)
            .map(|_| char::from(b"0123456789abcdef"[fastrand::usize(..16)]))
            .collect();
        JournalEvent::Ended(Box::new(EndedEvent {
            registration: key(2),
            account: Some(account("bob")),
            account_key: AccountKey([2; 16]),
            service: Domain::new("push.example"),
            app: AppId::new("app"),
            node: NodeId::new(&text).unwrap(),
            device_token: DeviceToken::parse(&mixed).unwrap(),
            cause: EndCause::Idle,
        }))
    };
    desk.send([registered("ada", 1)]);
    desk.send((0..9_000).map(random));
    desk.send([registered("ada", 1)]);
    assert_eq!(desk.events(of("ada")).await.len(), 2);
    let path = desk.files().remove(0);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    desk.restart().await;
    let page = desk.page(of("ada"), 10).await;
    assert_eq!((page.lines.len(), page.unreadable), (1, 1));
    let kept = desk.page(of("bob"), 10_000).await.lines.len();
    assert!((1_000..9_000).contains(&kept), "{kept}");
    let erased = desk.erase(of("ada")).await;
    let expected = ErasedRecords {
        records: 1,
        segments: 1,
        dropped: 1,
        unreached: 0,
    };
    assert_eq!(erased, expected);
    let damaged = desk.counter("journal_segments_damaged_total").await;
    assert_eq!(desk.events(of("ada")).await, [""; 0]);
    let page = desk.page(of("bob"), 10_000).await;
    assert_eq!((page.lines.len(), page.unreadable), (kept, 0));
    assert_eq!(
        desk.counter("journal_segments_damaged_total").await,
        damaged
    );
    // One of which nothing is left.
    fs::write(&path, []).unwrap();
    assert_eq!(desk.page(of("bob"), 10).await.unreadable, 1);
    assert_eq!(desk.erase(of("ada")).await.dropped, 1);
    assert!(desk.files().is_empty());
}

#[actix::test]
async fn what_came_after_an_erasure_that_is_finished_late_stays() {
    let (desk, files) = three_hours().await;
    hide(&files[0]);
    let late = NOW + 2 * HOUR;
    assert_eq!(desk.erase(of("ada")).await.unreached, 1);
    // Back at once, and for longer.
    desk.send([registered("ada", 3)]);
    desk.at(late + HOUR);
    desk.send([pushed(3), registered("ada", 4)]);
    desk.sync().await;
    show(&files[0]);
    let erase = EraseJournal {
        subject: of("ada"),
        until: Some(UnixSeconds(late)),
    };
    let erased = desk.journal.erase.send(erase).await.unwrap().unwrap();
    assert_eq!((erased.records, erased.unreached), (3, 0));
    // Nor is what comes of it passed over.
    desk.send([pushed(3), pushed(4)]);
    let subject = Subject {
        registrations: vec![key(3)],
        ..of("ada")
    };
    assert_eq!(
        desk.events(subject).await,
        ["pushed", "registered", "pushed", "pushed"]
    );
}

#[actix::test]
async fn what_is_none_of_the_journals_files_is_left_alone() {
    let (mut desk, _) = three_hours().await;
    let there = desk.files().len();
    let own = desk.config.path.join(format!("{NOW}-0009.tmp"));
    fs::write(&own, "half").unwrap();
    for name in [
        "notes",
        "notes.tmp",
        "1-2.log",
        "+780272000-0001.zst",
        "x-1.log",
    ] {
        fs::write(desk.config.path.join(name), "foreign").unwrap();
    }
    for name in [
        "lost+found",
        "old.tmp",
        "1780272000-0007.log",
        "1780272000-0008.zst",
    ] {
        fs::create_dir(desk.config.path.join(name)).unwrap();
    }
    desk.restart().await;
    assert!(!own.exists());
    let page = desk.page(of("ada"), 10).await;
    assert_eq!((page.lines.len(), page.unreadable), (2, 0));
    assert_eq!(desk.erase(of("ada")).await.unreached, 0);
    desk.at(NOW + 15 * DAY);
    assert_eq!(desk.sweep(10).await.removed, there as u64 - 2);
    assert_eq!(desk.files().len(), 9);
}

#[actix::test]
async fn without_room_entries_are_lost_and_counted_until_there_is_some() {
    let desk = Desk::start(|config| {
        config.segment_bytes_max = 4_096;
        config.bytes_max = 4_096;
    });
    let mut sent = 0;
    for n in 0..200 {
        let at = UnixSeconds(NOW);
        let event = registered("ada", 1);
        let items = vec![JournalEntry { at, event }];
        sent += 1;
        let kept = desk.journal.sync.send(SyncJournal { items }).await.unwrap();
        if kept.is_err() {
            break;
        }
        assert!(n < 199, "no bound");
    }
    assert_eq!(desk.counter("journal_entries_lost_total").await, 1);
    assert_eq!(
        desk.counter("journal_entries_written_total").await,
        sent - 1
    );
    assert_eq!(desk.counter("journal_failing").await, 1);
    assert!(desk.counter("journal_bytes").await <= 4_096);
    // Old segments go, and it goes on by itself.
    desk.at(NOW + 14 * DAY + HOUR);
    assert!(desk.sweep(100).await.removed > 0);
    desk.send([registered("ada", 1)]);
    desk.sync().await;
    assert_eq!(desk.counter("journal_failing").await, 0);
}

#[actix::test]
async fn the_last_room_of_the_disk_is_left_to_others() {
    let desk = Desk::start(|config| config.free_bytes_min = u64::MAX);
    // What is to be durable is told to be lost, whatever was lost before.
    for lost in 1..=2 {
        let at = UnixSeconds(NOW);
        let event = registered("ada", 1);
        let items = vec![JournalEntry { at, event }];
        let kept = desk.journal.sync.send(SyncJournal { items }).await.unwrap();
        assert_eq!(kept, Err(JournalError::Files));
        assert_eq!(desk.counter("journal_entries_lost_total").await, lost);
        assert_eq!(desk.counter("journal_entries_waiting").await, 0);
    }
}

#[actix::test]
async fn what_is_to_be_durable_has_room_where_the_queue_has_none() {
    let desk = Desk::start(|config| config.queue_max = 2);
    let entry = || JournalEntry {
        at: UnixSeconds(NOW),
        event: registered("ada", 1),
    };
    // More than there is room for.
    let items = vec![entry(), entry(), entry()];
    desk.journal
        .record
        .send(JournalBatch { items })
        .await
        .unwrap();
    let items = vec![entry()];
    let kept = desk.journal.sync.send(SyncJournal { items }).await.unwrap();
    assert_eq!(kept, Ok(()));
    assert_eq!(desk.counter("journal_entries_lost_total").await, 3);
    assert_eq!(desk.counter("journal_entries_written_total").await, 1);
    assert_eq!(desk.counter("journal_entries_waiting").await, 0);
}

#[actix::test]
async fn a_full_queue_loses_pushes_before_the_rest() {
    let desk = Desk::start(|config| config.queue_max = 100);
    desk.send((0..51).map(|_| pushed(1)));
    desk.send((0..100).map(|_| ended(1)));
    desk.sync().await;
    assert_eq!(desk.counter("journal_entries_lost_total").await, 51);
    assert_eq!(desk.counter("journal_entries_written_total").await, 100);
}

#[actix::test]
async fn modes_are_told_by_the_handles() {
    for (record, registrations, pushes) in [
        (Record::Off, 0, 0),
        (Record::Registrations, 1, 0),
        (Record::Pushes, 1, 2),
    ] {
        let mut desk = Desk::start(|config| config.record = record);
        assert_eq!(desk.journal.pushes.is_some(), pushes > 0);
        desk.send([registered("bob", 2), pushed(2), pushed(3)]);
        desk.sync().await;
        assert_eq!(
            desk.counter("journal_entries_written_total").await,
            registrations + pushes
        );
        assert_eq!(desk.counter("journal_entries_lost_total").await, 0);
        assert_eq!(desk.config.path.exists(), record != Record::Off);
        // What there is can be read and erased in any case.
        assert_eq!(desk.events(of("ada")).await, [""; 0]);
        assert_eq!(desk.erase(of("ada")).await, ErasedRecords::default());
        assert_eq!(desk.sweep(1).await, SweptOutdated::default());
        desk.restart().await;
    }
    let mut desk = Desk::start(|_| {});
    desk.send([registered("ada", 1)]);
    desk.sync().await;
    desk.config.record = Record::Off;
    desk.restart().await;
    assert_eq!(desk.events(of("ada")).await, ["registered"]);
    assert_eq!(desk.erase(of("ada")).await.records, 1);
    assert!(desk.files().is_empty());
}

#[actix::test]
async fn hashed_identifiers_are_found_and_not_shown() {
    let mut desk = Desk::start(|config| config.identifiers = Identifiers::Hashed);
    desk.send([registered("ada", 1), pushed(1)]);
    desk.sync().await;
    let bytes = bytes(&desk.config.path);
    assert!(contains(&bytes, "ada@chat.example"));
    for text in [node(1).as_str(), device_token(1).as_str()] {
        assert!(!contains(&bytes, text));
    }
    // The key goes on being used to find.
    desk.config.identifiers = Identifiers::Clear;
    desk.restart().await;
    let by_node = Subject {
        nodes: vec![node(1)],
        ..Subject::default()
    };
    let page = desk.page(by_node, 10).await;
    assert_eq!(page.lines.len(), 2);
    let (_, shown) = &page.lines[1].fields[0];
    assert!(shown.starts_with("hmac-sha256:"), "{shown}");
    let mode = fs::metadata(&desk.config.key_file).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[actix::test]
async fn files_are_their_owners_alone() {
    let desk = Desk::start(|_| {});
    desk.send([registered("ada", 1)]);
    desk.sync().await;
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&desk.config.path), 0o700);
    assert_eq!(mode(&desk.files()[0]), 0o600);
    // Reading closes and compresses.
    desk.events(of("ada")).await;
    assert_eq!(mode(&desk.files()[0]), 0o600);
    let opened = fs::Permissions::from_mode(0o750);
    fs::set_permissions(&desk.config.path, opened).unwrap();
    let refused = Journal::open(&desk.config, Clock::system()).unwrap_err();
    assert!(matches!(refused, Error::DirectoryExposed { .. }));
    assert!(matches!(
        journal::inspect(&desk.config)[..],
        [Error::DirectoryExposed { .. }]
    ));
    drop(desk.directory);
    assert!(journal::inspect(&desk.config).is_empty());
}

#[actix::test]
async fn accesses_are_told_to_the_person() {
    let desk = Desk::start(|config| config.record = Record::Registrations);
    desk.send([
        JournalEvent::Accessed(Box::new(AccessedEvent {
            account: Some(account("ada")),
            case: None,
            proof: Proof::SelfService,
        })),
        // Not what this mode records.
        pushed(1),
    ]);
    assert_eq!(desk.events(of("ada")).await, ["accessed"]);
    assert_eq!(desk.counter("journal_entries_written_total").await, 1);
}

#[actix::test]
async fn a_journal_that_stops_writes_all_and_takes_no_more() {
    let mut desk = Desk::start(|_| {});
    desk.send((0..1_000).map(|_| registered("ada", 1)));
    let old = desk.journal.clone();
    desk.restart().await;
    assert_eq!(desk.events(of("ada")).await.len(), 1_000);
    let late = old.sync.send(SyncJournal::default()).await.unwrap();
    assert_eq!(late, Err(JournalError::Stopping));
}
