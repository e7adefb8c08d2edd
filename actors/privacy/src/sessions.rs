//! Commands between two of their stages. Pure; in memory alone.

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
}

impl Sessions {
    /// Begins one, in the place of an older one of the same account and command; `None` when there are as
    /// many as there may be.
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
    ) -> Result<Option<String>, Error> {
        self.sessions.retain(|_, session| {
            session.ends_at > now && !(session.account == *account && session.command == command)
        });
        if self.sessions.len() >= usize::try_from(config.sessions_max).unwrap_or(usize::MAX) {
            return Ok(None);
        }
        let name = code::random_text(NAME_CHARACTERS)?;
        let session = Session {
            account: account.clone(),
            command,
            ends_at: UnixSeconds(now.0.saturating_add(config.session_seconds.into())),
            pieces,
            at: 0,
            is_shown: false,
        };
        self.sessions.insert(name.clone(), session);
        Ok(Some(name))
    }

    /// The session of that name, if it is this account's and this command's. It lasts on from now.
    pub(crate) fn go_on(
        &mut self,
        name: &str,
        account: &BareJid,
        command: PrivacyCommand,
        config: &Config,
        now: UnixSeconds,
    ) -> Option<&mut Session> {
        let session = self.sessions.get_mut(name)?;
        if session.ends_at <= now || session.account != *account || session.command != command {
            return None;
        }
        session.ends_at = UnixSeconds(now.0.saturating_add(config.session_seconds.into()));
        Some(session)
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
            sessions_max: 2,
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
        let first = begin(&ada, erase, at(0)).unwrap();
        let name = begin(&ada, erase, at(0)).unwrap();
        assert!(begin(&eve, access, at(0)).is_some());
        assert!(begin(&ada, access, at(0)).is_none());
        let mut go_on = |name: &str, account, command, now| {
            let session = sessions.go_on(name, account, command, &config, now);
            session.is_some()
        };
        assert!(!go_on(&first, &ada, erase, at(1)));
        assert!(!go_on(&name, &eve, erase, at(1)));
        assert!(!go_on(&name, &ada, access, at(1)));
        assert!(go_on(&name, &ada, erase, at(59)));
        assert!(go_on(&name, &ada, erase, at(118)));
        assert!(!go_on(&name, &ada, erase, at(178)));
        assert_eq!(sessions.sweep(at(178)), 2);
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
