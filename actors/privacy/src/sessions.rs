//! Commands between two of their stages. Pure; in memory alone.
//!
//! A session ends a set time after it has begun, whatever is done in it. Where all places are taken the oldest
//! gives way of the owner of servers ([`Domain::owner`]) that has most, so that nobody takes the last one from
//! others.
//!
//! [`Domain::owner`]: messages::Domain::owner

use std::cmp::Reverse;
use std::collections::HashMap;

use messages::{BareJid, PrivacyCommand, UnixSeconds};

use crate::{Config, Error, code};

/// Characters of a session's name: 100 bits.
const NAME_CHARACTERS: usize = 20;

/// What a command has to remember.
pub(crate) struct Session {
    account: BareJid,
    command: PrivacyCommand,
    ends_at: UnixSeconds,
    /// Which it was of all that have begun.
    number: u64,
    /// What is shown piece by piece.
    pub(crate) pieces: Vec<Piece>,
    /// The piece that is shown.
    pub(crate) at: usize,
    /// Whether it is.
    pub(crate) is_shown: bool,
}

/// Part of a report, for people and for programs.
#[derive(Clone, Default)]
pub(crate) struct Piece {
    pub(crate) lines: Vec<String>,
    pub(crate) json: Vec<String>,
}

/// All sessions. An account has one for each command at most.
#[derive(Default)]
pub(crate) struct Sessions {
    sessions: HashMap<String, Session>,
    /// Sessions that have begun.
    begun: u64,
}

impl Sessions {
    /// Begins one, in the place of an older one of the same account and command.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub(crate) fn begin(
        &mut self,
        account: &BareJid,
        command: PrivacyCommand,
        pieces: Vec<Piece>,
        config: &Config,
        now: UnixSeconds,
    ) -> Result<String, Error> {
        let name = code::random_text(NAME_CHARACTERS)?;
        self.sessions.retain(|_, session| {
            session.ends_at > now && !(session.account == *account && session.command == command)
        });
        let max = usize::try_from(config.sessions_max).unwrap_or(usize::MAX);
        while self.sessions.len() >= max.max(1) {
            self.give_way();
        }
        self.begun += 1;
        let session = Session {
            account: account.clone(),
            command,
            ends_at: UnixSeconds(now.0.saturating_add(config.session_seconds.into())),
            number: self.begun,
            pieces,
            at: 0,
            is_shown: false,
        };
        self.sessions.insert(name.clone(), session);
        Ok(name)
    }

    /// Ends the oldest session of the owner that has most.
    fn give_way(&mut self) {
        // How many an owner has, and which of them is the oldest.
        let mut owners: HashMap<&str, (usize, Reverse<u64>, &String)> = HashMap::new();
        for (name, session) in &self.sessions {
            let number = Reverse(session.number);
            let owner = owners
                .entry(session.account.domain().owner())
                .or_insert((0, number, name));
            owner.0 += 1;
            if number > owner.1 {
                (owner.1, owner.2) = (number, name);
            }
        }
        let richest = owners.into_values().max();
        if let Some(oldest) = richest.map(|(_, _, name)| name.clone()) {
            self.sessions.remove(&oldest);
        }
    }

    /// The session of that name, if it is this account's and this command's.
    pub(crate) fn session(
        &mut self,
        name: &str,
        account: &BareJid,
        command: PrivacyCommand,
        now: UnixSeconds,
    ) -> Option<&mut Session> {
        let session = self.sessions.get_mut(name)?;
        let is_theirs = session.account == *account && session.command == command;
        (is_theirs && session.ends_at > now).then_some(session)
    }

    /// Ends a session.
    pub(crate) fn end(&mut self, name: &str) {
        self.sessions.remove(name);
    }

    /// Ends all sessions of an account.
    pub(crate) fn forget(&mut self, account: &BareJid) {
        self.sessions
            .retain(|_, session| session.account != *account);
    }

    /// Removes what has ended. Returns how much that was.
    pub(crate) fn sweep(&mut self, now: UnixSeconds) -> u64 {
        let before = self.sessions.len();
        self.sessions.retain(|_, session| session.ends_at > now);
        (before - self.sessions.len()) as u64
    }
}

/// Cuts a report into pieces of about so many bytes, at the ends of lines. A line that is longer is cut too.
pub(crate) fn pieces(lines: &[String], json: &str, bytes_max: usize) -> Vec<Piece> {
    let (lines, json) = (
        cut(lines.iter().map(String::as_str), bytes_max),
        cut(json.lines(), bytes_max),
    );
    let count = lines.len().max(json.len());
    let (mut lines, mut json) = (lines.into_iter(), json.into_iter());
    (0..count)
        .map(|_| Piece {
            lines: lines.next().unwrap_or_default(),
            json: json.next().unwrap_or_default(),
        })
        .collect()
}

