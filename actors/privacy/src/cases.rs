//! Cases: who has asked an operator for their data, and how far that is. Pure.
//!
//! A case is open until the person confirms it, then confirmed until the operator closes it or erases what
//! is held, and closed. A closed case has nothing of the person in it.

use messages::{
    BareJid, CaseId, DeviceToken, Domain, Proof, RegistrationKey, UnixSeconds, redacted_debug,
};
use serde::{Deserialize, Serialize};

use crate::code::{self, Code, CodeHash, CodeKey};
use crate::debt::{self, Debt, StoredDebt};
use crate::time::DAY_SECONDS;
use crate::{Config, Error, hex};

const VERSION: u32 = 1;
/// Characters of the name of a case; 40 bits, so that nobody meets one by chance.
const NAME_CHARACTERS: usize = 8;

/// All cases.
#[derive(Clone, Default)]
pub(crate) struct Cases {
    cases: Vec<Case>,
    /// Erasures that have begun and are not known to be done, one for each person.
    debts: Vec<Debt>,
}

/// One case.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) id: CaseId,
    pub(crate) opened_at: UnixSeconds,
    pub(crate) state: State,
}

/// How far a case is.
#[derive(Clone)]
pub(crate) enum State {
    Open(Open),
    Confirmed {
        person: Person,
        proof: Proof,
        at: UnixSeconds,
    },
    Closed {
        outcome: Outcome,
        at: UnixSeconds,
    },
}

/// A case that waits for its code.
#[derive(Clone)]
pub(crate) struct Open {
    pub(crate) account: BareJid,
    /// Where the code has to be sent to.
    pub(crate) address: BareJid,
    code: CodeHash,
    pub(crate) expires_at: UnixSeconds,
    /// Wrong codes so far.
    attempts: u32,
}

/// Who has asked, and by what that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Person {
    Account(BareJid),
    Token(DeviceToken),
    Registration(RegistrationKey),
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Closed,
    Erased,
    /// Too many wrong codes.
    Guessed,
    /// The person did not confirm in time, or the operator did not close it.
    Expired,
}

redacted_debug!(Case, Open);

/// What a message to the confirmation address did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// There is no case that its sender could confirm: nothing is answered.
    Nothing,
    Confirmed(CaseId),
    /// The code was right but too late.
    Expired,
    /// The code was used before.
    Used,
    /// Not the code; so many attempts are left.
    Wrong(u32),
}

