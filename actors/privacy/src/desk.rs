//! The actor that answers people about their data.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use actix::{
    Actor, Context, Handler, MailboxError, Message, MessageResult, Recipient, ResponseFuture,
    Supervised, Supervisor,
};
use messages::{
    AccessedEvent, BareJid, CaseId, Claim, Clock, CommandAction, CommandError, CommandField,
    CommandStage, CommandStatus, ConfirmCase, DescribeRegistrations, DeviceToken, Domain, Drain,
    Drained, EraseJournal, EraseRegistrations, ErasedEvent, FindRegistration, Health, JournalBatch,
    JournalEntry, JournalError, JournalEvent, NodeId, OfferPost, OverriddenEvent, PrivacyCommand,
    Probe, Proof, ReadJournal, RegistrationDetails, RegistryError, RotateKeys, RunPrivacyCommand,
    Secret, SendMessage, Subject, SweepError, SweepOutdated, SweptOutdated, SyncJournal,
    UnixSeconds,
};
use tokio::sync::Notify;

use crate::admin::{Answer, CaseLine, Refusal, Request};
use crate::cases::{self, Attempt, Cases, Outcome, Person, State};
use crate::code::CodeKey;
use crate::facts::Facts;
use crate::limits::Limits;
use crate::report::{self, CaseEntry, Line, Registration, Report};
use crate::sessions::{self, Sessions};
use crate::{Config, Error, file, time};

const CASES_FILE: &str = "cases.json";
/// A file with as many cases as there may be is far smaller.
const CASES_BYTES_MAX: u64 = 64 << 20;
/// How long the registry and the journal may take to show something.
const READ_LIMIT: Duration = Duration::from_secs(30);
/// How long the journal may take to have all on disk that it was told.
const SYNC_LIMIT: Duration = Duration::from_secs(10);
/// Lines that the journal is asked for at a time.
const PAGE_LINES: u32 = 1_000;
/// Lines that a person is shown by a command; an operator can export all.
const COMMAND_LINES_MAX: usize = 5_000;
/// Bytes of each half of a stage: servers take stanzas of 64 kB from clients, and some less.
const PIECE_BYTES_MAX: usize = 12_288;

/// Where the desk sends.
#[derive(Clone)]
pub struct Edges {
    /// Finds a registration by its secret.
    pub find: Recipient<FindRegistration>,
    /// Shows registrations.
    pub describe: Recipient<DescribeRegistrations>,
    /// Erases registrations.
    pub erase: Recipient<EraseRegistrations>,
    /// Makes new keys.
    pub rotate: Recipient<RotateKeys>,
    /// The journal, where one is kept.
    pub journal: Option<JournalEdges>,
}

/// The journal's side of [`Edges`].
#[derive(Clone)]
pub struct JournalEdges {
    /// Is told.
    pub record: Recipient<JournalBatch>,
    /// Shows a person's lines.
    pub read: Recipient<ReadJournal>,
    /// Erases them.
    pub erase: Recipient<EraseJournal>,
    /// Has on disk what it was told.
    pub sync: Recipient<SyncJournal>,
}

/// Where the desk takes messages.
#[derive(Clone)]
pub struct Handles {
    /// Codes that people send.
    pub confirm: Recipient<ConfirmCase>,
    /// Commands of people about their own data.
    pub command: Recipient<RunPrivacyCommand>,
    /// Cases, sessions and counters that have ended.
    pub sweep: Recipient<SweepOutdated>,
    /// What operators ask.
    pub serve: Recipient<Serve>,
    /// Offers to send messages.
    pub offer: Recipient<OfferPost>,
    /// Ends when what is being done is done.
    pub drain: Recipient<Drain>,
    /// Counters.
    pub probe: Recipient<Probe>,
}

/// A request of an operator.
#[derive(Debug, Message)]
#[rtype(result = "Result<Answer, Refusal>")]
pub struct Serve(pub Request);

/// The opened cases.
pub struct Prepared {
    config: Config,
    facts: Facts,
    services: Vec<Domain>,
    cases: Cases,
    key: CodeKey,
}

impl Prepared {
    /// Opens the cases, or makes their directory and key at the first start. Blocks for disk.
    ///
    /// # Errors
    /// Every [`Error`] that says what an operator has to do.
    pub fn open(config: &Config, facts: Facts, services: Vec<Domain>) -> Result<Self, Error> {
        if let Some(finding) = config.findings().into_iter().next() {
            return Err(finding);
        }
        file::create_private(&config.path)?;
        let path = cases_file(config);
        file::clean(&path)?;
        let cases = read_cases(config)?.unwrap_or_default();
        let key = CodeKey::open(&config.key_file)?;
        Ok(Self {
            config: config.clone(),
            facts,
            services,
            cases,
            key,
        })
    }
}

