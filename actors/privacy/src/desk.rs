//! The actor that answers people about their data.

mod commands;
mod requests;

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use actix::{
    Actor, Context, Handler, MailboxError, Message, MessageResult, Recipient, ResponseFuture,
    Supervised, Supervisor,
};
use messages::{
    CaseId, Claim, Clock, CommandError, CommandStage, ConfirmCase, DescribeRegistrations, Domain,
    Drain, Drained, EraseJournal, EraseRegistrations, ErasedEvent, FindAccountKeys,
    FindRegistration, Health, JournalEntry, JournalError, JournalEvent, OfferPost, Probe, Proof,
    ReadJournal, RegistrationDetails, RegistrationKey, RegistryError, RotateKeys,
    RunPrivacyCommand, SendMessage, Subject, SweepError, SweepOutdated, SweptOutdated, SyncJournal,
    UnixSeconds,
};
use tokio::sync::Notify;

use crate::admin::{Answer, Refusal, Request};
use crate::cases::{Attempt, Cases, Person};
use crate::code::CodeKey;
use crate::debt::Debt;
use crate::facts::Facts;
use crate::limits::Limits;
use crate::report::{self, CaseEntry, Line, Registration, Report};
use crate::sessions::Sessions;
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
/// Time between two attempts at erasures that could not be finished. What keeps them is a matter for the
/// operator, and each reads all of the journal.
const RETRY_SECONDS: u64 = 60 * 60;
/// Erasures that one attempt finds it cannot finish before it leaves the rest to the next.
const RETRIES_MAX: usize = 4;
/// Bytes of each half of a stage: servers take stanzas of 64 kB from clients, and some less.
const PIECE_BYTES_MAX: usize = 12_288;

/// Where the desk sends.
#[derive(Clone)]
pub struct Edges {
    /// Finds a registration by its secret.
    pub find: Recipient<FindRegistration>,
    /// Finds the keys of an account.
    pub accounts: Recipient<FindAccountKeys>,
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
    /// Shows a person's lines.
    pub read: Recipient<ReadJournal>,
    /// Erases them.
    pub erase: Recipient<EraseJournal>,
    /// Is told, and has it on disk.
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
    let clock_now = clock.now();
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
        paying: Cell::new(0),
        paid_at: Cell::new(clock_now),
        unpaid: Cell::new(0),
        working: Cell::new(0),
        idle: Notify::new(),
        counters: Counters::default(),
    });
    let desk = Desk { core };
    if !desk.core.cases.borrow().debts().is_empty() {
        // Goes on by itself; nobody waits for it but the end of the process.
        drop(desk.work(async |core: &Core| core.pay_all().await));
    }
    let address = Supervisor::start(|ctx: &mut Context<Desk>| {
        ctx.set_mailbox_capacity(0);
        desk
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
    /// Erasures that are at work.
    paying: Cell<usize>,
    /// When what is owed was last gone through.
    paid_at: Cell<UnixSeconds>,
    /// Attempts at what is owed that have failed: where among the debts the next begins.
    unpaid: Cell<usize>,
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
    /// So many erasures are unfinished that no further one is begun.
    Unfinished,
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Busy | RegistryError::Stopping => Self::Busy,
            RegistryError::Store | RegistryError::TooMany | RegistryError::Crowded => Self::Failed,
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
            Failure::Unfinished => Self::Unfinished,
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::new(match failure {
            Failure::Busy => "the service is busy or stopping: try again",
            Failure::Failed => "the store, the journal or the cases failed: see the log",
            Failure::Unfinished => {
                "nothing was erased: as many erasures are unfinished as privacy.erasures_owed_max allows; \
                 mend the files of the journal that the log names, or raise the limit"
            }
        })
    }
}

/// What an erasure did.
struct Erased {
    registrations: usize,
    /// None where no journal is kept.
    records: Option<u64>,
    /// Damaged files of the journal, of which what could not be read is gone.
    dropped: u64,
    /// Files of the journal that could not be read or written.
    unreached: u64,
}

