//! Says what is wrong with the keys of a configuration, all of it, in words.

use std::fmt::Display;

use serde_path_to_error::{Error, Path, Segment};

use crate::settings::{ENVIRONMENT_PREFIX, SettingsError};

/// What is above this likeness is taken for a slip of the pen.
const LIKENESS_MIN: f64 = 0.85;

/// Where keys come from.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// A file, as it was given.
    File(&'a str),
    /// Variables.
    Environment,
}

impl Place<'_> {
    fn of(self, path: &[String]) -> String {
        match self {
            Self::File(file) if path.is_empty() => file.to_owned(),
            Self::File(file) => format!("{file}: {}", path.join(".")),
            Self::Environment => {
                let is_name = |part: &&String| part.parse::<usize>().is_err();
                path.iter()
                    .filter(is_name)
                    .fold(ENVIRONMENT_PREFIX.to_owned(), |name, part| {
                        name + "__" + &part.to_uppercase()
                    })
            }
        }
    }
}

/// Finds everything that is wrong with the keys of a table: after each finding the offending key is taken
/// out, and the rest is read again.
pub(crate) fn of<E: Display>(
    place: Place<'_>,
    mut table: toml::Table,
    read: impl Fn(&toml::Table) -> Result<(), Box<Error<E>>>,
) -> Result<(), Vec<SettingsError>> {
    let mut findings = Vec::new();
    while let Err(error) = read(&table) {
        let mut path = segments(error.path());
        let removed = remove(&mut table, &path);
        let message = one_line(&error.inner().to_string());
        let message = match message.strip_prefix("missing field `") {
            Some(field) => {
                path.extend(field.split('`').next().map(str::to_owned));
                "is missing".to_owned()
            }
            None => in_words(&message),
        };
        findings.push(SettingsError::Key {
            place: place.of(&path),
            message,
        });
        if !removed {
            break;
        }
    }
    if findings.is_empty() {
        Ok(())
    } else {
        Err(findings)
    }
}

fn segments(path: &Path) -> Vec<String> {
    path.iter()
        .map(|segment| match segment {
            Segment::Map { key } => key.clone(),
            Segment::Seq { index } => index.to_string(),
            other => other.to_string(),
        })
        .collect()
}

/// Takes the value at `path` out; false when there is none.
fn remove(table: &mut toml::Table, path: &[String]) -> bool {
    let Some((last, parents)) = path.split_last() else {
        return false;
    };
    let mut place = None::<&mut toml::Value>;
    for key in parents {
        let next = match place {
            None => table.get_mut(key),
            Some(toml::Value::Table(inner)) => inner.get_mut(key),
            Some(toml::Value::Array(items)) => key
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get_mut(index)),
            Some(_) => None,
        };
        let Some(next) = next else { return false };
        place = Some(next);
    }
    match place {
        None => table.remove(last).is_some(),
        Some(toml::Value::Table(inner)) => inner.remove(last).is_some(),
        Some(toml::Value::Array(items)) => match last.parse::<usize>() {
            Ok(index) if index < items.len() => {
                items.remove(index);
                true
            }
            _ => false,
        },
        Some(_) => false,
    }
}

/// What the deserializers say, for people who write configurations. Values of the wrong kind are not
/// repeated: one may be a secret.
fn in_words(message: &str) -> String {
    // Where it is stands in front already.
    let message = message.split(" for key `").next().unwrap_or(message);
    let message = match message.rsplit_once(" in `") {
        Some((before, path)) if path.ends_with('`') && !path.contains(' ') => before,
        _ => message,
    };
    let (found, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    if let Some(key) = found.strip_prefix("unknown field ") {
        return unknown(key.trim_matches('`'), expected);
    }
    if let Some(found) = found.strip_prefix("unknown variant ") {
        return format!("must be {expected}, not {found}");
    }
    if let Some((_, found)) = message.split_once(" does not have variant constructor ") {
        return format!("`{found}` is no choice here: conf/default.toml names them");
    }
    if message == "invalid socket address syntax" {
        return "must be an IP address and a port: 192.0.2.1:5269 or [2001:db8::1]:5269".to_owned();
    }
    let wrong = found
        .strip_prefix("invalid type: ")
        .or_else(|| found.strip_prefix("invalid value: "));
    match wrong {
        Some(wrong) => format!("must be {}, not {}", kind(expected), kind_found(wrong)),
        None => message.to_owned(),
    }
}

fn unknown(key: &str, expected: &str) -> String {
    let all = "conf/default.toml lists those there are";
    let likeness = |known: &&str| strsim::jaro_winkler(key, known);
    // Names stand between backticks, and so at odd places.
    let known = expected.split('`').skip(1).step_by(2);
    match known.max_by(|a, b| likeness(a).total_cmp(&likeness(b))) {
        Some(known) if likeness(&known) >= LIKENESS_MIN => {
            format!("there is no such key: is it {known}? {all}")
        }
        _ => format!("there is no such key: {all}"),
    }
}

fn kind(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i64" | "an integer" => "a whole number",
        "f64" => "a number",
        "a sequence" => "a list: [\"...\", \"...\"]",
        "a string" | "path string" => "text in quotes",
        "a boolean" => "true or false",
        other if other.starts_with("struct ") || other.starts_with("a map") => "a table",
        other => other,
    }
}

fn kind_found(found: &str) -> &str {
    match found.split(' ').next() {
        Some("string") => "text",
        Some("integer") if found.contains("`-") => "a negative one",
        Some("integer") => "a whole number",
        Some("floating") => "a number with a fraction",
        Some("boolean") => "true or false",
        Some("sequence") => "a list",
        Some("map") => "a table",
        _ => "this",
    }
}

/// Errors of libraries come in several lines; a finding is one.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let elsewhere = "conf/default.toml lists those there are";
        for (message, expected) in [
            (
                "unknown field `stream_max`, expected one of `listen`, `streams_max`, `tls_min`",
                format!("there is no such key: is it streams_max? {elsewhere}"),
            ),
            (
                "unknown field `colour`, expected `listen` or `streams_max` for key `xmpp`",
                format!("there is no such key: {elsewhere}"),
            ),
            (
                "unknown field `colour`, there are no fields",
                format!("there is no such key: {elsewhere}"),
            ),
            (
                "unknown variant `prod`, expected `production` or `sandbox` in `apps.a.environment`",
                "must be `production` or `sandbox`, not `prod`".to_owned(),
            ),
            (
                "enum Format does not have variant constructor xml for key `log.format`",
                "`xml` is no choice here: conf/default.toml names them".to_owned(),
            ),
            (
                "invalid type: integer `4711`, expected a string in `components.0.secret`",
                "must be text in quotes, not a whole number".to_owned(),
            ),
            (
                "invalid value: integer `-1`, expected usize in `xmpp.streams_max`",
                "must be a whole number, 0 or more, not a negative one".to_owned(),
            ),
            (
                "invalid type: string \"s3cret\", expected an integer for key `a` in the environment",
                "must be a whole number, not text".to_owned(),
            ),
            (
                "no version of TLS that is spoken here: write \"1.2\" or \"1.3\" in `xmpp.tls_min`",
                "no version of TLS that is spoken here: write \"1.2\" or \"1.3\"".to_owned(),
            ),
        ] {
            assert_eq!(in_words(message), expected);
        }
    }
}