/// Finds what would keep [`Prepared::open`] from working, and changes nothing.
#[must_use]
pub fn inspect(config: &Config) -> Vec<Error> {
    let mut findings = config.findings();
    if findings.is_empty() {
        if config.path.exists() {
            findings.extend(file::create_private(&config.path).err());
            findings.extend(read_cases(config).err());
        }
        findings.extend(CodeKey::load(&config.key_file).err());
    }
    findings
}

fn cases_file(config: &Config) -> PathBuf {
    config.path.join(CASES_FILE)
}

fn read_cases(config: &Config) -> Result<Option<Cases>, Error> {
    let path = cases_file(config);
    let bytes = file::read(&path, CASES_BYTES_MAX)?;
    bytes
        .map(|bytes| Cases::decode(&bytes).ok_or(Error::Cases { path }))
        .transpose()
}

/// Starts the desk on the current arbiter.
#[must_use]
pub fn start(prepared: Prepared, clock: Clock, edges: Edges) -> Handles {
    let core = Rc::new(Core {
        config: prepared.config,
        facts: prepared.facts,
        services: prepared.services,
        key: prepared.key,
        clock,
        edges,
        cases: RefCell::new(prepared.cases),
        saving: tokio::sync::Mutex::new(()),
        sessions: RefCell::default(),
        limits: RefCell::default(),
        posts: RefCell::default(),
        working: Cell::new(0),
        idle: Notify::new(),
        counters: Counters::default(),
    });
    let address = Supervisor::start(|ctx: &mut Context<Desk>| {
        ctx.set_mailbox_capacity(0);
        Desk { core }
    });
    Handles {
        confirm: address.clone().recipient(),
        command: address.clone().recipient(),
        sweep: address.clone().recipient(),
        serve: address.clone().recipient(),
        offer: address.clone().recipient(),
        drain: address.clone().recipient(),
        probe: address.recipient(),
    }
}

struct Desk {
    core: Rc<Core>,
}

/// What the desk's tasks share. Never borrowed across an await.
struct Core {
    config: Config,
    facts: Facts,
    services: Vec<Domain>,
    key: CodeKey,
    clock: Clock,
    edges: Edges,
    cases: RefCell<Cases>,
    /// Held while cases are changed and written.
    saving: tokio::sync::Mutex<()>,
    sessions: RefCell<Sessions>,
    limits: RefCell<Limits>,
    /// Who sends messages.
    posts: RefCell<Vec<Recipient<SendMessage>>>,
    /// Requests that are being answered.
    working: Cell<usize>,
    idle: Notify,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    confirmations: Cell<u64>,
    refusals: Cell<u64>,
    accesses: Cell<u64>,
    erasures: Cell<u64>,
    limited: Cell<u64>,
    failures: Cell<u64>,
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// Why something could not be shown or erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Busy,
    Failed,
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Busy | RegistryError::Stopping => Self::Busy,
            RegistryError::Store | RegistryError::TooMany => Self::Failed,
        }
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Busy | JournalError::Stopping => Self::Busy,
            JournalError::Files => Self::Failed,
        }
    }
}

impl From<MailboxError> for Failure {
    fn from(_: MailboxError) -> Self {
        Self::Busy
    }
}

impl From<Failure> for CommandError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Busy => Self::Busy,
            Failure::Failed => Self::Failed,
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::new(match failure {
            Failure::Busy => "the service is busy or stopping: try again",
            Failure::Failed => "the store, the journal or the cases failed: see the log",
        })
    }
}

/// What an erasure did.
struct Erased {
    registrations: usize,
    /// None where no journal is kept.
    records: Option<u64>,
}

impl Erased {
    fn lines(&self) -> Vec<String> {
        vec![
            format!("Registrations erased: {}", self.registrations),
            match self.records {
                Some(records) => format!("Lines of the journal erased: {records}"),
                None => "No journal is kept.".to_owned(),
            },
            "Tokens that Apple called dead are not kept, so there was nothing of that.".to_owned(),
            "What cannot be erased here: your XMPP server keeps node and secret until your app ends push \
             there, and Apple keeps what it was told."
                .to_owned(),
        ]
    }
}

impl Core {
    fn now(&self) -> UnixSeconds {
        self.clock.now()
    }