impl Cases {
    /// Opens a case and makes its code; `None` when there are as many cases as there may be.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub(crate) fn open(
        &mut self,
        account: BareJid,
        address: BareJid,
        key: &CodeKey,
        config: &Config,
        now: UnixSeconds,
    ) -> Result<Option<(CaseId, Code, UnixSeconds)>, Error> {
        if self.is_full(config) {
            return Ok(None);
        }
        let code = Code::generate()?;
        let id = self.new_id()?;
        let expires_at = UnixSeconds(now.0 + u64::from(config.code_days) * DAY_SECONDS);
        self.cases.push(Case {
            opened_at: now,
            state: State::Open(Open {
                account,
                address,
                code: key.hash(id.as_str(), &code),
                expires_at,
                attempts: 0,
            }),
            id: id.clone(),
        });
        Ok(Some((id, code, expires_at)))
    }

    /// Opens a case for somebody who has proven themselves already; `None` when there are as many cases as
    /// there may be.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub(crate) fn open_proven(
        &mut self,
        person: Person,
        proof: Proof,
        config: &Config,
        now: UnixSeconds,
    ) -> Result<Option<CaseId>, Error> {
        if self.is_full(config) {
            return Ok(None);
        }
        let id = self.new_id()?;
        self.cases.push(Case {
            id: id.clone(),
            opened_at: now,
            state: State::Confirmed {
                person,
                proof,
                at: now,
            },
        });
        Ok(Some(id))
    }

    fn is_full(&self, config: &Config) -> bool {
        self.cases.len() >= usize::try_from(config.cases_max).unwrap_or(usize::MAX)
    }

    fn new_id(&self) -> Result<CaseId, Error> {
        loop {
            let name = code::random_text(NAME_CHARACTERS)?.to_lowercase();
            if let Ok(id) = CaseId::new(&name)
                && self.case(&id).is_none()
            {
                return Ok(id);
            }
        }
    }

    pub(crate) fn case(&self, id: &CaseId) -> Option<&Case> {
        self.cases.iter().find(|case| case.id == *id)
    }

    pub(crate) fn all(&self) -> &[Case] {
        &self.cases
    }

    /// Cases in which this account is named.
    pub(crate) fn of_account<'a>(&'a self, account: &'a BareJid) -> impl Iterator<Item = &'a Case> {
        self.cases.iter().filter(|case| case.is_of(account))
    }

    /// Whether a message from this account to that address may be about a case.
    pub(crate) fn expects(&self, account: &BareJid, address: &BareJid) -> bool {
        self.cases.iter().any(|case| case.awaits(account, address))
    }

    /// Takes a message that an account has sent to an address. Who is not asked learns nothing, and who is
    /// asked may guess only so often.
    pub(crate) fn attempt(
        &mut self,
        account: &BareJid,
        address: &BareJid,
        text: &str,
        key: &CodeKey,
        config: &Config,
        now: UnixSeconds,
    ) -> Attempt {
        let typed = code::typed(text);
        let fits = |case: &Case, hash: &CodeHash| {
            let id = case.id.as_str();
            typed.iter().any(|typed| key.fits(id, typed, hash))
        };
        let mut left = None;
        for case in &mut self.cases {
            if !case.awaits(account, address) {
                continue;
            }
            match &case.state {
                State::Open(open) if open.expires_at <= now => {
                    if fits(case, &open.code) {
                        return Attempt::Expired;
                    }
                }
                State::Open(open) if fits(case, &open.code) => {
                    case.state = State::Confirmed {
                        person: Person::Account(open.account.clone()),
                        proof: Proof::Confirmation,
                        at: now,
                    };
                    return Attempt::Confirmed(case.id.clone());
                }
                State::Open(open) => {
                    left = left.max(Some(config.attempts_max.saturating_sub(open.attempts + 1)));
                }
                State::Confirmed { .. } | State::Closed { .. } => {}
            }
        }
        if let Some(left) = left {
            self.count_wrong(account, address, config, now);
            return Attempt::Wrong(left);
        }
        match self.of_account(account).next() {
            // Only a code has this form, so this is one that was good once.
            Some(case) if !typed.is_empty() && matches!(case.state, State::Confirmed { .. }) => {
                Attempt::Used
            }
            _ => Attempt::Nothing,
        }
    }

    fn count_wrong(
        &mut self,
        account: &BareJid,
        address: &BareJid,
        config: &Config,
        now: UnixSeconds,
    ) {
        for case in &mut self.cases {
            if !case.awaits(account, address) {
                continue;
            }
            if let State::Open(open) = &mut case.state
                && open.expires_at > now
            {
                open.attempts += 1;
                if open.attempts >= config.attempts_max {
                    case.close(Outcome::Guessed, now);
                }
            }
        }
    }

    /// Takes an operator's word for the person's identity.
    pub(crate) fn confirm_by_override(&mut self, id: &CaseId, now: UnixSeconds) {
        for case in &mut self.cases {
            if case.id == *id
                && let State::Open(open) = &case.state
            {
                case.state = State::Confirmed {
                    person: Person::Account(open.account.clone()),
                    proof: Proof::Override,
                    at: now,
                };
            }
        }
    }

    /// Ends a case. Nothing of the person is left in it. One that ended before stays as it is.
    pub(crate) fn close(&mut self, id: &CaseId, outcome: Outcome, now: UnixSeconds) {
        for case in self.cases.iter_mut().filter(|case| case.id == *id) {
            case.close(outcome, now);
        }
    }

    /// Takes a person whose data was erased out of all cases, or of those that were opened until then.
    pub(crate) fn forget(
        &mut self,
        is_person: impl Fn(&Person) -> bool,
        until: Option<UnixSeconds>,
        now: UnixSeconds,
    ) {
        for case in &mut self.cases {
            if until.is_some_and(|until| case.opened_at > until && case.opened_at <= now) {
                continue;
            }
            let person = match &case.state {
                State::Open(open) => Person::Account(open.account.clone()),
                State::Confirmed { person, .. } => person.clone(),
                State::Closed { .. } => continue,
            };
            if is_person(&person) {
                case.close(Outcome::Erased, now);
            }
        }
    }

    /// Notes that an erasure begins; gives all that is owed to the person, also by one that was cut short.
    /// `None` when as many are owed as may be.
    pub(crate) fn owe(&mut self, debt: Debt, config: &Config) -> Option<Debt> {
        if !debt::has_room(&self.debts, &debt, config.erasures_owed_max) {
            return None;
        }
        Some(
            match self.debts.iter_mut().find(|known| known.is_to(&debt)) {
                Some(known) => {
                    known.renew(debt);
                    known.clone()
                }
                None => {
                    self.debts.push(debt.clone());
                    debt
                }
            },
        )
    }

    /// Notes how far an erasure has come.
    pub(crate) fn proceed(&mut self, debt: &Debt) {
        for known in self.debts.iter_mut().filter(|known| known.is_same(debt)) {
            known.clone_from(debt);
        }
    }

    /// Notes that an erasure is done, unless it has begun anew meanwhile.
    pub(crate) fn settle(&mut self, debt: &Debt) {
        self.debts.retain(|known| !known.is_same(debt));
    }

    /// Erasures that have begun and are not known to be done.
    pub(crate) fn debts(&self) -> &[Debt] {
        &self.debts
    }

    /// Whether [`Self::sweep`] would do anything.
    pub(crate) fn has_outdated(&self, config: &Config, now: UnixSeconds) -> bool {
        self.cases
            .iter()
            .any(|case| case.overdue(config, now) != Overdue::No)
    }

    /// Closes what nobody goes on with, removes what was closed long ago. Returns how many cases that were.
    pub(crate) fn sweep(&mut self, config: &Config, now: UnixSeconds) -> u64 {
        let mut swept = 0;
        self.cases
            .retain_mut(|case| match case.overdue(config, now) {
                Overdue::No => true,
                Overdue::Close => {
                    case.close(Outcome::Expired, now);
                    swept += 1;
                    true
                }
                Overdue::Remove => {
                    swept += 1;
                    false
                }
            });
        swept
    }
}

