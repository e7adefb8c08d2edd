//! Everything that is known before the first push: keys, TLS, prepared requests, and what the lanes share.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use messages::{AppId, Clock, ErrorReason, SigningKeyId};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::breaker::Breaker;
use crate::guard::TokenGuard;
use crate::jwt::Signer;
use crate::payload::{self, Kind};
use crate::request::Template;
use crate::{AppConfig, Config, Environment, Error, tls};

/// The port that is meant when an endpoint names none.
const HTTPS: u16 = 443;

/// All apps, ready to be served. Cheap to clone; one for all lanes, because they share what is learned of
/// an app.
#[derive(Clone)]
pub struct Upstreams(Arc<Prepared>);

struct Prepared {
    config: Config,
    clock: Clock,
    apps: HashMap<AppId, Arc<App>>,
    upstreams: Vec<Arc<Upstream>>,
    signers: BTreeMap<SigningKeyId, Arc<Signer>>,
}

/// Where pushes go and who signs for them: each lane has one pool of connections per upstream, because
/// APNs ties a connection to the key of its first push.
pub(crate) struct Upstream {
    /// Name or address to connect to.
    pub(crate) host: String,
    /// Port to connect to.
    pub(crate) port: u16,
    /// The `:authority` of each request.
    pub(crate) authority: Authority,
    /// The name the peer's certificate must have.
    pub(crate) server_name: ServerName<'static>,
    /// Who is trusted to vouch for it.
    pub(crate) tls: Arc<ClientConfig>,
    /// The key that signs.
    pub(crate) key: SigningKeyId,
}

/// One app: its prepared requests, and what all lanes together know of it.
pub(crate) struct App {
    /// Its name in the configuration.
    pub(crate) id: AppId,
    /// Which of [`Upstreams::all`] it is sent to.
    pub(crate) upstream: usize,
    /// Decides whether a suspicious verdict is the token's fault.
    pub(crate) guard: TokenGuard,
    /// Stops the app while APNs refuses its configuration.
    pub(crate) breaker: Breaker,
    environment: &'static str,
    alert: Template,
    background: Template,
    alarm: Alarm,
}

impl App {
    /// What pushes of a kind have in common.
    pub(crate) const fn template(&self, kind: Kind) -> &Template {
        match kind {
            Kind::Alert => &self.alert,
            Kind::Background => &self.background,
        }
    }

    /// Tells the operator of a problem with this app, once per interval and problem.
    pub(crate) fn alarm(&self, problem: &ErrorReason, now: Instant, what_to_do: &str) {
        if let Some(held_back) = self.alarm.rings(problem, now) {
            tracing::error!(
                app = %self.id,
                environment = self.environment,
                reason = %problem,
                held_back,
                "{what_to_do}"
            );
        }
    }
}