    /// Changes the cases, durably. Nothing is changed that is not on disk.
    async fn change<T>(&self, change: impl FnOnce(&mut Cases) -> T) -> Result<T, Failure> {
        let _turn = self.saving.lock().await;
        let mut cases = self.cases.borrow().clone();
        let before = cases.encode();
        let result = change(&mut cases);
        let bytes = cases.encode();
        if bytes != before {
            let path = cases_file(&self.config);
            let written = actix_rt::task::spawn_blocking(move || file::write(&path, &bytes)).await;
            match written {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!("the cases could not be written: {error}");
                    return Err(self.failed());
                }
                Err(_) => return Err(self.failed()),
            }
        }
        self.cases.replace(cases);
        Ok(result)
    }

    fn failed(&self) -> Failure {
        count(&self.counters.failures);
        Failure::Failed
    }

    fn record(&self, event: JournalEvent) {
        let Some(journal) = &self.edges.journal else {
            return;
        };
        let at = self.now();
        let items = vec![JournalEntry { at, event }];
        if journal.record.try_send(JournalBatch { items }).is_err() {
            tracing::error!("the journal is gone: an access or erasure is not in it");
        }
    }

    /// Has the journal keep what it was told, where a promise depends on it.
    async fn record_durably(&self, event: JournalEvent) -> Result<(), Failure> {
        self.record(event);
        if let Some(journal) = &self.edges.journal {
            journal.sync.send(SyncJournal).timeout(SYNC_LIMIT).await??;
        }
        Ok(())
    }

    async fn registrations(&self, person: &Person) -> Result<Vec<RegistrationDetails>, Failure> {
        let describe = DescribeRegistrations {
            claim: claim_of(person),
        };
        let asked = self.edges.describe.send(describe).timeout(READ_LIMIT);
        Ok(asked.await??)
    }

    /// Gathers what is held on a person.
    async fn report(&self, person: &Person, lines_max: usize) -> Result<Report, Failure> {
        let details = self.registrations(person).await?;
        let mut journal = Vec::new();
        let mut journal_is_cut = false;
        if let Some(edges) = &self.edges.journal {
            let mut subject = subject_of(person, &details);
            let mut after = None;
            loop {
                let read = ReadJournal {
                    subject,
                    after,
                    limit: PAGE_LINES,
                };
                let page = edges.read.send(read).timeout(READ_LIMIT).await??;
                journal.extend(page.lines.iter().map(Line::of));
                if page.next.is_none() {
                    break;
                }
                if journal.len() >= lines_max {
                    journal_is_cut = true;
                    break;
                }
                (subject, after) = (page.subject, page.next);
            }
            journal_is_cut |= journal.len() > lines_max;
            journal.truncate(lines_max);
        }
        let now = self.now();
        let mut cases = Vec::new();
        let mut limits = report::Limits::default();
        if let Person::Account(account) = person {
            let known = self.cases.borrow();
            cases.extend(
                known
                    .of_account(account)
                    .map(|case| CaseEntry::new(&case.id, case.opened_at, case.state_name(now))),
            );
            limits = report::Limits {
                commands: self.limits.borrow().of(account, now),
                commands_max: self.config.commands_per_account_max,
            };
        }
        Ok(Report {
            made_at: time::text(now),
            subject: report::Subject::of(person),
            registrations: details.iter().map(Registration::of).collect(),
            journal,
            journal_is_cut,
            cases,
            limits,
            processing: self.facts.clone(),
        })
    }

    /// Erases what is held on a person: registrations first, so that nothing more is journalled on them.
    async fn erase(
        &self,
        person: &Person,
        case: Option<&CaseId>,
        proof: Proof,
    ) -> Result<Erased, Failure> {
        let erase = EraseRegistrations {
            claim: claim_of(person),
        };
        // As long as it takes: it is answered when the bytes are gone.
        let details = self.edges.erase.send(erase).await??;
        let records = match &self.edges.journal {
            Some(journal) => {
                let subject = subject_of(person, &details);
                let erased = journal.erase.send(EraseJournal { subject }).await??;
                Some(erased.records)
            }
            None => None,
        };
        let now = self.now();
        self.change(|cases| cases.forget(|known| known == person, now))
            .await?;
        if let Person::Account(account) = person {
            self.sessions.borrow_mut().forget(account);
        }
        count(&self.counters.erasures);
        self.record(JournalEvent::Erased(Box::new(ErasedEvent {
            case: case.cloned(),
            proof,
            registrations: details.len() as u64,
            records: records.unwrap_or_default(),
        })));
        tracing::info!(
            registrations = details.len(),
            records,
            proof = proof.as_str(),
            "erased what was held on a person"
        );
        Ok(Erased {
            registrations: details.len(),
            records,
        })
    }

    async fn confirm(&self, confirm: ConfirmCase) -> Option<String> {
        let ConfirmCase {
            account,
            address,
            text,
            encrypted,
        } = confirm;
        let expected = self.cases.borrow().expects(&account, &address);
        let known = self.cases.borrow().of_account(&account).next().is_some();
        if !expected && !known {
            count(&self.counters.refusals);
            return None;
        }
        if encrypted {
            // What is left of it is no attempt.
            return expected.then(|| {
                "This address cannot read encrypted messages. Please turn encryption off in this chat and \
                 send the code again."
                    .to_owned()
            });
        }
        let now = self.now();
        let attempt = self
            .change(|cases| cases.attempt(&account, &address, &text, &self.key, &self.config, now))
            .await;
        let Ok(attempt) = attempt else {
            return Some("Something failed here. Please send the code again later.".to_owned());
        };
        if let Attempt::Confirmed(case) = attempt {
            count(&self.counters.confirmations);
            tracing::info!(%case, "a case is confirmed");
            return Some(format!(
                "Thank you. Your request {case} is confirmed, and the operator of this service will go on \
                 with it."
            ));
        }
        count(&self.counters.refusals);
        match attempt {
            Attempt::Expired => Some(
                "This code has expired. Please ask the operator of this service for a new one."
                    .to_owned(),
            ),
            Attempt::Used => Some("This code was used already.".to_owned()),
            Attempt::Wrong(0) => Some(
                "This is not the code, and it was the last try. Please ask the operator of this service \
                 for a new one."
                    .to_owned(),
            ),
            Attempt::Wrong(left) => Some(format!(
                "This is not the code. Please send the code alone. Tries left: {left}."
            )),
            Attempt::Confirmed(_) | Attempt::Nothing => None,
        }
    }

    async fn command(&self, run: RunPrivacyCommand) -> Result<CommandStage, CommandError> {
        let RunPrivacyCommand {
            account,
            command,
            session,
            action,
            ..
        } = run;
        match (session, action) {
            (None, CommandAction::Cancel) => Err(CommandError::NoSession),
            (None, CommandAction::Execute) => self.begin(account, command).await,
            (None, _) => Err(CommandError::BadAction),
            (Some(name), CommandAction::Cancel) => {
                self.session(&name, &account, command)?;
                self.sessions.borrow_mut().end(&name);
                Ok(CommandStage {
                    session: name,
                    status: CommandStatus::Canceled,
                    note: None,
                    title: String::new(),
                    instructions: String::new(),
                    fields: Vec::new(),
                })
            }
            (Some(name), action) => match command {
                PrivacyCommand::Access => self.turn(&name, &account, action),
                PrivacyCommand::Erase => self.erase_own(name, account, action).await,
            },
        }
    }

    async fn begin(
        &self,
        account: BareJid,
        command: PrivacyCommand,
    ) -> Result<CommandStage, CommandError> {
        let now = self.now();
        if !self.limits.borrow_mut().take(&account, &self.config, now) {
            count(&self.counters.limited);
            return Err(CommandError::Limited);
        }
        let person = Person::Account(account.clone());
        match command {
            PrivacyCommand::Access => {
                let report = self.report(&person, COMMAND_LINES_MAX).await?;
                count(&self.counters.accesses);
                self.record(JournalEvent::Accessed(Box::new(AccessedEvent {
                    account: Some(account.clone()),
                    case: None,
                    proof: Proof::SelfService,
                })));
                let pieces = sessions::pieces(&report.lines(), &report.json(), PIECE_BYTES_MAX);
                let name = self.begin_session(&account, command, pieces)?;
                self.turn(&name, &account, CommandAction::Execute)
            }
            PrivacyCommand::Erase => {
                let details = self.registrations(&person).await?;
                let session = self.begin_session(&account, command, Vec::new())?;
                let lines = vec![
                    format!("Registered devices: {}", details.len()),
                    "These registrations, all lines of the journal about you, and your requests to the \
                     operator will be erased, at once and for good. Your devices get no push notifications \
                     from here until they register again."
                        .to_owned(),
                ];
                Ok(CommandStage {
                    session,
                    status: CommandStatus::Executing {
                        actions: &[CommandAction::Complete],
                    },
                    note: None,
                    title: "Erase my data".to_owned(),
                    instructions:
                        "Do you want all data on your account to be erased? Complete this \
                                   command to erase it, or cancel it."
                            .to_owned(),
                    fields: vec![CommandField {
                        name: "data",
                        label: "What will be erased",
                        lines,
                    }],
                })
            }
        }
    }

    fn begin_session(
        &self,
        account: &BareJid,
        command: PrivacyCommand,
        pieces: Vec<sessions::Piece>,
    ) -> Result<String, CommandError> {
        let now = self.now();
        let mut sessions = self.sessions.borrow_mut();
        match sessions.begin(account, command, pieces, &self.config, now) {
            Ok(Some(name)) => Ok(name),
            Ok(None) => Err(CommandError::Busy),
            Err(_) => Err(CommandError::Failed),
        }
    }

    fn session(
        &self,
        name: &str,
        account: &BareJid,
        command: PrivacyCommand,
    ) -> Result<(), CommandError> {
        let now = self.now();
        let mut sessions = self.sessions.borrow_mut();
        let known = sessions.go_on(name, account, command, &self.config, now);
        known.map(drop).ok_or(CommandError::NoSession)
    }

    /// Shows a piece of the report.
    fn turn(
        &self,
        name: &str,
        account: &BareJid,
        action: CommandAction,
    ) -> Result<CommandStage, CommandError> {
        const MIDDLE: &[CommandAction] = &[
            CommandAction::Next,
            CommandAction::Previous,
            CommandAction::Complete,
        ];
        let now = self.now();
        let mut sessions = self.sessions.borrow_mut();
        let access = PrivacyCommand::Access;
        let session = sessions
            .go_on(name, account, access, &self.config, now)
            .ok_or(CommandError::NoSession)?;
        let last = session.pieces.len().saturating_sub(1);
        match action {
            CommandAction::Execute if !session.is_shown => {}
            CommandAction::Next | CommandAction::Execute if session.at < last => session.at += 1,
            CommandAction::Previous if session.at > 0 => session.at -= 1,
            CommandAction::Complete => session.at = last,
            _ => return Err(CommandError::BadAction),
        }
        session.is_shown = true;
        let (at, piece) = (session.at, session.pieces.get(session.at).cloned());
        let piece = piece.unwrap_or_default();
        let status = if at >= last {
            CommandStatus::Completed
        } else if at == 0 {
            CommandStatus::Executing {
                actions: &[CommandAction::Next, CommandAction::Complete],
            }
        } else {
            CommandStatus::Executing { actions: MIDDLE }
        };
        if status == CommandStatus::Completed {
            sessions.end(name);
        }
        let part = format!("Part {} of {}", at + 1, last + 1);
        Ok(CommandStage {
            session: name.to_owned(),
            status,
            note: None,
            title: "My data".to_owned(),
            instructions: match last {
                0 => "All that is held on your account.".to_owned(),
                _ => format!(
                    "All that is held on your account. {part}; put the parts of the JSON together in \
                     their order."
                ),
            },
            fields: vec![
                CommandField {
                    name: "data",
                    label: "Your data",
                    lines: piece.lines,
                },
                CommandField {
                    name: "json",
                    label: "The same as JSON",
                    lines: piece.json,
                },
            ],
        })
    }

    async fn erase_own(
        &self,
        name: String,
        account: BareJid,
        action: CommandAction,
    ) -> Result<CommandStage, CommandError> {
        self.session(&name, &account, PrivacyCommand::Erase)?;
        if !matches!(action, CommandAction::Complete | CommandAction::Execute) {
            return Err(CommandError::BadAction);
        }
        self.sessions.borrow_mut().end(&name);
        let person = Person::Account(account);
        let erased = self.erase(&person, None, Proof::SelfService).await?;
        Ok(CommandStage {
            session: name,
            status: CommandStatus::Completed,
            note: Some("What was held on your account is erased.".to_owned()),
            title: "Erase my data".to_owned(),
            instructions: "What was held on your account is erased.".to_owned(),
            fields: vec![CommandField {
                name: "data",
                label: "What was erased",
                lines: erased.lines(),
            }],
        })
    }

    async fn serve(&self, request: Request) -> Result<Answer, Refusal> {
        match request {
            Request::Open { account, service } => self.open(&account, service).await,
            Request::OpenBySecret {
                node,
                secret,
                service,
            } => self.open_by_secret(&node, &secret, service).await,
            Request::OpenByToken { token } => self.open_by_token(&token).await,
            Request::List => Ok(self.list()),
            Request::RotateKeys => {
                let rotated = self.edges.rotate.send(RotateKeys).await;
                rotated
                    .map_err(Failure::from)
                    .and_then(|rotated| rotated.map_err(Failure::from))?;
                tracing::info!("the keys of the registrations are rotated");
                Ok(Answer::Rotated)
            }
            Request::Export {
                case,
                override_reason,
            } => {
                let (id, person, proof) = self.confirmed(&case, override_reason).await?;
                let lines_max = usize::try_from(self.config.lines_max).unwrap_or(usize::MAX);
                let report = self.report(&person, lines_max).await?;
                self.accessed(id, &person, proof);
                Ok(Answer::Report(Box::new(report)))
            }
            Request::Send {
                case,
                override_reason,
            } => {
                let (id, person, proof) = self.confirmed(&case, override_reason).await?;
                self.send_report(id, person, proof).await
            }
            Request::Erase {
                case,
                override_reason,
            } => {
                let (id, person, proof) = self.confirmed(&case, override_reason).await?;
                let erased = self.erase(&person, Some(&id), proof).await?;
                Ok(Answer::Erased {
                    lines: erased.lines(),
                })
            }
            Request::Close { case } => {
                let id = self.known(&case)?;
                let now = self.now();
                self.change(|cases| cases.close(&id, Outcome::Closed, now))
                    .await?;
                Ok(Answer::Closed)
            }
        }
    }

    fn accessed(&self, case: CaseId, person: &Person, proof: Proof) {
        count(&self.counters.accesses);
        let account = match person {
            Person::Account(account) => Some(account.clone()),
            Person::Token(_) | Person::Registration(_) => None,
        };
        self.record(JournalEvent::Accessed(Box::new(AccessedEvent {
            account,
            case: Some(case),
            proof,
        })));
    }

    /// Sends a report to the account that it is about, and to nobody else.
    async fn send_report(
        &self,
        case: CaseId,
        person: Person,
        proof: Proof,
    ) -> Result<Answer, Refusal> {
        let Person::Account(account) = &person else {
            return Err(Refusal::new("the case is about no account: use --out"));
        };
        let service = self.service(None)?;
        let from = BareJid::new(&self.config.localpart, service);
        let report = self.report(&person, COMMAND_LINES_MAX).await?;
        let pieces = sessions::pieces(&report.lines(), &report.json(), PIECE_BYTES_MAX);
        let halves: [fn(&sessions::Piece) -> &Vec<String>; 2] =
            [|piece| &piece.lines, |piece| &piece.json];
        let texts = halves
            .iter()
            .flat_map(|half| pieces.iter().map(half))
            .filter(|lines| !lines.is_empty());
        let mut messages = 0;
        for lines in texts {
            let message = || SendMessage {
                from: from.clone(),
                to: account.clone(),
                text: lines.join("\n"),
            };
            if !self.post(message).await {
                return Err(Refusal::new(
                    "no message can be sent now: the service has to run and to serve its first domain",
                ));
            }
            messages += 1;
        }
        self.accessed(case, &person, proof);
        Ok(Answer::Sent {
            account: account.as_str().to_owned(),
            messages,
        })
    }

    /// Sends a message by whoever sends for its domain.
    async fn post(&self, message: impl Fn() -> SendMessage) -> bool {
        let posts = self.posts.borrow().clone();
        for post in posts {
            let sent = post.send(message()).timeout(SYNC_LIMIT).await;
            if sent.unwrap_or(false) {
                return true;
            }
        }
        false
    }

    /// The domain that was named, or the first.
    fn service(&self, named: Option<String>) -> Result<Domain, Refusal> {
        let known = match &named {
            Some(name) => self.services.iter().find(|known| known.as_str() == name),
            None => self.services.first(),
        };
        known
            .cloned()
            .ok_or_else(|| Refusal::new("that domain is not served"))
    }

    async fn open(&self, account: &str, service: Option<String>) -> Result<Answer, Refusal> {
        let account = cases::account(account).ok_or_else(|| Refusal::new("that is no bare JID"))?;
        let service = self.service(service)?;
        let address = BareJid::new(&self.config.localpart, service);
        let now = self.now();
        let opened = self
            .change(|cases| {
                cases.open(
                    account.clone(),
                    address.clone(),
                    &self.key,
                    &self.config,
                    now,
                )
            })
            .await?;
        match opened {
            Ok(Some((id, code, expires_at))) => {
                tracing::info!(case = %id, "a case is opened");
                Ok(Answer::Opened {
                    case: id.to_string(),
                    address: address.as_str().to_owned(),
                    code: code.as_str().to_owned(),
                    expires_at: time::text(expires_at),
                })
            }
            Ok(None) => Err(full()),
            Err(_) => Err(self.failed().into()),
        }
    }

    async fn open_by_secret(
        &self,
        node: &str,
        secret: &str,
        service: Option<String>,
    ) -> Result<Answer, Refusal> {
        let services = match service {
            Some(name) => vec![self.service(Some(name))?],
            None => self.services.clone(),
        };
        let (Ok(node), Ok(secret)) = (NodeId::new(node), Secret::new(secret)) else {
            return Err(Refusal::new("node or secret is empty or too long"));
        };
        let find = FindRegistration {
            services,
            node,
            secret,
        };
        let asked = self.edges.find.send(find).timeout(READ_LIMIT).await;
        let found = asked
            .map_err(Failure::from)
            .and_then(|found| found.map_err(Failure::from))?;
        let registration = found.ok_or_else(|| {
            Refusal::new("no registration has this node and secret, or it has ended")
        })?;
        self.open_proven(Person::Registration(registration), Proof::NodeAndSecret)
            .await
    }

    async fn open_by_token(&self, token: &str) -> Result<Answer, Refusal> {
        let token = DeviceToken::parse(token)
            .map_err(|_| Refusal::new("that is no device token in hex"))?;
        self.open_proven(Person::Token(token), Proof::DeviceToken)
            .await
    }

    async fn open_proven(&self, person: Person, proof: Proof) -> Result<Answer, Refusal> {
        let now = self.now();
        let opened = self
            .change(|cases| cases.open_proven(person, proof, &self.config, now))
            .await?;
        match opened {
            Ok(Some(id)) => Ok(Answer::OpenedProven {
                case: id.to_string(),
                proof: proof.as_str().to_owned(),
            }),
            Ok(None) => Err(full()),
            Err(_) => Err(self.failed().into()),
        }
    }

    fn list(&self) -> Answer {
        let now = self.now();
        let cases = self.cases.borrow();
        let lines = cases.all().iter().map(|case| {
            let (person, proof, until) = match &case.state {
                State::Open(open) => (
                    Some(open.account.as_str().to_owned()),
                    None,
                    Some(time::text(open.expires_at)),
                ),
                State::Confirmed { person, proof, .. } => {
                    let person = match person {
                        Person::Account(account) => account.as_str().to_owned(),
                        Person::Token(_) => "a device token".to_owned(),
                        Person::Registration(_) => "a node and its secret".to_owned(),
                    };
                    (Some(person), Some(proof.as_str().to_owned()), None)
                }
                State::Closed { .. } => (None, None, None),
            };
            CaseLine {
                case: case.id.to_string(),
                opened_at: time::text(case.opened_at),
                state: case.state_name(now).to_owned(),
                person,
                proof,
                code_expires_at: until,
            }
        });
        Answer::Cases(lines.collect())
    }

    fn known(&self, case: &str) -> Result<CaseId, Refusal> {
        let id = CaseId::new(case).ok();
        id.filter(|id| self.cases.borrow().case(id).is_some())
            .ok_or_else(|| Refusal::new("there is no such case; campanile privacy list shows them"))
    }

    /// The person of a confirmed case. An operator's word makes it one, and goes to the journal first.
    async fn confirmed(
        &self,
        case: &str,
        override_reason: Option<String>,
    ) -> Result<(CaseId, Person, Proof), Refusal> {
        let id = self.known(case)?;
        if self.is_open(&id)
            && let Some(reason) = override_reason
        {
            if reason.trim().is_empty() {
                return Err(Refusal::new("an override needs a reason"));
            }
            let overridden = OverriddenEvent {
                case: id.clone(),
                reason: reason.into(),
            };
            self.record_durably(JournalEvent::Overridden(Box::new(overridden)))
                .await?;
            let now = self.now();
            self.change(|cases| cases.confirm_by_override(&id, now))
                .await?;
            tracing::warn!(case = %id, "an operator answers for the identity in a case");
        }
        let cases = self.cases.borrow();
        match cases.case(&id).map(|case| &case.state) {
            Some(State::Confirmed { person, proof, .. }) => Ok((id, person.clone(), *proof)),
            Some(State::Open(_)) => Err(Refusal::new(
                "the case is not confirmed: the person has to send the code first; with proof by other \
                 means use --override \"reason\", which is journalled",
            )),
            Some(State::Closed { .. }) | None => Err(Refusal::new("the case is closed")),
        }
    }

    fn is_open(&self, id: &CaseId) -> bool {
        let cases = self.cases.borrow();
        cases
            .case(id)
            .is_some_and(|case| matches!(case.state, State::Open(_)))
    }

    async fn sweep(&self, now: UnixSeconds) -> Result<SweptOutdated, SweepError> {
        let mut removed = self.sessions.borrow_mut().sweep(now);
        removed += self.limits.borrow_mut().sweep(now);
        if self.cases.borrow().has_outdated(&self.config, now) {
            let swept = self.change(|cases| cases.sweep(&self.config, now)).await;
            removed += swept.map_err(|_| SweepError::Failed)?;
        }
        Ok(SweptOutdated {
            removed,
            more: false,
        })
    }
}

