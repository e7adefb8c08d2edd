//! The desk between its edges: commands, codes, cases, and what reaches registry and journal.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::path::Path;
use std::sync::{Arc, Mutex};

use actix::{Actor, Context, Handler, Message, MessageResult};
use messages::{
    AccountKey, AppId, BareJid, Claim, Clock, CommandAction, CommandError, CommandStage,
    CommandStatus, ConfirmCase, DescribeRegistrations, DeviceToken, Domain, Drain, EraseJournal,
    EraseRegistrations, ErasedRecords, FindAccountKeys, FindRegistration, JournalCursor,
    JournalError, JournalEvent, JournalLine, JournalPage, NodeId, PrivacyCommand, Probe, Proof,
    ReadJournal, RegistrationDetails, RegistrationKey, RotateKeys, RunPrivacyCommand,
    SweepOutdated, SyncJournal, UnixMillis, UnixSeconds,
};
use privacy::admin::{Answer, Refusal, Request};
use privacy::desk::{self, Edges, Handles, JournalEdges, Prepared, Serve};
use privacy::{Config, Facts};
use tempfile::TempDir;

const START: UnixSeconds = UnixSeconds(1_780_272_000);
const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;
const NODE: &str = "6A1B0C1E-0000-4000-8000-000000000001";

/// Stands at the edges: one registration of ada's, some lines of the journal, and a record of all that came.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    registered: bool,
    lines: usize,
    claims: Vec<Claim>,
    erased: Vec<Claim>,
    journal: Vec<JournalEvent>,
    subjects: Vec<messages::Subject>,
    /// Until when each erasure of the journal was meant to reach.
    untils: Vec<Option<UnixSeconds>>,
    /// Whether the journal's files fail.
    is_stuck: bool,
    /// Files of the journal that cannot be read; they have one line each that is not in `lines`.
    unreadable: u64,
    /// Damaged ones.
    damaged: u64,
}

struct Behind(Held);

impl Actor for Behind {
    type Context = Context<Self>;
}

fn ada() -> BareJid {
    BareJid::new("ada", Domain::new("chat.example"))
}

fn address() -> BareJid {
    BareJid::new("privacy", Domain::new("push.example"))
}

fn token() -> DeviceToken {
    DeviceToken::parse(&"ab".repeat(32)).unwrap()
}

fn details() -> RegistrationDetails {
    RegistrationDetails {
        registration: RegistrationKey([7; 16]),
        service: Domain::new("push.example"),
        node: NodeId::new(NODE).unwrap(),
        app: AppId::new("app"),
        device_token: token(),
        domain: Domain::new("chat.example"),
        registered_at: START,
        renewed_at: START,
        last_success: Some(UnixSeconds(START.0 + 60)),
        last_error: None,
    }
}

impl Contents {
    fn of(&self, claim: &Claim) -> Vec<RegistrationDetails> {
        let hers = match claim {
            Claim::Account(account) => *account == ada(),
            Claim::Token(known) => *known == token(),
            Claim::Registrations(keys) => keys.contains(&RegistrationKey([7; 16])),
        };
        match hers && self.registered {
            true => vec![details()],
            false => Vec::new(),
        }
    }
}

macro_rules! behind {
    ($message:ty, |$message_name:ident, $contents:ident| $answer:expr) => {
        impl Handler<$message> for Behind {
            type Result = MessageResult<$message>;

            fn handle(&mut self, $message_name: $message, _: &mut Self::Context) -> Self::Result {
                let mut guard = self.0.0.lock().unwrap();
                let $contents = &mut *guard;
                MessageResult($answer)
            }
        }
    };
}