impl Upstreams {
    /// Loads and checks all that the apps need.
    ///
    /// # Errors
    /// Every problem of every app, not only the first.
    pub fn prepare(
        config: &Config,
        apps: &BTreeMap<String, AppConfig>,
        clock: Clock,
    ) -> Result<Self, Vec<Error>> {
        let mut builder = Builder {
            errors: config.problems(),
            ..Builder::default()
        };
        for (name, app) in apps {
            builder.add(config, name, app);
        }
        if !builder.errors.is_empty() {
            return Err(builder.errors);
        }
        Ok(Self(Arc::new(Prepared {
            config: config.clone(),
            clock,
            apps: builder.apps,
            upstreams: builder.upstreams,
            signers: builder
                .signers
                .into_iter()
                .map(|(id, (_, signer))| (id, signer))
                .collect(),
        })))
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    pub(crate) fn app(&self, id: &AppId) -> Option<&Arc<App>> {
        self.0.apps.get(id)
    }

    pub(crate) fn all(&self) -> &[Arc<Upstream>] {
        &self.0.upstreams
    }

    pub(crate) fn signers(&self) -> impl Iterator<Item = &Arc<Signer>> {
        self.0.signers.values()
    }
}

/// Finds every problem that [`Upstreams::prepare`] would, and keeps nothing.
#[must_use]
pub fn inspect(config: &Config, apps: &BTreeMap<String, AppConfig>) -> Vec<Error> {
    Upstreams::prepare(config, apps, Clock::system())
        .err()
        .unwrap_or_default()
}

/// What makes two apps share a pool.
type Shared = (String, Option<PathBuf>, SigningKeyId);

#[derive(Default)]
struct Builder {
    errors: Vec<Error>,
    apps: HashMap<AppId, Arc<App>>,
    upstreams: Vec<Arc<Upstream>>,
    by_shared: HashMap<Shared, usize>,
    /// The name of the app that brought the key, and the key.
    signers: BTreeMap<SigningKeyId, (String, Arc<Signer>)>,
    tls: HashMap<Option<PathBuf>, Arc<ClientConfig>>,
}

impl Builder {
    fn add(&mut self, config: &Config, name: &str, app: &AppConfig) {
        let key = self.key(name, app);
        let endpoint = self.endpoint(name, app);
        let tls = self.tls(name, app);
        let templates = self.templates(name, app);
        let (Some(key), Some(endpoint), Some(tls), Some((alert, background))) =
            (key, endpoint, tls, templates)
        else {
            return;
        };
        let shared = (
            endpoint.authority.to_string(),
            app.ca_file.clone(),
            key.clone(),
        );
        let upstream = *self.by_shared.entry(shared).or_insert_with(|| {
            self.upstreams.push(Arc::new(Upstream {
                host: endpoint.host,
                port: endpoint.port,
                authority: endpoint.authority,
                server_name: endpoint.server_name,
                tls,
                key,
            }));
            self.upstreams.len() - 1
        });
        let id = AppId::new(name);
        let now = Instant::now();
        self.apps.insert(
            id.clone(),
            Arc::new(App {
                id,
                upstream,
                guard: TokenGuard::new(
                    Duration::from_secs(config.token_guard_window_seconds),
                    config.token_guard_share_max_percent,
                    now,
                ),
                breaker: Breaker::new(Duration::from_secs(config.breaker_seconds), now),
                environment: app.environment.as_str(),
                alert,
                background,
                alarm: Alarm::new(Duration::from_secs(config.alarm_interval_seconds)),
            }),
        );
    }

    fn key(&mut self, name: &str, app: &AppConfig) -> Option<SigningKeyId> {
        let team_id = self.apple_id(name, "team_id", &app.team_id, "your team's id");
        let key_id = self.apple_id(name, "key_id", &app.key_id, "the id of the signing key");
        if app.key_file.as_os_str().is_empty() {
            self.missing(name, "key_file", "the path of the signing key's .p8 file");
            return None;
        }
        let text = match std::fs::read(&app.key_file) {
            Ok(text) => text,
            Err(source) => {
                self.errors.push(Error::Unreadable {
                    app: name.to_owned(),
                    key: "key_file",
                    path: app.key_file.clone(),
                    source,
                });
                return None;
            }
        };
        // A key is worth checking even when its id is wrong: all problems are to be told at once.
        let id = SigningKeyId {
            team_id: team_id.unwrap_or_default().into(),
            key_id: key_id.unwrap_or_default().into(),
        };
        let signer = match Signer::from_pem(id.clone(), &text) {
            Ok(signer) => signer,
            Err(problem) => {
                self.errors.push(Error::Unusable {
                    app: name.to_owned(),
                    key: "key_file",
                    path: app.key_file.clone(),
                    problem,
                });
                return None;
            }
        };
        if team_id.is_none() || key_id.is_none() {
            return None;
        }
        if let Some((other, known)) = self.signers.get(&id) {
            if known.public_key() != signer.public_key() {
                self.errors.push(Error::ConflictingKeys {
                    app: name.to_owned(),
                    other: other.clone(),
                });
                return None;
            }
        } else {
            self.signers
                .insert(id.clone(), (name.to_owned(), Arc::new(signer)));
        }
        Some(id)
    }