fn full() -> Refusal {
    Refusal::new("there are as many cases as privacy.cases_max allows: close some")
}

fn claim_of(person: &Person) -> Claim {
    match person {
        Person::Account(account) => Claim::Account(account.clone()),
        Person::Token(token) => Claim::Token(token.clone()),
        Person::Registration(key) => Claim::Registrations(vec![*key]),
    }
}

/// Whose lines of the journal belong to a person. A node may be shared by accounts, so it counts only for
/// who has proven its secret.
fn subject_of(person: &Person, details: &[RegistrationDetails]) -> Subject {
    let mut subject = Subject::default();
    match person {
        Person::Account(account) => subject.account = Some(account.clone()),
        Person::Token(token) => subject.device_tokens.push(token.clone()),
        Person::Registration(key) => {
            subject.registrations.push(*key);
        }
    }
    for one in details {
        subject.widen(one.registration);
    }
    subject
}

impl Actor for Desk {
    type Context = Context<Self>;
}

impl Supervised for Desk {}

impl Desk {
    /// Does something to its end, whether whoever asked waits that long or not.
    fn work<T: 'static>(
        &self,
        work: impl AsyncFnOnce(&Core) -> T + 'static,
    ) -> ResponseFuture<Option<T>> {
        let core = Rc::clone(&self.core);
        core.working.set(core.working.get() + 1);
        let done = actix_rt::spawn(async move {
            let result = work(&core).await;
            core.working.set(core.working.get() - 1);
            core.idle.notify_one();
            result
        });
        Box::pin(async { done.await.ok() })
    }
}