behind!(FindRegistration, |find, contents| {
    let right = find.node.as_str() == NODE && find.secret.as_str() == "right";
    Ok((right && contents.registered).then_some(RegistrationKey([7; 16])))
});
behind!(FindAccountKeys, |find, _contents| {
    let hers = find.account == ada();
    Vec::from_iter(hers.then_some(AccountKey([5; 16])))
});
behind!(DescribeRegistrations, |describe, contents| {
    contents.claims.push(describe.claim.clone());
    Ok(contents.of(&describe.claim))
});
behind!(EraseRegistrations, |erase, contents| {
    let gone = contents.of(&erase.claim);
    contents.registered &= gone.is_empty();
    contents.erased.push(erase.claim);
    Ok(gone)
});
behind!(RotateKeys, |_rotate, _contents| Ok(()));
behind!(SyncJournal, |sync, contents| {
    if contents.is_stuck {
        Err(JournalError::Files)
    } else {
        let events = sync.items.into_iter().map(|entry| entry.event);
        contents.journal.extend(events);
        Ok(())
    }
});
behind!(EraseJournal, |erase, contents| {
    if contents.is_stuck {
        Err(JournalError::Files)
    } else {
        let records = contents.lines as u64;
        contents.lines = 0;
        contents.subjects.push(erase.subject);
        contents.untils.push(erase.until);
        Ok(ErasedRecords {
            records,
            segments: 1,
            dropped: std::mem::take(&mut contents.damaged),
            unreached: contents.unreadable,
        })
    }
});
behind!(ReadJournal, |read, contents| {
    contents.subjects.push(read.subject.clone());
    let begin = read.after.map_or(0, |after| after.records as usize);
    let end = contents.lines.min(begin + read.limit as usize);
    Ok(JournalPage {
        subject: read.subject,
        lines: (begin..end)
            .map(|n| JournalLine {
                at: UnixSeconds(START.0 + n as u64),
                event: "pushed",
                fields: vec![("domain", "chat.example".to_owned()), ("n", n.to_string())],
            })
            .collect(),
        next: (end < contents.lines).then_some(JournalCursor {
            hour: 0,
            part: 0,
            records: end as u64,
        }),
        // Those of the last page, say.
        unreadable: if end < contents.lines {
            0
        } else {
            contents.unreadable
        },
    })
});

struct Rig {
    directory: TempDir,
    clock: Clock,
    held: Held,
    desk: Handles,
}

fn config(directory: &Path) -> Config {
    Config {
        path: directory.join("privacy"),
        key_file: directory.join("privacy.key"),
        socket: directory.join("admin.sock"),
        commands_per_account_max: 4,
        erasures_owed_max: 7,
        ..Config::default()
    }
}

impl Rig {
    fn start(lines: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::manual(START.millis());
        let held = Held::default();
        {
            let mut contents = held.0.lock().unwrap();
            contents.registered = true;
            contents.lines = lines;
        }
        let desk = Self::desk(directory.path(), &clock, &held);
        Self {
            directory,
            clock,
            held,
            desk,
        }
    }

    fn desk(directory: &Path, clock: &Clock, held: &Held) -> Handles {
        let services = vec![Domain::new("push.example"), Domain::new("push2.example")];
        let prepared = Prepared::open(&config(directory), Facts::default(), services).unwrap();
        let behind = Behind(held.clone()).start();
        let journal = JournalEdges {
            read: behind.clone().recipient(),
            erase: behind.clone().recipient(),
            sync: behind.clone().recipient(),
        };
        let edges = Edges {
            find: behind.clone().recipient(),
            accounts: behind.clone().recipient(),
            describe: behind.clone().recipient(),
            erase: behind.clone().recipient(),
            rotate: behind.recipient(),
            journal: Some(journal),
        };
        desk::start(prepared, clock.clone(), edges)
    }

    /// What a later process makes of what is on disk.
    fn restart(&mut self) {
        self.desk = Self::desk(self.directory.path(), &self.clock, &self.held);
    }

    fn after(&self, seconds: u64) {
        self.clock.set(UnixMillis((START.0 + seconds) * 1_000));
    }

