//! The configuration: embedded defaults, then a file, then the environment.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use thiserror::Error;

use crate::findings::{self, Place, one_line};
use crate::{guardian, lanes, places, shutdown, telemetry};

/// Every key with its default, unit and reason.
pub const DEFAULTS: &str = include_str!("../conf/default.toml");

/// Variables `CAMPANILE__SECTION__KEY` override the file; lists are written with commas.
pub(crate) const ENVIRONMENT_PREFIX: &str = "CAMPANILE";

/// The keys that are lists, so that the environment can set them.
const LISTS: [&str; 8] = [
    "xmpp.listen",
    "xmpp.listen_tls",
    "xmpp.ca_files",
    "xmpp.allow",
    "xmpp.deny",
    "xmpp.name_servers",
    "privacy.contact",
    "privacy.locations",
];

/// The whole configuration: one table per actor, the served domains, and the apps.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `[runtime]`.
    pub runtime: Runtime,
    /// `[log]`.
    pub log: telemetry::Config,
    /// `[shutdown]`.
    pub shutdown: shutdown::Config,
    /// `[guardian]`.
    pub guardian: guardian::Config,
    /// `[xmpp]`.
    pub xmpp: xmpp::Config,
    /// `[[domains]]`: the domains this service answers for.
    pub domains: Vec<xmpp::DomainConfig>,
    /// `[[components]]`: those of the domains that are components of an XMPP server.
    pub components: Vec<xmpp::ComponentConfig>,
    /// `[apns]`.
    pub apns: apns::Config,
    /// `[apps.NAME]`: the apps whose devices are notified.
    pub apps: BTreeMap<String, apns::AppConfig>,
    /// `[registration]`.
    pub registration: registration::Config,
    /// `[feedback]`.
    pub feedback: feedback::Config,
    /// `[retention]`.
    pub retention: retention::Config,
    /// `[privacy]`.
    pub privacy: privacy::Config,
    /// `[journal]`.
    pub journal: journal::Config,
}

/// `[runtime]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// Lanes (threads that carry pushes) whatever the machine has; 0 for one less than its cores.
    pub lanes: usize,
    /// Most lanes where `lanes` is 0.
    pub lanes_max: usize,
    /// What is added to the niceness of the thread that leads new connections through TLS, 0 to 19.
    pub handshake_niceness: u8,
}

impl Runtime {
    /// How many lanes run on so many cores.
    #[must_use]
    pub const fn lanes_on(&self, cores: usize) -> usize {
        match self.lanes {
            0 => lanes::count(cores, self.lanes_max),
            lanes => lanes,
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            lanes: 0,
            lanes_max: 8,
            handshake_niceness: 10,
        }
    }
}

/// Lanes above which a number is a slip: no machine has so many cores.
const LANES_MOST: usize = 1024;

/// Largest number of any key: 34,000 years in seconds, or a tebibyte.
const NUMBER_MAX: i64 = 1 << 40;