impl Handler<ConfirmCase> for Desk {
    type Result = ResponseFuture<Option<String>>;

    fn handle(&mut self, confirm: ConfirmCase, _: &mut Self::Context) -> Self::Result {
        let answer = self.work(async move |core: &Core| core.confirm(confirm).await);
        Box::pin(async { answer.await.flatten() })
    }
}

impl Handler<RunPrivacyCommand> for Desk {
    type Result = ResponseFuture<Result<CommandStage, CommandError>>;

    fn handle(&mut self, run: RunPrivacyCommand, _: &mut Self::Context) -> Self::Result {
        let stage = self.work(async move |core: &Core| core.command(run).await);
        Box::pin(async { stage.await.unwrap_or(Err(CommandError::Failed)) })
    }
}

impl Handler<Serve> for Desk {
    type Result = ResponseFuture<Result<Answer, Refusal>>;

    fn handle(&mut self, Serve(request): Serve, _: &mut Self::Context) -> Self::Result {
        let answer = self.work(async move |core: &Core| core.serve(request).await);
        Box::pin(async { answer.await.unwrap_or_else(|| Err(Failure::Failed.into())) })
    }
}

impl Handler<OfferPost> for Desk {
    type Result = ();

    fn handle(&mut self, offer: OfferPost, _: &mut Self::Context) {
        self.core.posts.borrow_mut().push(offer.post);
    }
}