    async fn send<M>(&self, recipient: &actix::Recipient<M>, message: M) -> M::Result
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        recipient.send(message).await.unwrap()
    }

    async fn command(
        &self,
        account: BareJid,
        command: PrivacyCommand,
        session: Option<&str>,
        action: CommandAction,
    ) -> Result<CommandStage, CommandError> {
        let run = RunPrivacyCommand {
            account,
            command,
            session: session.map(str::to_owned),
            action,
        };
        self.send(&self.desk.command, run).await
    }

    async fn say(&self, account: BareJid, text: &str) -> Option<String> {
        let confirm = ConfirmCase {
            account,
            address: address(),
            text: text.to_owned(),
            encrypted: false,
        };
        self.send(&self.desk.confirm, confirm).await
    }

    async fn ask(&self, request: Request) -> Result<Answer, Refusal> {
        self.send(&self.desk.serve, Serve(request)).await
    }

    async fn open(&self) -> (String, String) {
        let request = Request::Open {
            account: ada().as_str().to_owned(),
            service: None,
        };
        match self.ask(request).await.unwrap() {
            Answer::Opened {
                case,
                address: shown,
                code,
                ..
            } => {
                assert_eq!(shown, address().as_str());
                (case, code)
            }
            _ => panic!("not opened"),
        }
    }

    async fn export(&self, case: &str, reason: Option<&str>) -> Result<privacy::Report, Refusal> {
        let request = Request::Export {
            case: case.to_owned(),
            override_reason: reason.map(str::to_owned),
        };
        match self.ask(request).await? {
            Answer::Report(report) => Ok(*report),
            _ => panic!("no report"),
        }
    }

    /// What retention asks at that time.
    async fn sweep(&self, seconds: u64) {
        self.after(seconds);
        let sweep = SweepOutdated {
            now: self.clock.now(),
            limit: 1_000,
        };
        self.send(&self.desk.sweep, sweep).await.unwrap();
        self.settle().await;
    }

    /// Waits for what the desk is doing by itself.
    async fn settle(&self) {
        let drain = Drain {
            deadline: std::time::Instant::now() + std::time::Duration::from_secs(60),
            farewell: std::time::Duration::ZERO,
        };
        let drained = self.send(&self.desk.drain, drain).await;
        assert_eq!(drained.abandoned, 0);
    }

    async fn counter(&self, name: &str) -> u64 {
        let health = self.send(&self.desk.probe, Probe).await;
        let found = health.counters.iter().find(|(known, _)| *known == name);
        found.unwrap().1
    }

    /// Erases ada's data by her own command; gives what she is told.
    async fn erase_own(&self) -> Result<CommandStage, CommandError> {
        let erase = PrivacyCommand::Erase;
        let asked = self
            .command(ada(), erase, None, CommandAction::Execute)
            .await?;
        self.command(ada(), erase, Some(&asked.session), CommandAction::Complete)
            .await
    }

    fn holds(&self, needle: &str) -> bool {
        let path = self.directory.path().join("privacy").join("cases.json");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.contains(needle)
    }
}

#[actix_rt::test]
async fn an_erasure_that_was_cut_short_is_finished_by_the_next_start() {
    let mut rig = Rig::start(3);
    let (case, code) = rig.open().await;
    rig.say(ada(), &code).await.unwrap();
    rig.held.0.lock().unwrap().is_stuck = true;
    let erase = Request::Erase {
        case,
        override_reason: None,
    };
    assert!(rig.ask(erase).await.is_err());
    {
        let mut contents = rig.held.0.lock().unwrap();
        assert!(!contents.registered, "the store is done first");
        assert_eq!(contents.lines, 3);
        contents.is_stuck = false;
        // Somebody who comes back before the rest is done.
        contents.registered = true;
    }
    assert!(rig.holds("owed"));
    rig.restart();
    let drain = Drain {
        deadline: std::time::Instant::now() + std::time::Duration::from_secs(60),
        farewell: std::time::Duration::ZERO,
    };
    rig.send(&rig.desk.drain, drain).await;
    let contents = rig.held.0.lock().unwrap();
    assert_eq!(contents.lines, 0);
    assert_eq!(contents.subjects[0].account, Some(ada()));
    // What only the store has led to before.
    assert_eq!(
        contents.subjects[0].registrations,
        [RegistrationKey([7; 16])]
    );
    assert_eq!(contents.erased.len(), 1, "what came later stays");
    assert!(contents.journal.iter().any(|event| matches!(
        event,
        JournalEvent::Erased(erased)
            if erased.proof == Proof::Confirmation && erased.records == 3 && erased.registrations == 1
    )));
    for left in ["owed", "ada@", token().as_str()] {
        assert!(!rig.holds(left), "{left}");
    }
}