#[derive(PartialEq, Eq)]
enum Overdue {
    No,
    Close,
    Remove,
}

impl Case {
    fn is_of(&self, account: &BareJid) -> bool {
        match &self.state {
            State::Open(open) => open.account == *account,
            State::Confirmed { person, .. } => *person == Person::Account(account.clone()),
            State::Closed { .. } => false,
        }
    }

    /// Whether a message from this account to that address is for it.
    fn awaits(&self, account: &BareJid, address: &BareJid) -> bool {
        matches!(&self.state, State::Open(open)
            if open.account == *account && open.address == *address)
    }

    fn close(&mut self, outcome: Outcome, now: UnixSeconds) {
        if !matches!(self.state, State::Closed { .. }) {
            self.state = State::Closed { outcome, at: now };
        }
    }

    fn overdue(&self, config: &Config, now: UnixSeconds) -> Overdue {
        let over = |since: &UnixSeconds, days: u32| {
            since.0.saturating_add(u64::from(days) * DAY_SECONDS) <= now.0
        };
        match &self.state {
            State::Open(open) if open.expires_at <= now => Overdue::Close,
            State::Confirmed { at, .. } if over(at, config.confirmed_days) => Overdue::Close,
            State::Closed { at, .. } if over(at, config.closed_days) => Overdue::Remove,
            _ => Overdue::No,
        }
    }