fn cut<'a>(lines: impl Iterator<Item = &'a str>, bytes_max: usize) -> Vec<Vec<String>> {
    let mut pieces = vec![Vec::new()];
    let mut bytes = 0;
    for line in lines {
        let mut rest = line;
        loop {
            let (part, after) = rest.split_at(rest.floor_char_boundary(bytes_max));
            if bytes > 0 && bytes + part.len() > bytes_max {
                pieces.push(Vec::new());
                bytes = 0;
            }
            bytes += part.len() + 1;
            if let Some(piece) = pieces.last_mut() {
                piece.push(part.to_owned());
            }
            if after.is_empty() {
                break;
            }
            rest = after;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::account;

    #[test]
    fn sessions_are_one_accounts_and_end() {
        let config = Config {
            session_seconds: 60,
            ..Config::default()
        };
        let mut sessions = Sessions::default();
        let [ada, eve] = ["ada@a.example", "eve@a.example"].map(|text| account(text).unwrap());
        let (access, erase) = (PrivacyCommand::Access, PrivacyCommand::Erase);
        let at = UnixSeconds;
        let mut begin = |account: &BareJid, command, now| {
            let begun = sessions.begin(account, command, Vec::new(), &config, now);
            begun.unwrap()
        };
        let first = begin(&ada, erase, at(0));
        let name = begin(&ada, erase, at(0));
        begin(&eve, access, at(0));
        let mut is_there = |name: &str, account, command, now| {
            sessions.session(name, account, command, now).is_some()
        };
        assert!(!is_there(&first, &ada, erase, at(1)));
        assert!(!is_there(&name, &eve, erase, at(1)));
        assert!(!is_there(&name, &ada, access, at(1)));
        // Nothing that is done in one makes it last longer.
        assert!(is_there(&name, &ada, erase, at(1)));
        assert!(is_there(&name, &ada, erase, at(59)));
        assert!(!is_there(&name, &ada, erase, at(60)));
        assert_eq!(sessions.sweep(at(60)), 2);
    }

    #[test]
    fn nobody_takes_the_last_place_from_others() {
        let config = Config {
            sessions_max: 8,
            ..Config::default()
        };
        let mut sessions = Sessions::default();
        let (access, erase) = (PrivacyCommand::Access, PrivacyCommand::Erase);
        let now = UnixSeconds(0);
        let begin = |sessions: &mut Sessions, text: &str, command| {
            let account = account(text).unwrap();
            let begun = sessions.begin(&account, command, Vec::new(), &config, now);
            (begun.unwrap(), account, command)
        };
        let mut own = vec![
            begin(&mut sessions, "ada@chat.example", access),
            begin(&mut sessions, "ada@chat.example", erase),
        ];
        let mut theirs = Vec::new();
        for n in 0..50 {
            // Names below a name are one owner's.
            theirs.push(begin(&mut sessions, &format!("eve@{n}.evil.test"), access));
            theirs.push(begin(&mut sessions, &format!("{n}@evil2.test"), access));
            assert!(sessions.sessions.len() <= 8);
        }
        own.push(begin(&mut sessions, "bob@other.example", access));
        let mut is_there = |(name, account, command): &(String, BareJid, _)| {
            sessions.session(name, account, *command, now).is_some()
        };
        assert!(own.iter().all(&mut is_there));
        // The oldest have given way, and no more of them than had to.
        let left: Vec<_> = theirs.iter().map(&mut is_there).collect();
        assert!(left.iter().rev().take(5).all(|left| *left));
        assert_eq!(left.iter().filter(|left| **left).count(), 5);
    }

    #[test]
    fn pieces_hold_all_of_it() {
        let lines: Vec<_> = (0..100).map(|n| format!("line {n}é")).collect();
        let json = "{\n  \"a\": \"".to_owned() + &"ü".repeat(200) + "\"\n}";
        let pieces = pieces(&lines, &json, 64);
        let joined: Vec<_> = pieces
            .iter()
            .flat_map(|piece| piece.lines.clone())
            .collect();
        assert_eq!(joined, lines);
        let rest: String = pieces
            .iter()
            .flat_map(|piece| piece.json.concat().chars().collect::<Vec<_>>())
            .collect();
        assert_eq!(rest, json.replace('\n', ""));
        for piece in &pieces {
            let bytes = |lines: &[String]| lines.iter().map(|line| line.len() + 1).sum::<usize>();
            assert!(bytes(&piece.lines) <= 66 && bytes(&piece.json) <= 66);
        }
    }
}