#[actix_rt::test]
async fn an_erasure_that_failed_is_finished_without_a_start() {
    let rig = Rig::start(3);
    rig.held.0.lock().unwrap().is_stuck = true;
    assert_eq!(rig.erase_own().await.err(), Some(CommandError::Failed));
    assert_eq!(rig.counter("privacy_erasures_owed").await, 1);
    {
        let mut contents = rig.held.0.lock().unwrap();
        contents.is_stuck = false;
        // She has come back.
        contents.registered = true;
    }
    // Not at every sweep: each attempt reads all of the journal.
    rig.sweep(HOUR - 1).await;
    assert!(rig.holds("owed"));
    rig.sweep(HOUR).await;
    assert!(!rig.holds("owed"));
    assert_eq!(rig.counter("privacy_erasures_owed").await, 0);
    let contents = rig.held.0.lock().unwrap();
    assert_eq!((contents.lines, contents.erased.len()), (0, 1));
    assert_eq!(
        contents.subjects.last().unwrap().registrations,
        [RegistrationKey([7; 16])]
    );
}

#[actix_rt::test]
async fn an_erasure_says_what_it_did_not_reach_and_goes_on_until_it_does() {
    let mut rig = Rig::start(3);
    let (case, code) = rig.open().await;
    rig.say(ada(), &code).await.unwrap();
    rig.held.0.lock().unwrap().unreadable = 2;
    let report = rig.export(&case, None).await.unwrap();
    assert_eq!((report.journal.len(), report.journal_unreadable), (3, 2));
    let missing = "could not be read, or not whole: 2.";
    assert!(report.lines().join("\n").contains(missing));
    assert!(report.html().contains(missing) && report.json().contains("\"journal_unreadable\": 2"));
    rig.held.0.lock().unwrap().damaged = 1;
    let erase = Request::Erase {
        case,
        override_reason: None,
    };
    let Answer::Erased { lines } = rig.ask(erase).await.unwrap() else {
        panic!("not erased");
    };
    let text = lines.join("\n");
    assert!(text.contains("NOT ERASED YET: 2 files"), "{text}");
    assert!(text.contains("Damaged files of the journal: 1"), "{text}");
    assert!(rig.holds("owed") && rig.holds("ada@"));
    assert_eq!(rig.counter("privacy_erasures_total").await, 0);
    // Started again, or an hour later, it is no better; and she is back, and asks.
    rig.restart();
    rig.settle().await;
    rig.after(HOUR - 1);
    let (case, code) = rig.open().await;
    rig.sweep(HOUR).await;
    assert!(rig.holds("owed"));
    rig.held.0.lock().unwrap().unreadable = 0;
    rig.sweep(2 * HOUR - 1).await;
    assert!(rig.holds("owed"));
    rig.sweep(2 * HOUR).await;
    assert!(!rig.holds("owed"));
    assert_eq!(rig.counter("privacy_erasures_total").await, 1);
    rig.sweep(3 * HOUR).await;
    {
        let contents = rig.held.0.lock().unwrap();
        // What the journal tells of her since is not what was to be erased.
        let until = Some(UnixSeconds(START.0 + HOUR / 2));
        assert_eq!(contents.untils, [until; 4]);
        assert_eq!(contents.erased.len(), 1);
        let erased = contents.journal.iter().filter_map(|event| match event {
            JournalEvent::Erased(erased) => Some(erased.records),
            _ => None,
        });
        assert_eq!(erased.collect::<Vec<_>>(), [3, 0], "once, and at the end");
    }
    let confirmed = rig.say(ada(), &code).await.unwrap();
    assert!(confirmed.contains("is confirmed"), "{confirmed}");
    rig.export(&case, None).await.unwrap();
}