    /// The state in a word.
    pub(crate) fn state_name(&self, now: UnixSeconds) -> &'static str {
        match &self.state {
            State::Open(open) if open.expires_at <= now => "expired",
            State::Open(_) => "open",
            State::Confirmed { .. } => "confirmed",
            State::Closed { outcome, .. } => match outcome {
                Outcome::Closed => "closed",
                Outcome::Erased => "erased",
                Outcome::Guessed => "closed after wrong codes",
                Outcome::Expired => "expired",
            },
        }
    }
}

/// The file of the cases. Written apart from the types in use, so that its layout depends on nothing else.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    cases: Vec<StoredCase>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    owed: Vec<StoredDebt>,
}

#[derive(Serialize, Deserialize)]
struct StoredCase {
    id: String,
    opened_at: u64,
    #[serde(flatten)]
    state: StoredState,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum StoredState {
    Open {
        account: String,
        address: String,
        code_hash: String,
        expires_at: u64,
        attempts: u32,
    },
    Confirmed {
        person: StoredPerson,
        proof: String,
        at: u64,
    },
    Closed {
        outcome: Outcome,
        at: u64,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StoredPerson {
    Account(String),
    Token(String),
    Registration(String),
}

/// A prepared bare JID, as the program wrote it.
pub(crate) fn account(text: &str) -> Option<BareJid> {
    let (localpart, domain) = text.split_once('@')?;
    let whole = !localpart.is_empty() && !domain.is_empty() && !domain.contains('/');
    whole.then(|| BareJid::new(localpart, Domain::new(domain)))
}

impl Cases {
    /// As bytes of a file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let cases = self.cases.iter().map(StoredCase::of).collect();
        let stored = Stored {
            version: VERSION,
            cases,
            owed: self.debts.iter().map(StoredDebt::of).collect(),
        };
        // Texts and numbers alone, which JSON takes all of.
        serde_json::to_vec_pretty(&stored).unwrap_or_default()
    }

    /// What [`Self::encode`] made; `None` for anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let stored: Stored = serde_json::from_slice(bytes).ok()?;
        if stored.version != VERSION {
            return None;
        }
        let cases: Option<_> = stored.cases.into_iter().map(StoredCase::read).collect();
        let debts: Option<_> = stored.owed.into_iter().map(StoredDebt::read).collect();
        Some(Self {
            cases: cases?,
            debts: debts?,
        })
    }
}

/// The proof of that name.
pub(crate) fn proof_of(name: &str) -> Option<Proof> {
    Proof::ALL.into_iter().find(|known| known.as_str() == name)
}

impl StoredPerson {
    pub(crate) fn of(person: &Person) -> Self {
        match person {
            Person::Account(account) => Self::Account(account.as_str().to_owned()),
            Person::Token(token) => Self::Token(token.as_str().to_owned()),
            Person::Registration(key) => Self::Registration(hex::text(*key)),
        }
    }

    pub(crate) fn read(self) -> Option<Person> {
        Some(match self {
            Self::Account(text) => Person::Account(account(&text)?),
            Self::Token(text) => Person::Token(DeviceToken::parse(&text).ok()?),
            Self::Registration(text) => Person::Registration(hex::key(&text)?),
        })
    }
}

impl StoredCase {
    fn of(case: &Case) -> Self {
        let state = match &case.state {
            State::Open(open) => StoredState::Open {
                account: open.account.as_str().to_owned(),
                address: open.address.as_str().to_owned(),
                code_hash: open.code.iter().map(|byte| format!("{byte:02x}")).collect(),
                expires_at: open.expires_at.0,
                attempts: open.attempts,
            },
            State::Confirmed { person, proof, at } => StoredState::Confirmed {
                person: StoredPerson::of(person),
                proof: proof.as_str().to_owned(),
                at: at.0,
            },
            State::Closed { outcome, at } => StoredState::Closed {
                outcome: *outcome,
                at: at.0,
            },
        };
        Self {
            id: case.id.as_str().to_owned(),
            opened_at: case.opened_at.0,
            state,
        }
    }

