//! An erasure that is owed: it has begun, and nobody knows yet that all of it is done.
//!
//! It is on disk before the first thing is removed, because what is removed first leads to the rest: a record
//! of the journal may be found by nothing but the key of a registration that is gone from the store. It names
//! the person as open cases do, since the journal finds accounts by their JID, and goes with the last removal.

use messages::{
    CaseId, DeviceToken, Proof, RegistrationDetails, RegistrationKey, UnixSeconds, redacted_debug,
};
use serde::{Deserialize, Serialize};

use crate::cases::{Person, StoredPerson, proof_of};
use crate::hex;

/// How long a push may still be on its way whose registration is gone; the longest that APNs' pool tries is
/// minutes.
const ECHO_SECONDS: u64 = 30 * 60;

/// See the module.
#[derive(Clone)]
pub(crate) struct Debt {
    pub(crate) person: Person,
    pub(crate) case: Option<CaseId>,
    pub(crate) proof: Proof,
    /// What the store had of the person when the erasure began.
    pub(crate) registrations: Vec<RegistrationKey>,
    /// The devices of these; cases may have been opened by them.
    pub(crate) device_tokens: Vec<DeviceToken>,
    /// Whether the store is done: what is registered later is none of this erasure's.
    pub(crate) is_unregistered: bool,
    /// Since when; `None` also for one that an older version has left.
    unregistered_at: Option<UnixSeconds>,
    /// How often it began in this process. What began anew is not done when an earlier attempt is.
    begun: u64,
}

redacted_debug!(Debt);

impl Debt {
    pub(crate) fn new(person: &Person, case: Option<&CaseId>, proof: Proof) -> Self {
        Self {
            person: person.clone(),
            case: case.cloned(),
            proof,
            registrations: Vec::new(),
            device_tokens: Vec::new(),
            is_unregistered: false,
            unregistered_at: None,
            begun: 0,
        }
    }

    /// Notes that the store is done.
    pub(crate) const fn unregister(&mut self, now: UnixSeconds) {
        self.is_unregistered = true;
        self.unregistered_at = Some(now);
    }

    /// Until when journal and cases may be told something of what this erases. What they are told later is of
    /// one who has come back.
    pub(crate) fn told_until(&self) -> Option<UnixSeconds> {
        let at = self.unregistered_at?;
        Some(UnixSeconds(at.0.saturating_add(ECHO_SECONDS)))
    }

    /// Adds what belongs to the person.
    pub(crate) fn add(&mut self, details: &[RegistrationDetails]) {
        for one in details {
            self.add_keys(&[one.registration], std::slice::from_ref(&one.device_token));
        }
    }

    fn add_keys(&mut self, registrations: &[RegistrationKey], device_tokens: &[DeviceToken]) {
        for key in registrations {
            if !self.registrations.contains(key) {
                self.registrations.push(*key);
            }
        }
        for token in device_tokens {
            if !self.device_tokens.contains(token) {
                self.device_tokens.push(token.clone());
            }
        }
    }

    /// Begins it anew, with what it has reached so far.
    pub(crate) fn renew(&mut self, debt: Self) {
        self.add_keys(&debt.registrations, &debt.device_tokens);
        self.case = debt.case;
        self.proof = debt.proof;
        self.is_unregistered = false;
        self.unregistered_at = None;
        self.begun += 1;
    }

    /// The owner of the server of a person who has asked without an operator.
    fn asker(&self) -> Option<&str> {
        match (&self.person, self.proof) {
            (Person::Account(account), Proof::SelfService) => Some(account.domain().owner()),
            _ => None,
        }
    }

    /// Whether both are owed to the same person.
    pub(crate) fn is_to(&self, other: &Self) -> bool {
        self.person == other.person
    }

    /// Whether both are the same attempt.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.is_to(other) && self.begun == other.begun
    }

    /// Whether whoever has asked so has asked about what this erases: the person, or a device of theirs.
    pub(crate) fn concerns(&self, known: &Person) -> bool {
        *known == self.person
            || match known {
                Person::Account(_) => false,
                Person::Token(token) => self.device_tokens.contains(token),
                Person::Registration(key) => self.registrations.contains(key),
            }
    }
}

/// Registrations that a debt may have on average: what one device may have.
const REGISTRATIONS_MEAN_MAX: usize = 64;