/// What is wrong with the configuration, a line each.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("{file}: cannot be read ({source}): conf/example.toml is one to begin with")]
    Unreadable {
        /// The file as given.
        file: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{file}: line {line}: {message}")]
    Syntax {
        /// The file as given.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A key is unknown, missing, or of the wrong kind.
    #[error("{place}: {message}")]
    Key {
        /// The file as given with the path of the key, or the name of the variable.
        place: String,
        /// What is wrong.
        message: String,
    },
    /// Two parts of the configuration do not fit each other.
    #[error("{0}")]
    Inconsistent(String),
}

impl Settings {
    /// Loads defaults, `file`, and the environment.
    ///
    /// # Errors
    /// Everything that is wrong with the keys of the file; if nothing is, with those of the environment; if
    /// nothing is, what does not fit together.
    pub fn load(file: &Path) -> Result<Self, Vec<SettingsError>> {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|source| {
            vec![SettingsError::Unreadable {
                file: name.clone(),
                source,
            }]
        })?;
        let settings = Self::merge(&name, &text, None)?;
        let problems = settings.inconsistencies();
        if problems.is_empty() {
            Ok(settings)
        } else {
            Err(problems)
        }
    }

    /// What [`Settings::load`] does with the text of a file; `environment` stands in for the process's.
    fn merge(
        name: &str,
        text: &str,
        environment: Option<config::Map<String, String>>,
    ) -> Result<Self, Vec<SettingsError>> {
        let table = parse(name, text)?;
        findings::of(Place::File(name), table, |table| {
            serde_path_to_error::deserialize(table.clone())
                .map(|_: Self| ())
                .map_err(Box::new)
        })?;
        let variables = LISTS.iter().fold(
            config::Environment::with_prefix(ENVIRONMENT_PREFIX)
                .prefix_separator("__")
                .separator("__")
                .try_parsing(true)
                .list_separator(",")
                .source(environment),
            |variables, key| variables.with_list_parse_key(key),
        );
        let (merged, table) = config::Config::builder()
            .add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml))
            .add_source(config::File::from_str(text, config::FileFormat::Toml))
            .add_source(variables)
            .build()
            .and_then(|merged| Ok((merged.clone(), merged.try_deserialize::<toml::Table>()?)))
            .map_err(unfit)?;
        let settings = merged.try_deserialize().or_else(|error| {
            findings::of(Place::Environment, table.clone(), |table| {
                // Empty lists are lost on this way, which is of no matter to what is wrong.
                let merged = config::Config::try_from(table).unwrap_or_default();
                serde_path_to_error::deserialize(merged)
                    .map(|_: Self| ())
                    .map_err(Box::new)
            })?;
            Err(unfit(error))
        })?;
        let mut findings = Vec::new();
        find_boundless("", &toml::Value::Table(table), &mut findings);
        if findings.is_empty() {
            Ok(Self::with_disclosures(settings))
        } else {
            Err(findings)
        }
    }

    /// Tells each domain what its apps want to know of messages.
    fn with_disclosures(mut self) -> Self {
        for domain in &mut self.domains {
            let apps = domain.apps.iter().filter_map(|app| self.apps.get(app));
            let most = apps.map(|app| app.content.disclosure()).max();
            domain.disclosure = most.unwrap_or_default();
        }
        self
    }

    /// What the parts say of each other that does not fit.
    #[must_use]
    pub fn inconsistencies(&self) -> Vec<SettingsError> {
        let mut found = Vec::new();
        let mut say = |text: String| found.push(SettingsError::Inconsistent(text));
        if self.domains.is_empty() {
            say(
                "domains: none is served: add a [[domains]] table with name, certificate, key and \
                 apps (see conf/example.toml)"
                    .to_owned(),
            );
        }
        if self.apps.is_empty() {
            say(
                "apps: there is none: add an [apps.NAME] table with topic, team_id, key_id and \
                 key_file (see conf/example.toml)"
                    .to_owned(),
            );
        }
        if self.runtime.lanes > LANES_MOST {
            say(format!("runtime.lanes: must be at most {LANES_MOST}"));
        }
        if self.runtime.handshake_niceness > lanes::NICENESS_MAX {
            say(format!(
                "runtime.handshake_niceness: must be at most {}",
                lanes::NICENESS_MAX
            ));
        }
        let mut seen = std::collections::BTreeSet::new();
        for domain in &self.domains {
            if !seen.insert(domain.name.to_lowercase()) {
                say(format!("domains: {} is listed twice", domain.name));
            }
            if domain.apps.is_empty() {
                say(format!(
                    "domains: {}: apps is empty: name at least one app",
                    domain.name
                ));
            }
            for app in domain
                .apps
                .iter()
                .filter(|app| !self.apps.contains_key(*app))
            {
                say(format!(
                    "domains: {}: there is no [apps.{app}]",
                    domain.name
                ));
            }
        }
        places::findings(self).into_iter().for_each(say);
        found
    }
}

/// Finds numbers that no clock and no counter can work with.
fn find_boundless(path: &str, value: &toml::Value, findings: &mut Vec<SettingsError>) {
    let below = |key: &str| match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    };
    match value {
        toml::Value::Integer(number) if *number > NUMBER_MAX => {
            findings.push(SettingsError::Inconsistent(format!(
                "{path}: {number} is no bound: write {NUMBER_MAX} or less"
            )));
        }
        toml::Value::Table(table) => {
            for (key, value) in table {
                find_boundless(&below(key), value, findings);
            }
        }
        toml::Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                find_boundless(&below(&index.to_string()), value, findings);
            }
        }
        _ => {}
    }
}

fn parse(file: &str, text: &str) -> Result<toml::Table, Vec<SettingsError>> {
    text.parse().map_err(|error: toml::de::Error| {
        let before = error
            .span()
            .and_then(|span| text.get(..span.start))
            .unwrap_or_default();
        vec![SettingsError::Syntax {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            message: one_line(error.message()),
        }]
    })
}

/// What the reader of the environment says of variables that contradict each other.
#[allow(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn unfit(error: config::ConfigError) -> Vec<SettingsError> {
    vec![SettingsError::Key {
        place: format!("environment ({ENVIRONMENT_PREFIX}__SECTION__KEY)"),
        message: one_line(&error.to_string()),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_as_many_as_asked_for_or_as_fit() {
        for (lanes, lanes_max, cores, expected) in
            [(0, 8, 4, 3), (0, 2, 4, 2), (2, 8, 2, 2), (5, 2, 4, 5)]
        {
            let runtime = Runtime {
                lanes,
                lanes_max,
                ..Runtime::default()
            };
            assert_eq!(runtime.lanes_on(cores), expected);
        }
    }

    #[test]
    fn a_slip_in_the_number_of_lanes_is_found() {
        let mut settings = Settings::default();
        let found = |settings: &Settings| {
            let all = settings.inconsistencies();
            all.iter().any(|one| one.to_string().contains("lanes"))
        };
        settings.runtime.lanes = LANES_MOST;
        assert!(!found(&settings));
        settings.runtime.lanes = LANES_MOST + 1;
        assert!(found(&settings));
    }

    #[test]
    fn more_niceness_than_there_is_is_found() {
        let mut settings = Settings::default();
        let found = |settings: &Settings| {
            let all = settings.inconsistencies();
            all.iter().any(|one| one.to_string().contains("niceness"))
        };
        settings.runtime.handshake_niceness = 19;
        assert!(!found(&settings));
        settings.runtime.handshake_niceness = 20;
        assert!(found(&settings));
    }
}
