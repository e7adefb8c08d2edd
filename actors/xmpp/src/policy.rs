//! Whom the operator lets in.

use messages::Domain;

use crate::{Config, Error, jid};

/// Which domains may open streams.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    allow: Vec<Pattern>,
    deny: Vec<Pattern>,
}

#[derive(Debug)]
enum Pattern {
    Exactly(Domain),
    /// Everything below this domain.
    Below(Domain),
}

impl Pattern {
    fn read(text: &str) -> Result<Self, jid::JidError> {
        let (name, pattern): (_, fn(Domain) -> Self) = match text.strip_prefix("*.") {
            Some(parent) => (parent, Self::Below),
            None => (text, Self::Exactly),
        };
        match name.contains('*') {
            true => Err(jid::JidError),
            false => jid::prepare_domain(name).map(pattern),
        }
    }

    fn fits(&self, domain: &Domain) -> bool {
        match self {
            Self::Exactly(known) => known == domain,
            Self::Below(parent) => domain
                .as_str()
                .strip_suffix(parent.as_str())
                .is_some_and(|below| below.len() > 1 && below.ends_with('.')),
        }
    }
}

impl Policy {
    /// Reads the lists of the configuration, and tells which entries are no domains.
    pub(crate) fn load(config: &Config, errors: &mut Vec<Error>) -> Self {
        let mut load = |key, list: &[String]| {
            let mut patterns = Vec::new();
            for text in list {
                match Pattern::read(text) {
                    Ok(pattern) => patterns.push(pattern),
                    Err(_) => errors.push(Error::Domain {
                        key,
                        name: text.clone(),
                    }),
                }
            }
            patterns
        };
        Self {
            allow: load("xmpp.allow", &config.allow),
            deny: load("xmpp.deny", &config.deny),
        }
    }

    /// Whether a domain may open streams.
    ///
    /// # Errors
    /// Why not, in words for the log and for the peer.
    pub(crate) fn admit(&self, domain: &Domain) -> Result<(), &'static str> {
        let among = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.fits(domain));
        if among(&self.deny) {
            return Err("this domain is denied here");
        }
        match self.allow.is_empty() || among(&self.allow) {
            true => Ok(()),
            false => Err("this domain is not among those allowed here"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(allow: &[&str], deny: &[&str], domain: &str, expected: bool) {
        let list = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        let config = Config {
            allow: list(allow),
            deny: list(deny),
            ..Config::default()
        };
        let mut errors = Vec::new();
        let policy = Policy::load(&config, &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(policy.admit(&Domain::new(domain)).is_ok(), expected);
    }

    #[test]
    fn lists() {
        check(&[], &[], "chat.example", true);
        check(&["chat.example"], &[], "chat.example", true);
        check(&["Chat.Example."], &[], "chat.example", true);
        check(&["chat.example"], &[], "other.example", false);
        check(&["chat.example"], &[], "sub.chat.example", false);
        check(&["*.example"], &[], "chat.example", true);
        check(&["*.example"], &[], "a.chat.example", true);
        check(&["*.example"], &[], "example", false);
        check(&["*.example"], &[], ".example", false);
        check(&["*.example"], &[], "badexample", false);
        check(
            &["*.xn--bcher-kva.example"],
            &[],
            "a.b\u{fc}cher.example",
            true,
        );
        check(&[], &["chat.example"], "chat.example", false);
        check(&[], &["chat.example"], "other.example", true);
        check(&["*.example"], &["bad.example"], "bad.example", false);
        check(&["bad.example"], &["*.example"], "bad.example", false);
    }

    #[test]
    fn what_is_no_domain() {
        let config = Config {
            allow: vec!["chat.example".to_owned(), "a b".to_owned()],
            deny: vec!["*.".to_owned(), "a.*.example".to_owned()],
            ..Config::default()
        };
        let mut errors = Vec::new();
        Policy::load(&config, &mut errors);
        let names: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names[0].starts_with("xmpp.allow: \"a b\""), "{names:?}");
        assert!(names[1].starts_with("xmpp.deny: \"*.\""), "{names:?}");
    }
}