impl Erased {
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("Registrations erased: {}", self.registrations),
            match self.records {
                Some(records) => format!("Lines of the journal erased: {records}"),
                None => "No journal is kept.".to_owned(),
            },
        ];
        if self.dropped > 0 {
            lines.push(format!(
                "Damaged files of the journal: {}. What could not be read of them is erased, whoever it was \
                 about.",
                self.dropped
            ));
        }
        if self.unreached > 0 {
            lines.push(format!(
                "NOT ERASED YET: {} files of the journal could not be read or written. The running service \
                 tries again every hour; what it cannot reach goes when the time of these files is over.",
                self.unreached
            ));
        }
        lines.extend([
            "Tokens that Apple called dead are not kept, so there was nothing of that.".to_owned(),
            "What cannot be erased here: your XMPP server keeps node and secret until your app ends push \
             there, and Apple keeps what it was told."
                .to_owned(),
        ]);
        lines
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

    /// Has the journal keep what was done for a person. They get it whether the journal can or not.
    async fn record(&self, event: JournalEvent) {
        if self.record_durably(event).await.is_err() {
            tracing::error!("the journal failed: an access or erasure may not be in it");
        }
    }

    /// Has the journal keep an event, where what comes next depends on it.
    async fn record_durably(&self, event: JournalEvent) -> Result<(), Failure> {
        if let Some(journal) = &self.edges.journal {
            let at = self.now();
            let items = vec![JournalEntry { at, event }];
            let sync = journal.sync.send(SyncJournal { items });
            sync.timeout(SYNC_LIMIT).await??;
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

    /// Whose lines of the journal belong to a person. Nodes never count: anybody may register the node of
    /// somebody else, and would see what happened to theirs.
    async fn subject(
        &self,
        person: &Person,
        registrations: impl IntoIterator<Item = RegistrationKey>,
    ) -> Result<Subject, Failure> {
        let mut subject = Subject::default();
        match person {
            Person::Account(account) => {
                let account = account.clone();
                subject.account = Some(account.clone());
                let find = FindAccountKeys { account };
                subject.account_keys = self.edges.accounts.send(find).timeout(READ_LIMIT).await?;
            }
            Person::Token(token) => subject.device_tokens.push(token.clone()),
            Person::Registration(key) => subject.registrations.push(*key),
        }
        for registration in registrations {
            subject.widen(registration);
        }
        Ok(subject)
    }

    /// Gathers what is held on a person.
    async fn report(&self, person: &Person, lines_max: usize) -> Result<Report, Failure> {
        let details = self.registrations(person).await?;
        let mut journal = Vec::new();
        let mut journal_is_cut = false;
        let mut journal_unreadable = 0;
        if let Some(edges) = &self.edges.journal {
            let registrations = details.iter().map(|one| one.registration);
            let mut subject = self.subject(person, registrations).await?;
            let mut after = None;
            loop {
                let read = ReadJournal {
                    subject,
                    after,
                    limit: PAGE_LINES,
                };
                let page = edges.read.send(read).timeout(READ_LIMIT).await??;
                journal.extend(page.lines.iter().map(Line::of));
                journal_unreadable += page.unreadable;
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
            journal_unreadable,
            cases,
            limits,
            processing: self.facts.clone(),
        })
    }

    /// Erases what is held on a person. Noted on disk before anything goes, so that it is finished later if
    /// it is cut short or something cannot be reached.
    async fn erase(
        &self,
        person: &Person,
        case: Option<&CaseId>,
        proof: Proof,
    ) -> Result<Erased, Failure> {
        let mut debt = Debt::new(person, case, proof);
        debt.add(&self.registrations(person).await?);
        let owed = self.change(|cases| cases.owe(debt, &self.config)).await?;
        let Some(debt) = owed else {
            self.failed();
            tracing::error!(
                owed = self.cases.borrow().debts().len(),
                "an erasure was refused: too many are unfinished for privacy.erasures_owed_max"
            );
            return Err(Failure::Unfinished);
        };
        self.pay(debt).await
    }

    /// Does what an erasure has left.
    async fn pay(&self, debt: Debt) -> Result<Erased, Failure> {
        self.paying.set(self.paying.get() + 1);
        let paid = self.pay_in_order(debt).await;
        self.paying.set(self.paying.get() - 1);
        paid
    }

    /// Registrations first, so that nothing more is journalled on them.
    async fn pay_in_order(&self, mut debt: Debt) -> Result<Erased, Failure> {
        if !debt.is_unregistered {
            let erase = EraseRegistrations {
                claim: claim_of(&debt.person),
            };
            // As long as it takes: it is answered when the bytes are gone.
            debt.add(&self.edges.erase.send(erase).await??);
            debt.unregister(self.now());
            self.change(|cases| cases.proceed(&debt)).await?;
        }
        let until = debt.told_until();
        let journal = match &self.edges.journal {
            Some(journal) => {
                let registrations = debt.registrations.iter().copied();
                let subject = self.subject(&debt.person, registrations).await?;
                Some(
                    journal
                        .erase
                        .send(EraseJournal { subject, until })
                        .await??,
                )
            }
            None => None,
        };
        let erased = Erased {
            registrations: debt.registrations.len(),
            records: journal.map(|journal| journal.records),
            dropped: journal.map_or(0, |journal| journal.dropped),
            unreached: journal.map_or(0, |journal| journal.unreached),
        };
        let is_done = erased.unreached == 0;
        let now = self.now();
        // Whoever has asked about the same device by its token or secret asks about what is gone.
        self.change(|cases| {
            cases.forget(|known| debt.concerns(known), until, now);
            if is_done {
                cases.settle(&debt);
            }
        })
        .await?;
        if let Person::Account(account) = &debt.person
            && until.is_none_or(|until| until >= now)
        {
            self.sessions.borrow_mut().forget(account);
        }
        let records = erased.records.unwrap_or_default();
        if is_done || records > 0 {
            self.record(JournalEvent::Erased(Box::new(ErasedEvent {
                case: debt.case.clone(),
                proof: debt.proof,
                registrations: erased.registrations as u64,
                records,
            })))
            .await;
        }
        if is_done {
            count(&self.counters.erasures);
            tracing::info!(
                registrations = erased.registrations,
                records = erased.records,
                dropped = erased.dropped,
                proof = debt.proof.as_str(),
                "erased what was held on a person"
            );
        } else {
            self.failed();
            tracing::error!(
                files = erased.unreached,
                "an erasure did not reach all files of the journal: it stays owed and is tried again every hour"
            );
        }
        Ok(erased)
    }

    /// Whether it is time to go through what is owed.
    fn is_due(&self, now: UnixSeconds) -> bool {
        let since = now.0.checked_sub(self.paid_at.get().0);
        // Nothing is while something is erased: it is owed as well.
        !self.cases.borrow().debts().is_empty()
            && self.paying.get() == 0
            && since.is_none_or(|since| since >= RETRY_SECONDS)
    }

    /// Goes on with the erasures that are owed, one after the other. It ends early where some cannot be
    /// finished; the next time begins behind these.
    async fn pay_all(&self) {
        // Also between one and the next.
        self.paying.set(self.paying.get() + 1);
        let mut debts = self.cases.borrow().debts().to_vec();
        let begin = self.unpaid.get() % debts.len().max(1);
        debts.rotate_left(begin);
        let mut left = RETRIES_MAX;
        for debt in debts {
            // As it is by now; what has begun anew meanwhile is not for us.
            let known = self
                .cases
                .borrow()
                .debts()
                .iter()
                .find(|one| one.is_same(&debt))
                .cloned();
            let Some(debt) = known else {
                continue;
            };
            let is_done = match self.pay(debt).await {
                Ok(erased) => erased.unreached == 0,
                Err(_) => {
                    self.failed();
                    tracing::error!(
                        "an erasure that was cut short could not be finished, it is tried again every hour"
                    );
                    false
                }
            };
            if !is_done {
                self.unpaid.set(self.unpaid.get().wrapping_add(1));
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        self.paying.set(self.paying.get() - 1);
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

fn claim_of(person: &Person) -> Claim {
    match person {
        Person::Account(account) => Claim::Account(account.clone()),
        Person::Token(token) => Claim::Token(token.clone()),
        Person::Registration(key) => Claim::Registrations(vec![*key]),
    }
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
        if self.core.is_due(sweep.now) {
            self.core.paid_at.set(sweep.now);
            // Goes on by itself, as at the start: the sweep does not wait for it.
            drop(self.work(async |core: &Core| core.pay_all().await));
        }
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
                (
                    "privacy_erasures_owed",
                    self.core.cases.borrow().debts().len() as u64,
                ),
                ("privacy_commands_limited_total", counters.limited.get()),
                ("privacy_failures_total", counters.failures.get()),
            ],
        })
    }
}