    fn read(self) -> Option<Case> {
        let state = match self.state {
            StoredState::Open {
                account: text,
                address,
                code_hash,
                expires_at,
                attempts,
            } => State::Open(Open {
                account: account(&text)?,
                address: account(&address)?,
                code: hex::bytes(&code_hash)?,
                expires_at: UnixSeconds(expires_at),
                attempts,
            }),
            StoredState::Confirmed { person, proof, at } => State::Confirmed {
                person: person.read()?,
                proof: proof_of(&proof)?,
                at: UnixSeconds(at),
            },
            StoredState::Closed { outcome, at } => State::Closed {
                outcome,
                at: UnixSeconds(at),
            },
        };
        Some(Case {
            id: CaseId::new(&self.id).ok()?,
            opened_at: UnixSeconds(self.opened_at),
            state,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixSeconds = UnixSeconds(1_780_272_000);

    struct Desk {
        cases: Cases,
        key: CodeKey,
        config: Config,
        id: CaseId,
        code: String,
    }

    fn jid(text: &str) -> BareJid {
        account(text).unwrap()
    }

    fn later(days: u64) -> UnixSeconds {
        UnixSeconds(NOW.0 + days * DAY_SECONDS)
    }

    impl Desk {
        fn open() -> Self {
            let (key, config) = (CodeKey::of(&[3; 32]), Config::default());
            let mut cases = Cases::default();
            let opened = cases.open(
                jid("ada@chat.example"),
                jid("privacy@push.example"),
                &key,
                &config,
                NOW,
            );
            let (id, code, expires_at) = opened.unwrap().unwrap();
            assert_eq!(expires_at, later(14));
            Self {
                cases,
                key,
                config,
                id,
                code: code.as_str().to_owned(),
            }
        }

        fn attempt(&mut self, from: &str, to: &str, text: &str, now: UnixSeconds) -> Attempt {
            let Self {
                cases, key, config, ..
            } = self;
            // What a restart would have read.
            *cases = Cases::decode(&cases.encode()).unwrap();
            cases.attempt(&jid(from), &jid(to), text, key, config, now)
        }

        fn state(&self) -> &'static str {
            self.cases.case(&self.id).unwrap().state_name(NOW)
        }
    }

    #[test]
    fn the_right_code_from_the_right_account_confirms_once() {
        let mut desk = Desk::open();
        let code = desk.code.clone();
        let (ada, address) = ("ada@chat.example", "privacy@push.example");
        for (from, to) in [
            ("eve@chat.example", address),
            ("ada@chat.example.org", address),
            (ada, "privacy@push2.example"),
            (ada, "help@push.example"),
        ] {
            assert_eq!(desk.attempt(from, to, &code, NOW), Attempt::Nothing);
            assert_eq!(desk.state(), "open");
        }
        let confirmed = Attempt::Confirmed(desk.id.clone());
        assert_eq!(desk.attempt(ada, address, &code, NOW), confirmed);
        assert_eq!(desk.state(), "confirmed");
        assert_eq!(desk.attempt(ada, address, &code, NOW), Attempt::Used);
        assert_eq!(
            desk.attempt("eve@chat.example", address, &code, NOW),
            Attempt::Nothing
        );
    }

    #[test]
    fn a_code_that_came_too_late_confirms_nothing() {
        let mut desk = Desk::open();
        let code = desk.code.clone();
        let (ada, address) = ("ada@chat.example", "privacy@push.example");
        let last = UnixSeconds(later(14).0 - 1);
        assert_eq!(desk.attempt(ada, address, "hello", last), Attempt::Wrong(4));
        assert_eq!(
            desk.attempt(ada, address, &code, later(14)),
            Attempt::Expired
        );
        assert_eq!(desk.state(), "open");
        assert!(desk.cases.has_outdated(&desk.config, later(14)));
        assert_eq!(desk.cases.sweep(&desk.config, later(14)), 1);
        assert!(!desk.cases.has_outdated(&desk.config, later(14)));
        assert_eq!(desk.state(), "expired");
        let file = String::from_utf8(desk.cases.encode()).unwrap();
        assert!(!file.contains("ada"), "{file}");
        assert_eq!(desk.cases.sweep(&desk.config, later(14 + 90)), 1);
        assert!(desk.cases.all().is_empty());
    }

    #[test]
    fn guessing_ends_the_case() {
        let mut desk = Desk::open();
        let code = desk.code.clone();
        let (ada, address) = ("ada@chat.example", "privacy@push.example");
        for left in (0..5).rev() {
            let guess = desk.attempt(ada, address, "AAAA-AAAA-AAAA-AAAA", NOW);
            assert_eq!(guess, Attempt::Wrong(left));
        }
        assert_eq!(desk.state(), "closed after wrong codes");
        assert_eq!(desk.attempt(ada, address, &code, NOW), Attempt::Nothing);
    }

    #[test]
    fn a_message_is_one_guess_whatever_is_in_it() {
        let mut desk = Desk::open();
        let code = desk.code.clone();
        let (ada, address) = ("ada@chat.example", "privacy@push.example");
        for (left, text) in [
            (4, "hello".to_owned()),
            (3, "AAAA-AAAA-AAAA-AAAA or BBBB-BBBB-BBBB-BBBB?".to_owned()),
            (2, "ABCD ".repeat(800)),
            // Too long to be looked at.
            (1, format!("{} {code}", "x ".repeat(2_100))),
        ] {
            let guess = desk.attempt(ada, address, &text, NOW);
            assert_eq!(guess, Attempt::Wrong(left), "{text}");
        }
        let text = format!("not AAAA-AAAA-AAAA-AAAA, my code is {code}, they have said");
        let confirmed = Attempt::Confirmed(desk.id.clone());
        assert_eq!(desk.attempt(ada, address, &text, NOW), confirmed);
    }

    #[test]
    fn a_closed_case_has_nothing_of_the_person() {
        let mut desk = Desk::open();
        desk.cases.confirm_by_override(&desk.id, NOW);
        assert_eq!(desk.state(), "confirmed");
        let file = |cases: &Cases| String::from_utf8(cases.encode()).unwrap();
        assert!(file(&desk.cases).contains("ada"));
        desk.cases.close(&desk.id, Outcome::Closed, NOW);
        desk.cases.close(&desk.id, Outcome::Erased, NOW);
        assert_eq!(desk.state(), "closed");
        assert!(!file(&desk.cases).contains("ada"));
    }

    #[test]
    fn the_codes_are_not_in_the_file() {
        let desk = Desk::open();
        let file = String::from_utf8(desk.cases.encode()).unwrap();
        assert!(!file.contains(&desk.code) && !file.contains(&desk.code.replace('-', "")));
    }

    #[test]
    fn all_kinds_come_back() {
        let mut desk = Desk::open();
        let token = DeviceToken::parse(&"ab".repeat(32)).unwrap();
        let registration = RegistrationKey([7; 16]);
        for (person, proof) in [
            (Person::Token(token), Proof::DeviceToken),
            (Person::Registration(registration), Proof::NodeAndSecret),
        ] {
            let opened = desk.cases.open_proven(person, proof, &desk.config, NOW);
            opened.unwrap().unwrap();
        }
        let bytes = desk.cases.encode();
        let again = Cases::decode(&bytes).unwrap();
        assert_eq!(again.all().len(), 3);
        assert_eq!(again.encode(), bytes);
        assert!(Cases::decode(b"{}").is_none());
        let text = String::from_utf8(bytes).unwrap();
        let newer = text.replace("\"version\": 1", "\"version\": 2");
        assert!(Cases::decode(newer.as_bytes()).is_none());
    }

    #[test]
    fn there_are_so_many_cases_and_no_more() {
        let mut desk = Desk::open();
        desk.config.cases_max = 1;
        let person = Person::Registration(RegistrationKey([7; 16]));
        let refused = desk
            .cases
            .open_proven(person, Proof::NodeAndSecret, &desk.config, NOW);
        assert!(refused.unwrap().is_none());
    }

    #[test]
    fn an_erasure_takes_the_person_out_of_all_cases() {
        let mut desk = Desk::open();
        let ada = Person::Account(jid("ada@chat.example"));
        desk.cases.forget(|person| *person == ada, None, NOW);
        assert_eq!(desk.state(), "erased");
    }
}