    fn apple_id<'a>(
        &mut self,
        name: &str,
        key: &'static str,
        value: &'a str,
        what: &'static str,
    ) -> Option<&'a str> {
        if value.is_empty() {
            self.missing(name, key, what);
            return None;
        }
        if value.len() != 10 || !value.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            self.invalid(
                name,
                key,
                "Apple's ids have ten letters or digits; see Membership and Keys in the developer \
                 account",
            );
            return None;
        }
        Some(value)
    }

    fn endpoint(&mut self, name: &str, app: &AppConfig) -> Option<Endpoint> {
        match Endpoint::new(app.environment, app.endpoint.as_deref()) {
            Some(endpoint) => Some(endpoint),
            None => {
                self.invalid(name, "endpoint", "write it as host:port");
                None
            }
        }
    }

    fn tls(&mut self, name: &str, app: &AppConfig) -> Option<Arc<ClientConfig>> {
        if let Some(known) = self.tls.get(&app.ca_file) {
            return Some(Arc::clone(known));
        }
        let roots = match &app.ca_file {
            Some(path) => tls::roots_of(path),
            None => tls::system_roots(),
        };
        match roots.and_then(|roots| tls::client(roots).map_err(|error| error.to_string())) {
            Ok(tls) => {
                self.tls.insert(app.ca_file.clone(), Arc::clone(&tls));
                Some(tls)
            }
            Err(problem) => {
                self.errors.push(match &app.ca_file {
                    Some(path) => Error::Unusable {
                        app: name.to_owned(),
                        key: "ca_file",
                        path: path.clone(),
                        problem,
                    },
                    None => Error::Invalid {
                        app: name.to_owned(),
                        key: "ca_file",
                        problem,
                    },
                });
                None
            }
        }
    }

    fn templates(&mut self, name: &str, app: &AppConfig) -> Option<(Template, Template)> {
        const KEPT_MAX: u64 = 30 * 86_400;
        let before = self.errors.len();
        for (key, seconds) in [
            ("alert_expiration_seconds", app.alert_expiration_seconds),
            (
                "background_expiration_seconds",
                app.background_expiration_seconds,
            ),
        ] {
            if seconds > KEPT_MAX {
                self.invalid(
                    name,
                    key,
                    "APNs keeps nothing longer than 2592000 s (30 days)",
                );
            }
        }
        if app.alert_title.is_empty() && app.alert_body.is_empty() {
            self.invalid(
                name,
                "alert_title",
                "a notification without any text is not shown; set alert_title or alert_body",
            );
        }
        if app.topic.is_empty() {
            self.missing(name, "topic", "the bundle id of the app");
            return None;
        }
        let templates = Template::new(Kind::Alert, app)
            .and_then(|alert| Ok((alert, Template::new(Kind::Background, app)?)));
        let Ok((alert, background)) = templates else {
            self.invalid(
                name,
                "topic",
                "a bundle id has letters, digits, '.' and '-'",
            );
            return None;
        };
        if alert.payload().len() > payload::BYTES_MAX {
            self.invalid(
                name,
                "alert_body",
                "title, body and sound make a payload above 4096 bytes; shorten them",
            );
        }
        (self.errors.len() == before).then_some((alert, background))
    }

    fn missing(&mut self, name: &str, key: &'static str, what: &'static str) {
        self.errors.push(Error::Missing {
            app: name.to_owned(),
            key,
            what,
        });
    }

    fn invalid(&mut self, name: &str, key: &'static str, problem: &str) {
        self.errors.push(Error::Invalid {
            app: name.to_owned(),
            key,
            problem: problem.to_owned(),
        });
    }
}

/// A parsed endpoint.
struct Endpoint {
    host: String,
    port: u16,
    authority: Authority,
    server_name: ServerName<'static>,
}

