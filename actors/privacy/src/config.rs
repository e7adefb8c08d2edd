//! What an operator sets.

use std::path::PathBuf;

use serde::Deserialize;

use crate::Error;

/// How people are answered about their data.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory of the cases, created with mode 0700.
    pub path: PathBuf,
    /// File with the 32 random bytes that codes are hashed with, created with mode 0600. Kept outside of
    /// `path`.
    pub key_file: PathBuf,
    /// Socket that `campanile privacy` and `campanile keys` talk to, created with mode 0600.
    pub socket: PathBuf,
    /// The part before the @ of the address that people confirm to, at each served domain.
    pub localpart: String,
    /// Whether people may get and erase their data by ad-hoc commands.
    pub self_service: bool,
    /// Days for which a code is good, 1 to 31.
    pub code_days: u32,
    /// Wrong codes after which a case takes none any more, at least 1.
    pub attempts_max: u32,
    /// Days after which a confirmed case is closed, at least 1.
    pub confirmed_days: u32,
    /// Days for which a closed case is listed, with nothing of the person in it.
    pub closed_days: u32,
    /// Cases that may be open or listed at a time.
    pub cases_max: u32,
    /// Erasures that may be unfinished at a time, 1 to 2000; half of them may be of people who ask by themselves.
    pub erasures_owed_max: u32,
    /// Commands one account may begin in 24 hours, at least 1.
    pub commands_per_account_max: u32,
    /// Commands that accounts of one owner's servers may begin in an hour, at least 1.
    pub commands_per_domain_max: u32,
    /// Commands that may be between two of their stages, at least 1.
    pub sessions_max: u32,
    /// Seconds from the beginning of a command to its end at the latest, at least 1.
    pub session_seconds: u32,
    /// Lines of the journal that one report may have, at least 1.
    pub lines_max: u32,
    /// Who runs the service: name and postal address, for the statement.
    pub controller: String,
    /// Whom to write to about data, as URIs or as people write it.
    pub contact: Vec<String>,
    /// The authority to complain to.
    pub authority: String,
    /// Where the machines of the service are: country or place.
    pub locations: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: "/var/lib/campanile/privacy".into(),
            key_file: "/var/lib/campanile/privacy.key".into(),
            socket: "/var/lib/campanile/admin.sock".into(),
            localpart: "privacy".to_owned(),
            self_service: true,
            code_days: 14,
            attempts_max: 5,
            confirmed_days: 60,
            closed_days: 90,
            cases_max: 1_000,
            erasures_owed_max: 1_000,
            commands_per_account_max: 12,
            commands_per_domain_max: 120,
            sessions_max: 256,
            session_seconds: 1_800,
            lines_max: 50_000,
            controller: String::new(),
            contact: Vec::new(),
            authority: String::new(),
            locations: Vec::new(),
        }
    }
}

impl Config {
    /// All values outside of their bounds.
    pub(crate) fn findings(&self) -> Vec<Error> {
        let rules = [
            (
                self.path.as_os_str().is_empty(),
                "path",
                "must name a directory",
            ),
            (
                self.key_file.as_os_str().is_empty(),
                "key_file",
                "must name a file",
            ),
            (
                self.key_file.starts_with(&self.path),
                "key_file",
                "must lie outside of privacy.path",
            ),
            (
                self.socket.as_os_str().is_empty() || self.socket.as_os_str().len() > SOCKET_MAX,
                "socket",
                "must name a socket with a path of at most 100 bytes",
            ),
            (
                !is_localpart(&self.localpart),
                "localpart",
                "must be 1 to 64 lower-case letters, digits, '.', '-' or '_'",
            ),
            (
                !(1..=31).contains(&self.code_days),
                "code_days",
                "must be 1 to 31",
            ),
            (self.attempts_max == 0, "attempts_max", "must be at least 1"),
            (
                self.confirmed_days == 0,
                "confirmed_days",
                "must be at least 1",
            ),
            (self.cases_max == 0, "cases_max", "must be at least 1"),
            (
                !(1..=2_000).contains(&self.erasures_owed_max),
                "erasures_owed_max",
                "must be 1 to 2000",
            ),
            (
                self.commands_per_account_max == 0,
                "commands_per_account_max",
                "must be at least 1",
            ),
            (
                self.commands_per_domain_max == 0,
                "commands_per_domain_max",
                "must be at least 1",
            ),
            (self.sessions_max == 0, "sessions_max", "must be at least 1"),
            (
                self.session_seconds == 0,
                "session_seconds",
                "must be at least 1",
            ),
            (self.lines_max == 0, "lines_max", "must be at least 1"),
        ];
        rules
            .into_iter()
            .filter(|(broken, ..)| *broken)
            .map(|(_, key, rule)| Error::Config { key, rule })
            .collect()
    }
}

/// Unix takes 107; the name under which the socket is made is a little longer.
const SOCKET_MAX: usize = 100;

fn is_localpart(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut Config), expected: &[&str]) {
        let mut config = Config::default();
        change(&mut config);
        let found: Vec<_> = config
            .findings()
            .into_iter()
            .map(|finding| match finding {
                Error::Config { key, .. } => key,
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn values_have_bounds() {
        check(|_| {}, &[]);
        check(|c| c.key_file = c.path.join("key"), &["key_file"]);
        check(|c| c.localpart = "Privacy".to_owned(), &["localpart"]);
        check(|c| c.localpart = "a@b".to_owned(), &["localpart"]);
        check(|c| c.code_days = 32, &["code_days"]);
        check(|c| c.erasures_owed_max = 0, &["erasures_owed_max"]);
        check(|c| c.erasures_owed_max = 2_001, &["erasures_owed_max"]);
        check(
            |c| c.socket = format!("/{}", "x".repeat(100)).into(),
            &["socket"],
        );
        check(
            |c| {
                c.attempts_max = 0;
                c.sessions_max = 0;
            },
            &["attempts_max", "sessions_max"],
        );
    }
}