#[actix_rt::test]
async fn who_erases_alone_is_told_what_is_left() {
    let rig = Rig::start(3);
    rig.held.0.lock().unwrap().unreadable = 1;
    let told = rig.erase_own().await.unwrap();
    assert_eq!(told.status, CommandStatus::Completed);
    assert!(
        told.note
            .unwrap()
            .contains("but for what could not be reached")
    );
    let text = told.fields[0].lines.join("\n");
    assert!(text.contains("NOT ERASED YET: 1 files"), "{text}");
    // Asked again, what is left is reached.
    rig.held.0.lock().unwrap().unreadable = 0;
    let told = rig.erase_own().await.unwrap();
    assert_eq!(
        told.note.as_deref(),
        Some("What was held on your account is erased.")
    );
    assert!(!rig.holds("owed"));
}

/// A journal that stays stuck is not read for each of many persons in one go, and nobody waits for ever.
#[actix_rt::test]
async fn attempts_at_what_is_owed_have_a_bound_and_everybody_gets_their_turn() {
    let rig = Rig::start(0);
    rig.held.0.lock().unwrap().unreadable = 1;
    let nth = |n: u8| DeviceToken::parse(&format!("{n:02x}").repeat(32)).unwrap();
    for n in 0..6 {
        let request = Request::OpenByToken {
            token: nth(n).as_str().to_owned(),
        };
        let Answer::OpenedProven { case, .. } = rig.ask(request).await.unwrap() else {
            panic!("not opened");
        };
        let erase = Request::Erase {
            case,
            override_reason: None,
        };
        rig.ask(erase).await.unwrap();
    }
    assert_eq!(rig.counter("privacy_erasures_owed").await, 6);
    let tried = |from: usize| {
        let contents = rig.held.0.lock().unwrap();
        let subjects = contents.subjects[from..].iter();
        subjects
            .map(|subject| (0..6).position(|n| subject.device_tokens == [nth(n)]))
            .collect::<Option<Vec<_>>>()
            .unwrap()
    };
    rig.sweep(HOUR).await;
    assert_eq!(tried(6), [0, 1, 2, 3]);
    rig.sweep(2 * HOUR).await;
    assert_eq!(tried(10), [4, 5, 0, 1]);
    rig.held.0.lock().unwrap().unreadable = 0;
    rig.sweep(3 * HOUR).await;
    assert_eq!(tried(14).len(), 6);
    assert_eq!(rig.counter("privacy_erasures_owed").await, 0);
}

/// An erasure for which there is no room is refused as a whole, and those that are owed stay.
#[actix_rt::test]
async fn too_many_unfinished_erasures_are_refused_in_words() {
    let rig = Rig::start(0);
    rig.held.0.lock().unwrap().unreadable = 1;
    let erase = async |n: u8| {
        let token = DeviceToken::parse(&format!("{n:02x}").repeat(32)).unwrap();
        let request = Request::OpenByToken {
            token: token.as_str().to_owned(),
        };
        let Answer::OpenedProven { case, .. } = rig.ask(request).await.unwrap() else {
            panic!("not opened");
        };
        let erase = Request::Erase {
            case,
            override_reason: None,
        };
        rig.ask(erase).await
    };
    for n in 0..7 {
        assert!(matches!(erase(n).await, Ok(Answer::Erased { .. })));
    }
    let refused = erase(7).await.err().unwrap().refused;
    assert!(
        refused.contains("nothing was erased") && refused.contains("privacy.erasures_owed_max"),
        "{refused}"
    );
    assert_eq!(rig.erase_own().await.err(), Some(CommandError::Unfinished));
    assert_eq!(rig.counter("privacy_erasures_owed").await, 7);
    {
        let held = rig.held.0.lock().unwrap();
        assert!(held.registered && held.erased.len() == 7);
    }
    // Who is owed already may ask again.
    assert!(matches!(erase(3).await, Ok(Answer::Erased { .. })));
    rig.held.0.lock().unwrap().unreadable = 0;
    rig.sweep(HOUR).await;
    assert_eq!(rig.counter("privacy_erasures_owed").await, 0);
    rig.erase_own().await.unwrap();
}