impl Endpoint {
    fn new(environment: Environment, given: Option<&str>) -> Option<Self> {
        let authority: Authority = given.unwrap_or_else(|| environment.host()).parse().ok()?;
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() == authority.host() => HTTPS,
            None => return None,
        };
        // An IPv6 address stands in brackets in an authority and nowhere else.
        let host = authority.host();
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
            .to_owned();
        let server_name = ServerName::try_from(host.clone()).ok()?;
        // The default port is not written (RFC 9110 §4.2.2).
        let authority = if port == HTTPS {
            authority.host().parse().ok()?
        } else {
            authority
        };
        Some(Self {
            host,
            port,
            authority,
            server_name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(endpoint: Option<&str>, expected: Option<(&str, u16, &str)>) {
        let got = Endpoint::new(Environment::Production, endpoint);
        let got = got
            .as_ref()
            .map(|e| (e.host.as_str(), e.port, e.authority.as_str()));
        assert_eq!(got, expected);
    }

    #[test]
    fn endpoints() {
        check(
            None,
            Some(("api.push.apple.com", 443, "api.push.apple.com")),
        );
        check(
            Some("api.push.apple.com:443"),
            Some(("api.push.apple.com", 443, "api.push.apple.com")),
        );
        check(
            Some("relay.example:2197"),
            Some(("relay.example", 2197, "relay.example:2197")),
        );
        check(Some("[::1]:8443"), Some(("::1", 8443, "[::1]:8443")));
        check(Some("https://relay.example"), None);
        check(Some("relay.example:99999"), None);
        check(Some("relay.example:"), None);
        check(Some("user@relay.example"), None);
        check(Some(""), None);
    }

    fn problems(apps: &[(&str, AppConfig)]) -> Vec<String> {
        let apps = apps
            .iter()
            .map(|(name, app)| ((*name).to_owned(), app.clone()))
            .collect();
        inspect(&Config::default(), &apps)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn key_file(directory: &std::path::Path, name: &str) -> PathBuf {
        let path = directory.join(name);
        let pair = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&path, pair.serialize_pem()).unwrap();
        path
    }

    fn ca_file(directory: &std::path::Path) -> PathBuf {
        let path = directory.join("ca.pem");
        let authority = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&path, authority.cert.pem()).unwrap();
        path
    }

    #[test]
    fn every_problem_of_every_app_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let good = AppConfig {
            topic: "com.example.app".to_owned(),
            team_id: "DEF123GHIJ".to_owned(),
            key_id: "ABC123DEFG".to_owned(),
            key_file: key_file(directory.path(), "a.p8"),
            ca_file: Some(ca_file(directory.path())),
            ..AppConfig::default()
        };
        assert_eq!(problems(&[("good", good.clone())]), [""; 0]);

        let empty = AppConfig {
            ca_file: good.ca_file.clone(),
            ..AppConfig::default()
        };
        let wrong = AppConfig {
            topic: "com.example\n".to_owned(),
            team_id: "short".to_owned(),
            key_file: directory.path().join("absent.p8"),
            endpoint: Some("https://relay.example".to_owned()),
            ca_file: good.ca_file.clone(),
            alert_body: String::new(),
            alert_title: String::new(),
            alert_expiration_seconds: 31 * 86_400,
            ..good.clone()
        };
        let swapped = AppConfig {
            key_file: key_file(directory.path(), "b.p8"),
            ca_file: Some(directory.path().join("a.p8")),
            alert_body: "x".repeat(5_000),
            ..good.clone()
        };
        let told = problems(&[
            ("a-good", good),
            ("b-empty", empty),
            ("c-wrong", wrong),
            ("d-swapped", swapped),
        ]);
        let expected = [
            "[apps.b-empty] team_id is missing",
            "[apps.b-empty] key_id is missing",
            "[apps.b-empty] key_file is missing",
            "[apps.b-empty] topic is missing",
            "[apps.c-wrong] team_id is wrong: Apple's ids have ten",
            "[apps.c-wrong] key_file: cannot read",
            "[apps.c-wrong] endpoint is wrong: write it as host:port",
            "[apps.c-wrong] alert_expiration_seconds is wrong",
            "[apps.c-wrong] alert_title is wrong",
            "[apps.c-wrong] topic is wrong",
            "[apps.d-swapped] key_file is not the key that [apps.a-good] has",
            "[apps.d-swapped] ca_file:",
            "[apps.d-swapped] alert_body is wrong: title, body and sound",
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told} | {expected}");
        }
    }

    #[test]
    fn apps_of_one_key_and_endpoint_share_a_pool() {
        let directory = tempfile::tempdir().unwrap();
        let first = AppConfig {
            topic: "com.example.app".to_owned(),
            team_id: "DEF123GHIJ".to_owned(),
            key_id: "ABC123DEFG".to_owned(),
            key_file: key_file(directory.path(), "a.p8"),
            ca_file: Some(ca_file(directory.path())),
            ..AppConfig::default()
        };
        let sandbox = AppConfig {
            environment: Environment::Sandbox,
            ..first.clone()
        };
        let other_topic = AppConfig {
            topic: "com.example.other".to_owned(),
            ..first.clone()
        };
        let apps = BTreeMap::from([
            ("a".to_owned(), first),
            ("b".to_owned(), sandbox),
            ("c".to_owned(), other_topic),
        ]);
        let upstreams = Upstreams::prepare(&Config::default(), &apps, Clock::system())
            .unwrap_or_else(|errors| panic!("{errors:?}"));
        let upstream = |name| upstreams.app(&AppId::new(name)).unwrap().upstream;
        assert_eq!(upstream("a"), upstream("c"));
        assert_ne!(upstream("a"), upstream("b"));
        assert_eq!(upstreams.all().len(), 2);
        assert_eq!(upstreams.signers().count(), 1);
    }

    #[test]
    fn numbers_out_of_range_are_told() {
        let config = Config {
            token_renew_seconds: 3_600,
            queue_max: 0,
            ..Config::default()
        };
        let told: Vec<String> = inspect(&config, &BTreeMap::new())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            told,
            [
                "[apns] queue_max = 0: choose a value from 1 to 10000000",
                "[apns] token_renew_seconds = 3600: choose a value from 1200 to 3000",
            ]
        );
    }
}