impl Handler<SweepOutdated> for Desk {
    type Result = ResponseFuture<Result<SweptOutdated, SweepError>>;

    fn handle(&mut self, sweep: SweepOutdated, _: &mut Self::Context) -> Self::Result {
        let swept = self.work(async move |core: &Core| core.sweep(sweep.now).await);
        Box::pin(async { swept.await.unwrap_or(Err(SweepError::Failed)) })
    }
}

impl Handler<Drain> for Desk {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, drain: Drain, _: &mut Self::Context) -> Self::Result {
        let core = Rc::clone(&self.core);
        Box::pin(async move {
            let idle = async {
                while core.working.get() > 0 {
                    core.idle.notified().await;
                }
            };
            let _ = tokio::time::timeout_at(drain.deadline.into(), idle).await;
            Drained {
                abandoned: core.working.get() as u64,
            }
        })
    }
}

impl Handler<Probe> for Desk {
    type Result = MessageResult<Probe>;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
        let counters = &self.core.counters;
        MessageResult(Health {
            counters: vec![
                ("privacy_cases", self.core.cases.borrow().all().len() as u64),
                ("privacy_confirmations_total", counters.confirmations.get()),
                ("privacy_messages_refused_total", counters.refusals.get()),
                ("privacy_accesses_total", counters.accesses.get()),
                ("privacy_erasures_total", counters.erasures.get()),
                ("privacy_commands_limited_total", counters.limited.get()),
                ("privacy_failures_total", counters.failures.get()),
            ],
        })
    }
}