#[actix_rt::test]
async fn a_report_comes_in_pieces_that_are_whole_together() {
    let rig = Rig::start(2_500);
    let access = PrivacyCommand::Access;
    let mut stage = rig
        .command(ada(), access, None, CommandAction::Execute)
        .await
        .unwrap();
    let session = stage.session.clone();
    let (mut lines, mut json, mut stages) = (Vec::new(), Vec::new(), 1);
    loop {
        lines.extend(stage.fields[0].lines.clone());
        json.extend(stage.fields[1].lines.clone());
        let bytes: usize = stage
            .fields
            .iter()
            .flat_map(|field| &field.lines)
            .map(String::len)
            .sum();
        assert!(bytes < 30_000, "{bytes} bytes in a stage");
        if stage.status == CommandStatus::Completed {
            break;
        }
        stage = rig
            .command(ada(), access, Some(&session), CommandAction::Next)
            .await
            .unwrap();
        stages += 1;
    }
    assert!(stages > 5);
    let report: privacy::Report = serde_json::from_str(&json.join("\n")).unwrap();
    assert_eq!(report.journal.len(), 2_500);
    assert_eq!(report.registrations.len(), 1);
    assert_eq!(report.limits.commands, 1);
    let text = lines.join("\n");
    assert!(text.contains(NODE) && text.contains(token().as_str()) && text.contains("ada@"));
    // The session is over, and was hers alone.
    let late = rig
        .command(ada(), access, Some(&session), CommandAction::Next)
        .await;
    assert_eq!(late.err(), Some(CommandError::NoSession));
    let held = rig.held.0.lock().unwrap();
    assert!(
        matches!(&held.journal[..], [JournalEvent::Accessed(accessed)]
        if accessed.account == Some(ada()) && accessed.proof == Proof::SelfService)
    );
    let subject = &held.subjects[0];
    assert!(subject.account == Some(ada()) && subject.registrations.len() == 1);
    assert!(subject.account_keys == [AccountKey([5; 16])]);
    assert!(subject.nodes.is_empty());
}

#[actix_rt::test]
async fn an_erasure_asks_twice_and_reaches_everything() {
    let rig = Rig::start(3);
    let (_, code) = rig.open().await;
    // Somebody has asked about her device as well.
    let request = Request::OpenByToken {
        token: token().as_str().to_owned(),
    };
    rig.ask(request).await.unwrap();
    let erase = PrivacyCommand::Erase;
    let asked = rig
        .command(ada(), erase, None, CommandAction::Execute)
        .await
        .unwrap();
    assert!(matches!(asked.status, CommandStatus::Executing { .. }));
    assert!(rig.held.0.lock().unwrap().erased.is_empty());
    let eve = BareJid::new("eve", Domain::new("chat.example"));
    for (account, command, action, expected) in [
        (eve, erase, CommandAction::Complete, CommandError::NoSession),
        (
            ada(),
            PrivacyCommand::Access,
            CommandAction::Complete,
            CommandError::NoSession,
        ),
        (
            ada(),
            erase,
            CommandAction::Previous,
            CommandError::BadAction,
        ),
    ] {
        let refused = rig
            .command(account, command, Some(&asked.session), action)
            .await;
        assert_eq!(refused.err(), Some(expected));
    }
    let done = rig
        .command(ada(), erase, Some(&asked.session), CommandAction::Complete)
        .await
        .unwrap();
    assert_eq!(done.status, CommandStatus::Completed);
    let text = done.fields[0].lines.join("\n");
    assert!(text.contains("Registrations erased: 1") && text.contains("journal erased: 3"));
    {
        let held = rig.held.0.lock().unwrap();
        assert_eq!(held.erased, [Claim::Account(ada())]);
        assert!(held.subjects.last().unwrap().registrations == [RegistrationKey([7; 16])]);
        assert!(matches!(&held.journal[..], [JournalEvent::Erased(erased)]
            if erased.registrations == 1 && erased.records == 3));
    }
    // The cases are gone as well.
    assert!(!rig.holds("ada") && !rig.holds(token().as_str()));
    assert_eq!(rig.say(ada(), &code).await, None);
}