/// Whether there is room for one more among those that are owed, or for more of one that is. None gives way:
/// what was begun has to be finished. Those of people who ask by themselves have half of the places, and of
/// these no owner of servers has more than is left for the others; its first is taken as long as there is one.
pub(crate) fn has_room(owed: &[Debt], debt: &Debt, max: u32) -> bool {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let registrations = |debt: &Debt| debt.registrations.len();
    let noted = owed.iter().map(registrations).sum::<usize>();
    let room = max.saturating_mul(REGISTRATIONS_MEAN_MAX);
    if noted.saturating_add(registrations(debt)) > room {
        return false;
    }
    if owed.iter().any(|known| known.is_to(debt)) {
        return true;
    }
    if owed.len() >= max {
        return false;
    }
    let Some(owner) = debt.asker() else {
        return true;
    };
    let askers = owed.iter().filter_map(Debt::asker);
    let (taken, own) = askers.fold((0, 0), |(taken, own), asker| {
        (taken + 1, own + usize::from(asker == owner))
    });
    let left = max.div_ceil(2).saturating_sub(taken);
    left > own || (own == 0 && left > 0)
}

/// Its part of the file of the cases.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredDebt {
    person: StoredPerson,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    case: Option<String>,
    proof: String,
    registrations: Vec<String>,
    device_tokens: Vec<String>,
    is_unregistered: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unregistered_at: Option<u64>,
}

impl StoredDebt {
    pub(crate) fn of(debt: &Debt) -> Self {
        Self {
            person: StoredPerson::of(&debt.person),
            case: debt.case.as_ref().map(|case| case.as_str().to_owned()),
            proof: debt.proof.as_str().to_owned(),
            registrations: debt
                .registrations
                .iter()
                .map(|key| hex::text(*key))
                .collect(),
            device_tokens: debt
                .device_tokens
                .iter()
                .map(|token| token.as_str().to_owned())
                .collect(),
            is_unregistered: debt.is_unregistered,
            unregistered_at: debt.unregistered_at.map(|at| at.0),
        }
    }

    /// `None` for what [`Self::of`] never makes.
    pub(crate) fn read(self) -> Option<Debt> {
        let case = match self.case {
            Some(name) => Some(CaseId::new(&name).ok()?),
            None => None,
        };
        let registrations: Option<_> = self
            .registrations
            .iter()
            .map(|text| hex::key(text))
            .collect();
        let tokens = self.device_tokens.iter();
        let device_tokens: Option<_> = tokens.map(|text| DeviceToken::parse(text).ok()).collect();
        Some(Debt {
            person: self.person.read()?,
            case,
            proof: proof_of(&self.proof)?,
            registrations: registrations?,
            device_tokens: device_tokens?,
            is_unregistered: self.is_unregistered,
            unregistered_at: self.unregistered_at.map(UnixSeconds),
            begun: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::account;

    fn of(jid: &str, proof: Proof) -> Debt {
        Debt::new(&Person::Account(account(jid).unwrap()), None, proof)
    }

    /// Takes all of them in turn; gives those for which there was room.
    fn taken(debts: impl IntoIterator<Item = Debt>, max: u32) -> Vec<Debt> {
        let mut owed: Vec<Debt> = Vec::new();
        for debt in debts {
            if has_room(&owed, &debt, max) {
                owed.push(debt);
            }
        }
        owed
    }

    fn many(owner: &str) -> impl Iterator<Item = Debt> {
        (0..50).map(move |n| of(&format!("eve@{n}.{owner}"), Proof::SelfService))
    }

    #[test]
    fn nobody_takes_the_last_place_from_others() {
        // Of sixteen, eight are for people who ask by themselves; then four are left, then two, then one.
        assert_eq!(taken(many("evil.test"), 16).len(), 4);
        let owners = || many("evil.test").chain(many("evil2.test"));
        assert_eq!(taken(owners(), 16).len(), 6);
        let owners = || owners().chain(many("evil3.test")).chain(many("evil4.test"));
        assert_eq!(taken(owners(), 16).len(), 8);
        let by_operators = (0..50).map(|n| of(&format!("{n}@chat.example"), Proof::Confirmation));
        assert_eq!(taken(owners().chain(by_operators), 16).len(), 16);
        assert_eq!(taken(many("chat.example"), 1).len(), 1);
    }

    #[test]
    fn what_is_owed_already_needs_no_place() {
        let mut owed = taken(many("evil.test"), 2);
        assert_eq!(owed.len(), 1);
        let again = of("eve@0.evil.test", Proof::SelfService);
        assert!(has_room(&owed, &again, 2));
        assert!(has_room(&owed, &of("ada@chat.example", Proof::Override), 2));
        assert!(!has_room(
            &owed,
            &of("ada@chat.example", Proof::SelfService),
            2
        ));
        // It is one place, however often its person comes back, but not as many registrations as one likes.
        let mut more = again;
        more.registrations = vec![RegistrationKey([0; 16]); 2 * REGISTRATIONS_MEAN_MAX];
        assert!(has_room(&owed, &more, 2));
        owed.iter_mut()
            .for_each(|debt| debt.registrations.push(RegistrationKey([1; 16])));
        assert!(!has_room(&owed, &more, 2));
    }
}