#[actix_rt::test]
async fn accounts_may_begin_so_many_commands() {
    let rig = Rig::start(0);
    let begin = |account| {
        rig.command(
            account,
            PrivacyCommand::Access,
            None,
            CommandAction::Execute,
        )
    };
    for _ in 0..4 {
        begin(ada()).await.unwrap();
    }
    assert_eq!(begin(ada()).await.err(), Some(CommandError::Limited));
    begin(BareJid::new("eve", Domain::new("chat.example")))
        .await
        .unwrap();
    rig.after(DAY);
    begin(ada()).await.unwrap();
}

#[actix_rt::test]
async fn a_case_goes_from_request_to_erasure() {
    let mut rig = Rig::start(2);
    let (case, code) = rig.open().await;
    let refused = rig.export(&case, None).await.unwrap_err();
    assert!(refused.refused.contains("not confirmed"), "{refused:?}");
    rig.restart();
    let eve = BareJid::new("eve", Domain::new("chat.example"));
    assert_eq!(rig.say(eve, &code).await, None);
    let wrong = rig.say(ada(), "hello").await.unwrap();
    assert!(wrong.contains("left: 4"), "{wrong}");
    let encrypted = ConfirmCase {
        account: ada(),
        address: address(),
        text: "I sent you an encrypted message".to_owned(),
        encrypted: true,
    };
    let answer = rig.send(&rig.desk.confirm, encrypted).await.unwrap();
    assert!(answer.contains("encryption off"), "{answer}");
    let confirmed = rig.say(ada(), &code).await.unwrap();
    assert!(confirmed.contains("is confirmed"), "{confirmed}");
    rig.restart();
    let used = rig.say(ada(), &code).await.unwrap();
    assert!(used.contains("used"), "{used}");
    let report = rig.export(&case, None).await.unwrap();
    assert_eq!(report.cases.len(), 1);
    assert!(report.html().contains(NODE));
    let request = Request::Erase {
        case: case.clone(),
        override_reason: None,
    };
    assert!(matches!(
        rig.ask(request).await.unwrap(),
        Answer::Erased { .. }
    ));
    assert!(!rig.holds("ada"));
    let closed = rig.export(&case, None).await.unwrap_err();
    assert!(closed.refused.contains("closed"), "{closed:?}");
    let held = rig.held.0.lock().unwrap();
    assert!(
        matches!(held.journal.last(), Some(JournalEvent::Erased(erased))
        if erased.proof == Proof::Confirmation && erased.case.is_some())
    );
}

#[actix_rt::test]
async fn an_override_is_in_the_journal_before_anything_is_shown() {
    let rig = Rig::start(0);
    let (case, _) = rig.open().await;
    let empty = rig.export(&case, Some("  ")).await.unwrap_err();
    assert!(empty.refused.contains("reason"), "{empty:?}");
    // What the journal cuts it does not keep.
    let long = rig.export(&case, Some(&"x".repeat(4_097))).await;
    assert!(long.unwrap_err().refused.contains("too long"));
    rig.held.0.lock().unwrap().is_stuck = true;
    rig.export(&case, Some("showed a passport"))
        .await
        .unwrap_err();
    // Nor is it taken for confirmed afterwards.
    rig.held.0.lock().unwrap().is_stuck = false;
    rig.export(&case, None).await.unwrap_err();
    assert!(rig.held.0.lock().unwrap().claims.is_empty());
    rig.export(&case, Some("showed a passport")).await.unwrap();
    let held = rig.held.0.lock().unwrap();
    assert!(matches!(&held.journal[..],
        [JournalEvent::Overridden(overridden), JournalEvent::Accessed(accessed)]
        if &*overridden.reason == "showed a passport" && accessed.proof == Proof::Override));
}

#[actix_rt::test]
async fn who_has_no_account_any_more_is_known_by_secret_or_token() {
    let mut rig = Rig::start(1);
    let by_secret = |secret: &str| Request::OpenBySecret {
        node: NODE.to_owned(),
        secret: secret.to_owned(),
        service: None,
    };
    let refused = rig.ask(by_secret("wrong")).await.err().unwrap();
    assert!(refused.refused.contains("no registration"), "{refused:?}");
    let opened = rig.ask(by_secret("right")).await.unwrap();
    let Answer::OpenedProven { case, proof } = opened else {
        panic!("not opened");
    };
    assert_eq!(proof, "node-and-secret");
    assert!(!rig.holds("right"), "the secret is in no file");
    rig.restart();
    assert_eq!(
        rig.export(&case, None).await.unwrap().registrations.len(),
        1
    );
    let request = Request::OpenByToken {
        token: token().as_str().to_owned(),
    };
    let Answer::OpenedProven { case, .. } = rig.ask(request).await.unwrap() else {
        panic!("not opened");
    };
    let request = Request::Erase {
        case,
        override_reason: None,
    };
    assert!(matches!(
        rig.ask(request).await.unwrap(),
        Answer::Erased { .. }
    ));
    assert!(!rig.holds(token().as_str()));
    let held = rig.held.0.lock().unwrap();
    assert_eq!(held.erased, [Claim::Token(token())]);
    assert!(held.subjects.last().unwrap().device_tokens == [token()]);
}

#[actix_rt::test]
async fn what_has_expired_is_swept() {
    let mut rig = Rig::start(0);
    let (_, code) = rig.open().await;
    rig.after(14 * DAY);
    let late = rig.say(ada(), &code).await.unwrap();
    assert!(late.contains("expired"), "{late}");
    let sweep = SweepOutdated {
        now: rig.clock.now(),
        limit: 1_000,
    };
    let swept = rig.send(&rig.desk.sweep, sweep).await.unwrap();
    assert!(swept.removed == 1 && !swept.more);
    assert!(!rig.holds("ada"));
    rig.restart();
    assert_eq!(rig.say(ada(), &code).await, None);
}

#[actix_rt::test]
async fn operators_ask_by_the_socket_and_one_service_has_it() {
    let rig = Rig::start(0);
    let config = config(rig.directory.path());
    let socket = privacy::admin::bind(&config).unwrap();
    assert!(privacy::admin::bind(&config).is_err());
    let serve = rig.desk.serve.clone();
    let admin = privacy::admin::start(socket, privacy::admin::Edges { serve }).unwrap();
    let path = config.socket.clone();
    let asked = actix_rt::task::spawn_blocking(move || {
        let request = Request::Open {
            account: "ada@chat.example".to_owned(),
            service: Some("push2.example".to_owned()),
        };
        let opened = privacy::admin::ask(&path, &request).map(|answer| match answer {
            Answer::Opened { address, .. } => address,
            _ => panic!("not opened"),
        });
        let unknown = Request::Close {
            case: "nobody".to_owned(),
        };
        let refused = privacy::admin::ask(&path, &unknown).is_err();
        // What is no request gets a word too, and so does one that is too long.
        use std::io::{Read, Write};
        let mut answers = Vec::new();
        for bytes in [&b"sing\n"[..], &[b'x'; 20_000]] {
            let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
            let _closed_early = stream.write_all(bytes);
            let mut answer = String::new();
            let _closed_early = stream.read_to_string(&mut answer);
            answers.push(answer);
        }
        (opened.unwrap(), refused, answers)
    });
    let (address, refused, answers) = asked.await.unwrap();
    assert_eq!(address, "privacy@push2.example");
    assert!(refused);
    assert!(answers[0].contains("refused"), "{answers:?}");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&config.socket).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    let deadline = std::time::Instant::now();
    admin
        .drain
        .send(messages::Drain {
            deadline,
            farewell: std::time::Duration::ZERO,
        })
        .await
        .unwrap();
    assert!(!config.socket.exists());
    let absent = privacy::admin::ask(&config.socket, &Request::List);
    assert!(matches!(absent, Err(privacy::admin::AskError::Absent)));
}
