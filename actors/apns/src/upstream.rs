//! Everything that is known before the first push: keys, TLS, prepared requests, and what the lanes share.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use messages::{Acceptance, AppId, Clock, Disclosure, ErrorReason, SigningKeyId, UnixSeconds};
use ring::digest::{SHA256, digest};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::breaker::Breaker;
use crate::certificate::Certificate;
use crate::class::{Class, Style};
use crate::config::{ALTERNATIVE, HTTPS, Shown};
use crate::connect::Names;
use crate::guard::TokenGuard;
use crate::jwt::Signer;
use crate::proxy::{Proxy, bare_host};
use crate::request::Template;
use crate::signing_key::SigningKey;
use crate::token_file;
use crate::{AppConfig, Config, Environment, Error, tls};

/// How long before a certificate ends the operator is told.
const CERTIFICATE_WARNING_DAYS: u64 = 30;

const DAY: u64 = 86_400;

/// All apps, ready to be served. Cheap to clone; one for all lanes, because they share what is learned of
/// an app.
#[derive(Clone)]
pub struct Upstreams(Arc<Prepared>);

struct Prepared {
    config: Config,
    clock: Clock,
    names: Names,
    apps: HashMap<AppId, Arc<App>>,
    upstreams: Vec<Arc<Upstream>>,
    keys: BTreeMap<SigningKeyId, Arc<SigningKey>>,
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
    /// The proxy to go through.
    pub(crate) proxy: Option<Proxy>,
    /// The key that signs; none when the certificate in `tls` says who we are.
    pub(crate) key: Option<Arc<SigningKey>>,
}

/// One app: its prepared requests, and what all lanes together know of it.
pub(crate) struct App {
    /// Its name in the configuration.
    pub(crate) id: AppId,
    /// Which of [`Upstreams::all`] it is sent to.
    pub(crate) upstream: usize,
    /// What its successes prove.
    pub(crate) acceptance: Acceptance,
    /// Decides whether a suspicious verdict is the token's fault.
    pub(crate) guard: TokenGuard,
    /// Stops the app while APNs refuses its configuration, or all of its device tokens.
    pub(crate) breaker: Breaker,
    /// What its notifications show of messages.
    pub(crate) disclosure: Disclosure,
    environment: &'static str,
    templates: Templates,
    alarm: Alarm,
}

impl App {
    /// What pushes of a class have in common.
    pub(crate) const fn template(&self, class: Class) -> &Template {
        let [important, unimportant, voip, clear] = &self.templates;
        match class {
            Class::Important => important,
            Class::Unimportant => unimportant,
            Class::Voip => voip,
            Class::Clear => clear,
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
        Self::prepare_with(config, apps, clock, Names::system())
    }

    /// The same with another way to look names up.
    ///
    /// # Errors
    /// Every problem of every app, not only the first.
    pub fn prepare_with(
        config: &Config,
        apps: &BTreeMap<String, AppConfig>,
        clock: Clock,
        names: Names,
    ) -> Result<Self, Vec<Error>> {
        let mut builder = Builder {
            errors: config.problems(),
            now: clock.now(),
            ..Builder::default()
        };
        for (name, app) in apps {
            builder.add(config, name, app);
        }
        if !builder.errors.is_empty() {
            return Err(builder.errors);
        }
        builder.warn_of_directory(config, apps);
        builder.warnings.extend(unusable_directory(config, apps));
        for warning in &builder.warnings {
            tracing::warn!("{warning}");
        }
        Ok(Self(Arc::new(Prepared {
            config: config.clone(),
            clock,
            names,
            apps: builder.apps,
            upstreams: builder.upstreams,
            keys: builder
                .keys
                .into_iter()
                .map(|(id, (_, key))| (id, key))
                .collect(),
        })))
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    pub(crate) fn names(&self) -> &Names {
        &self.0.names
    }

    pub(crate) fn app(&self, id: &AppId) -> Option<&Arc<App>> {
        self.0.apps.get(id)
    }

    pub(crate) fn all(&self) -> &[Arc<Upstream>] {
        &self.0.upstreams
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Arc<SigningKey>> {
        self.0.keys.values()
    }
}

/// Finds every problem that [`Upstreams::prepare`] would, and keeps nothing.
#[must_use]
pub fn inspect(config: &Config, apps: &BTreeMap<String, AppConfig>) -> Vec<Error> {
    let prepared = Upstreams::prepare(config, apps, Clock::system());
    let mut errors = prepared.err().unwrap_or_default();
    // The service would start without it, and be refused after its next start.
    errors.extend(unusable_directory(config, apps));
    errors
}

/// Why provider tokens cannot be kept, if they cannot.
fn unusable_directory(config: &Config, apps: &BTreeMap<String, AppConfig>) -> Option<Error> {
    let path = token_dir(config, apps)?.to_owned();
    let source = token_file::try_directory(&path).err()?;
    Some(Error::TokenDir { path, source })
}

/// Where provider tokens are kept, if there are any.
fn token_dir<'a>(config: &'a Config, apps: &BTreeMap<String, AppConfig>) -> Option<&'a Path> {
    let is_used = apps.values().any(|app| app.certificate_file.is_none());
    let path = config.token_dir.as_path();
    (is_used && !path.as_os_str().is_empty()).then_some(path)
}

/// The id in a name that Apple gave: `AuthKey_ABC123DEFG.p8`.
fn named_key_id(file: &Path) -> Option<&str> {
    let name = file.file_name()?.to_str()?;
    name.strip_prefix("AuthKey_")?.strip_suffix(".p8")
}

/// Finds what works now and will not for long; nothing when there are faults.
#[must_use]
pub fn warnings(config: &Config, apps: &BTreeMap<String, AppConfig>, clock: &Clock) -> Vec<Error> {
    let mut builder = Builder {
        now: clock.now(),
        ..Builder::default()
    };
    for (name, app) in apps {
        builder.add(config, name, app);
    }
    builder.warn_of_directory(config, apps);
    builder.warnings
}

/// Prepared requests, in the order of [`Class::ALL`].
type Templates = [Template; 4];

/// What makes two apps share a pool.
type Shared = (String, Option<PathBuf>, Option<Proxy>, Identity);

/// Who we are to APNs.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Identity {
    Key(SigningKeyId),
    Certificate(PathBuf),
}

/// What an app needs to prove who it is.
struct Proof {
    identity: Identity,
    key: Option<Arc<SigningKey>>,
    certificate: Option<Certificate>,
}

#[derive(Default)]
struct Builder {
    errors: Vec<Error>,
    apps: HashMap<AppId, Arc<App>>,
    upstreams: Vec<Arc<Upstream>>,
    by_shared: HashMap<Shared, usize>,
    /// The name of the app that brought the key, and the key.
    keys: BTreeMap<SigningKeyId, (String, Arc<SigningKey>)>,
    now: UnixSeconds,
    warnings: Vec<Error>,
}

impl Builder {
    fn add(&mut self, config: &Config, name: &str, app: &AppConfig) {
        let shown = match app.content {
            Shown::None => None,
            Shown::Body => Some("the text of messages"),
            Shown::BodyAndSender => Some("the text of messages and who writes them"),
        };
        if let Some(what) = shown {
            let app = name.to_owned();
            self.warnings.push(Error::ContentShown { app, what });
        }
        let proof = self.proof(name, app);
        if proof.is_some() {
            self.warn_of_files(name, app);
        }
        let endpoint = self.endpoint(name, app);
        let proxy = self.proxy(name, app);
        let certificate = proof.as_ref().and_then(|proof| proof.certificate.as_ref());
        let topics = certificate.map(|certificate| certificate.topics.clone());
        let templates = self.templates(name, app, topics.as_deref());
        let (identity, key, certificate) = match proof {
            Some(proof) => (Some(proof.identity), proof.key, proof.certificate),
            None => (None, None, None),
        };
        let tls = self.tls(name, app, certificate);
        let (Some(identity), Some(endpoint), Some(proxy), Some(tls), Some(templates)) =
            (identity, endpoint, proxy, tls, templates)
        else {
            return;
        };
        let authority = endpoint.authority.to_string();
        let topic = match topics.as_deref() {
            Some([topic, ..]) if app.topic.is_empty() => topic,
            _ => &app.topic,
        };
        let acceptance = acceptance(&endpoint.host, app.environment.as_str(), topic);
        let shared = (authority, app.ca_file.clone(), proxy.clone(), identity);
        let upstream = *self.by_shared.entry(shared).or_insert_with(|| {
            self.upstreams.push(Arc::new(Upstream {
                host: endpoint.host,
                port: endpoint.port,
                authority: endpoint.authority,
                server_name: endpoint.server_name,
                tls,
                proxy,
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
                acceptance,
                guard: TokenGuard::new(
                    Duration::from_secs(config.token_guard_window_seconds),
                    config.token_guard_share_max_percent,
                    now,
                ),
                breaker: Breaker::new(Duration::from_secs(config.breaker_seconds)),
                disclosure: app.content.disclosure(),
                environment: app.environment.as_str(),
                templates,
                alarm: Alarm::new(Duration::from_secs(config.alarm_interval_seconds)),
            }),
        );
    }

    fn proof(&mut self, name: &str, app: &AppConfig) -> Option<Proof> {
        let Some(file) = &app.certificate_file else {
            let key = self.key(name, app)?;
            return Some(Proof {
                identity: Identity::Key(key.id().clone()),
                key: Some(key),
                certificate: None,
            });
        };
        if !app.key_file.as_os_str().is_empty() {
            self.invalid(
                name,
                "key_file",
                "there is a certificate_file too; give one of both",
            );
            return None;
        }
        let key_file = app.certificate_key_file.as_deref();
        let password_file = app.certificate_password_file.as_deref();
        let certificate = match Certificate::load(file, key_file, password_file) {
            Ok(certificate) => certificate,
            Err((key, problem)) => {
                let path = match key {
                    "certificate_key_file" => key_file,
                    "certificate_password_file" => password_file,
                    _ => None,
                };
                self.unusable(name, key, path.unwrap_or(file), problem);
                return None;
            }
        };
        let left = certificate.not_after.0.saturating_sub(self.now.0) / DAY;
        if certificate.not_after <= self.now {
            let problem = "has ended: make a new one in Apple's console".to_owned();
            self.unusable(name, "certificate_file", file, problem);
            return None;
        }
        if left <= CERTIFICATE_WARNING_DAYS {
            self.warnings.push(Error::CertificateEnds {
                app: name.to_owned(),
                days: left,
            });
        }
        Some(Proof {
            identity: Identity::Certificate(file.clone()),
            key: None,
            certificate: Some(certificate),
        })
    }

    /// Finds secrets that others may read, and a key under the name of another.
    fn warn_of_files(&mut self, name: &str, app: &AppConfig) {
        // A certificate is no secret; the key that may be in its file is.
        let bundle = app.certificate_file.as_deref();
        let bundle = bundle.filter(|_| app.certificate_key_file.is_none());
        for (key, path) in [
            ("key_file", Some(app.key_file.as_path())),
            ("certificate_file", bundle),
            ("certificate_key_file", app.certificate_key_file.as_deref()),
            (
                "certificate_password_file",
                app.certificate_password_file.as_deref(),
            ),
            (
                "proxy_credentials_file",
                app.proxy_credentials_file.as_deref(),
            ),
        ] {
            if let Some(path) = path
                && token_file::is_exposed(path)
            {
                let (app, path) = (name.to_owned(), path.to_owned());
                self.warnings.push(Error::Exposed { app, key, path });
            }
        }
        if let Some(named) = named_key_id(&app.key_file)
            && named != app.key_id
        {
            let (app, named) = (name.to_owned(), named.to_owned());
            self.warnings.push(Error::OtherKeyId { app, named });
        }
    }

    fn warn_of_directory(&mut self, config: &Config, apps: &BTreeMap<String, AppConfig>) {
        if let Some(path) = token_dir(config, apps)
            && path.is_dir()
            && token_file::is_exposed(path)
        {
            let path = path.to_owned();
            self.warnings.push(Error::TokenDirExposed { path });
        }
    }

    fn unusable(&mut self, name: &str, key: &'static str, path: &Path, problem: String) {
        self.errors.push(Error::Unusable {
            app: name.to_owned(),
            key,
            path: path.to_owned(),
            problem,
        });
    }

    #[allow(
        clippy::option_option,
        reason = "no proxy is not the same as a wrong one"
    )]
    fn proxy(&mut self, name: &str, app: &AppConfig) -> Option<Option<Proxy>> {
        let Some(url) = &app.proxy else {
            return Some(None);
        };
        let proxy = match Proxy::new(url) {
            Ok(proxy) => proxy,
            Err(problem) => {
                self.invalid(name, "proxy", problem);
                return None;
            }
        };
        let Some(file) = &app.proxy_credentials_file else {
            return Some(Some(proxy));
        };
        match proxy.with_credentials(file) {
            Ok(proxy) => Some(Some(proxy)),
            Err(problem) => {
                self.unusable(name, "proxy_credentials_file", file, problem);
                None
            }
        }
    }

    fn key(&mut self, name: &str, app: &AppConfig) -> Option<Arc<SigningKey>> {
        let team_id = self.apple_id(name, "team_id", &app.team_id, "your team's id");
        let key_id = self.apple_id(name, "key_id", &app.key_id, "the id of the signing key");
        if app.key_file.as_os_str().is_empty() {
            self.missing(name, "key_file", "the path of the signing key's .p8 file");
            return None;
        }
        let text = match files::read(&app.key_file, files::SMALL) {
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
                self.unusable(name, "key_file", &app.key_file, problem);
                return None;
            }
        };
        if team_id.is_none() || key_id.is_none() {
            return None;
        }
        if let Some((other, known)) = self.keys.get(&id) {
            if known.signer().public_key() != signer.public_key() {
                self.errors.push(Error::ConflictingKeys {
                    app: name.to_owned(),
                    other: other.clone(),
                });
                return None;
            }
            return Some(Arc::clone(known));
        }
        let key = Arc::new(SigningKey::new(app.key_file.clone(), &text, signer));
        self.keys.insert(id, (name.to_owned(), Arc::clone(&key)));
        Some(key)
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
        if !matches!(app.port, HTTPS | ALTERNATIVE) {
            self.invalid(
                name,
                "port",
                "APNs listens at 443 and 2197; endpoint takes others",
            );
            return None;
        }
        match Endpoint::new(app.environment, app.port, app.endpoint.as_deref()) {
            Some(endpoint) => Some(endpoint),
            None => {
                self.invalid(name, "endpoint", "write it as host:port");
                None
            }
        }
    }

    fn tls(
        &mut self,
        name: &str,
        app: &AppConfig,
        certificate: Option<Certificate>,
    ) -> Option<Arc<ClientConfig>> {
        let roots = match &app.ca_file {
            Some(path) => tls::roots_of(path),
            None => tls::system_roots(),
        };
        let roots = match roots {
            Ok(roots) => roots,
            Err(problem) => {
                match &app.ca_file {
                    Some(path) => self.unusable(name, "ca_file", path, problem),
                    None => self.invalid(name, "ca_file", &problem),
                }
                return None;
            }
        };
        match tls::client(roots, certificate) {
            Ok(tls) => Some(tls),
            Err(problem) => {
                let problem = match problem {
                    rustls::Error::InconsistentKeys(_) => {
                        "has the key of another certificate: give the key that the signing request of this \
                         certificate was made with"
                            .to_owned()
                    }
                    other => format!(
                        "{other}: export the certificate and its key again, with a key of RSA or EC"
                    ),
                };
                match (&app.certificate_key_file, &app.certificate_file) {
                    (Some(path), _) => self.unusable(name, "certificate_key_file", path, problem),
                    (None, Some(path)) => self.unusable(name, "certificate_file", path, problem),
                    (None, None) => self.invalid(name, "ca_file", &problem),
                }
                None
            }
        }
    }

    fn templates(
        &mut self,
        name: &str,
        app: &AppConfig,
        certified: Option<&[String]>,
    ) -> Option<Templates> {
        let before = self.errors.len();
        let mut styles = Vec::with_capacity(Class::ALL.len());
        for class in Class::ALL {
            let table = format!("{name}.{}", class.as_str());
            match Style::new(class, app.class(class)) {
                Ok(style) => styles.push((table, style)),
                Err(problems) => {
                    for (key, problem) in problems {
                        self.invalid(&table, key, problem);
                    }
                }
            }
        }
        // A certificate's first topic is the bundle id.
        let topic = Some(&app.topic)
            .filter(|topic| !topic.is_empty())
            .or(certified.and_then(<[String]>::first));
        let Some(topic) = topic else {
            // What is wrong with a certificate has been told; it may have the topic.
            if certified.is_some() || app.certificate_file.is_none() {
                self.missing(name, "topic", "the bundle id of the app");
            }
            return None;
        };
        if certified.is_some_and(|topics| !topics.is_empty() && !topics.contains(topic)) {
            let topics = certified.unwrap_or_default().join(", ");
            let problem = format!(
                "the certificate is for {topics}: correct topic, or give the certificate of this app"
            );
            self.invalid(name, "topic", &problem);
        }
        let mut templates = Vec::with_capacity(styles.len());
        for (table, style) in styles {
            let Ok(template) = Template::new(topic, &style, app.content.disclosure()) else {
                let key = if style.topic_suffix.is_ascii() {
                    "topic"
                } else {
                    "topic_suffix"
                };
                self.invalid(name, key, "a bundle id has letters, digits, '.' and '-'");
                return None;
            };
            if template.payload().bytes_max() > style.push_type.bytes_max() {
                self.invalid(
                    &table,
                    "body",
                    "texts and extra make a payload above 4096 bytes (voip: 5120); shorten them",
                );
            }
            templates.push(template);
        }
        if self.errors.len() > before {
            return None;
        }
        templates.try_into().ok()
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
    fn new(environment: Environment, port: u16, given: Option<&str>) -> Option<Self> {
        let authority: Authority = match given {
            Some(given) => given.parse().ok()?,
            None => format!("{}:{port}", environment.host()).parse().ok()?,
        };
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() == authority.host() => port,
            None => return None,
        };
        let host = bare_host(&authority).to_owned();
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

/// The same in each process, since it is kept with registrations. That two are alike by chance is of no matter:
/// it must only be rare.
fn acceptance(host: &str, environment: &str, topic: &str) -> Acceptance {
    let named = digest(
        &SHA256,
        format!("{host}\0{environment}\0{topic}").as_bytes(),
    );
    let number = named
        .as_ref()
        .first_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes));
    Acceptance(number.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClassConfig, PushType};

    #[track_caller]
    fn check(endpoint: Option<&str>, expected: Option<(&str, u16, &str)>) {
        let got = Endpoint::new(Environment::Production, HTTPS, endpoint);
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
            important: ClassConfig {
                title: Some(String::new()),
                expiration_seconds: Some(31 * 86_400),
                ..ClassConfig::default()
            },
            proxy: Some("socks5://proxy.example:1080".to_owned()),
            ..good.clone()
        };
        let swapped = AppConfig {
            key_file: key_file(directory.path(), "b.p8"),
            ca_file: Some(directory.path().join("a.p8")),
            unimportant: ClassConfig {
                push_type: Some(PushType::Alert),
                body: Some("x".repeat(5_000)),
                ..ClassConfig::default()
            },
            port: 8_443,
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
            "[apps.c-wrong] proxy is wrong: write it as http://host:port",
            "[apps.c-wrong.important] expiration_seconds is wrong",
            "[apps.c-wrong.important] title is wrong",
            "[apps.c-wrong] topic is wrong",
            "[apps.d-swapped] key_file is not the key that [apps.a-good] has",
            "[apps.d-swapped] port is wrong: APNs listens at 443 and 2197",
            "[apps.d-swapped.unimportant] body is wrong: texts and extra",
            "[apps.d-swapped] ca_file:",
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
        assert_eq!(upstreams.keys().count(), 1);
    }

    fn open_to(mode: u32, path: &Path) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn files_that_others_may_use_and_a_key_under_another_name_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let key_file = directory.path().join("AuthKey_ABC123DEFG.p8");
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        std::fs::write(&key_file, pem).unwrap();
        let token_dir = directory.path().join("tokens");
        std::fs::create_dir(&token_dir).unwrap();
        let config = Config {
            token_dir: token_dir.clone(),
            ..Config::default()
        };
        let app = |key_id: &str| {
            let app = AppConfig {
                topic: "com.example.app".to_owned(),
                team_id: "DEF123GHIJ".to_owned(),
                key_id: key_id.to_owned(),
                key_file: key_file.clone(),
                ..AppConfig::default()
            };
            BTreeMap::from([("app".to_owned(), app)])
        };
        let warned = |key_id| -> Vec<String> {
            let warnings = super::warnings(&config, &app(key_id), &Clock::system());
            warnings.iter().map(ToString::to_string).collect()
        };
        open_to(0o600, &key_file);
        open_to(0o700, &token_dir);
        assert_eq!(warned("ABC123DEFG"), [""; 0]);
        assert!(inspect(&config, &app("ABC123DEFG")).is_empty());
        assert_eq!(std::fs::read_dir(&token_dir).unwrap().count(), 0);

        open_to(0o640, &key_file);
        open_to(0o755, &token_dir);
        let found = warned("ABC123DEFH");
        let expected = [
            "[apps.app] key_file: others than its owner may use",
            "[apps.app] key_id is not the ABC123DEFG in the name of key_file",
            "[apns] token_dir: others than its owner may use",
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found} | {expected}");
        }

        std::fs::remove_dir(&token_dir).unwrap();
        assert!(
            inspect(&config, &app("ABC123DEFG")).is_empty(),
            "made later"
        );
        std::fs::write(&token_dir, "no directory").unwrap();
        let found = inspect(&config, &app("ABC123DEFG"));
        assert!(
            matches!(found.as_slice(), [Error::TokenDir { .. }]),
            "{found:?}"
        );
        // No advice to change what is no directory, and a word on what cannot be made.
        open_to(0o644, &token_dir);
        open_to(0o600, &key_file);
        assert_eq!(warned("ABC123DEFG"), [""; 0]);
        let below = Config {
            token_dir: token_dir.join("below"),
            ..Config::default()
        };
        let found = inspect(&below, &app("ABC123DEFG"));
        assert!(
            matches!(found.as_slice(), [Error::TokenDir { .. }]),
            "{found:?}"
        );
    }

    /// What is said of an app with a certificate so many days after the new year of 2030: faults and
    /// warnings.
    #[track_caller]
    fn check_certificate(app: &AppConfig, day: i64, faults: &[&str], warnings: &[&str]) {
        const NEW_YEAR_2030: u64 = 1_893_456_000;
        let now = UnixSeconds(NEW_YEAR_2030.saturating_add_signed(day * 86_400));
        let clock = Clock::manual(now.millis());
        let apps = BTreeMap::from([("app".to_owned(), app.clone())]);
        for path in app.certificate_file.iter().filter(|path| path.exists()) {
            open_to(0o600, path);
        }
        let found = Upstreams::prepare(&Config::default(), &apps, clock.clone());
        let found = found.err().unwrap_or_default();
        let warned = super::warnings(&Config::default(), &apps, &clock);
        for (found, expected) in [(found, faults), (warned, warnings)] {
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.contains(expected), "{found} | {expected}");
            }
        }
    }

    #[test]
    fn a_certificate_tells_its_topics_and_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("app.pem");
        // It ends with the second of January 2030.
        let pem = crate::certificate::tests::pem(
            &["com.example.app", "com.example.app.voip"],
            (2030, 1, 2),
        );
        std::fs::write(&file, pem).unwrap();
        let without_topic = AppConfig {
            certificate_file: Some(file),
            ca_file: Some(ca_file(directory.path())),
            ..AppConfig::default()
        };
        check_certificate(&without_topic, -40, &[], &[]);
        check_certificate(&without_topic, -10, &[], &["ends in 11 days"]);
        check_certificate(&without_topic, 0, &[], &["ends in 1 days"]);
        check_certificate(&without_topic, 2, &["has ended"], &[]);
        let of = |topic: &str| AppConfig {
            topic: topic.to_owned(),
            ..without_topic.clone()
        };
        check_certificate(&of("com.example.app"), -40, &[], &[]);
        let wrong = "topic is wrong: the certificate is for com.example.app, com.example.app.voip:";
        check_certificate(&of("com.example.other"), -40, &[wrong], &[]);
        // A key that is not the certificate's, in a file of its own and in the same.
        let other = crate::certificate::tests::pem(&[], (2030, 1, 2));
        let (_, other) = other.split_once("-----BEGIN PRIVATE").unwrap();
        let other = format!("-----BEGIN PRIVATE{other}");
        let other_file = directory.path().join("other.key");
        std::fs::write(&other_file, &other).unwrap();
        open_to(0o600, &other_file);
        let mixed = AppConfig {
            certificate_key_file: Some(other_file),
            ..without_topic.clone()
        };
        let wrong = "other.key: has the key of another certificate: give the key";
        check_certificate(&mixed, -40, &[wrong], &[]);
        let text = std::fs::read_to_string(without_topic.certificate_file.as_ref().unwrap());
        let text = text.unwrap();
        let (certificate, _) = text.split_once("-----BEGIN PRIVATE").unwrap();
        let mixed_file = directory.path().join("mixed.pem");
        std::fs::write(&mixed_file, format!("{certificate}{other}")).unwrap();
        let mixed = AppConfig {
            certificate_file: Some(mixed_file),
            ..without_topic.clone()
        };
        let wrong = "certificate_file: ";
        check_certificate(&mixed, -40, &[wrong], &[]);
        let subject_file = directory.path().join("subject.pem");
        let subject = crate::certificate::tests::pem_of("com.example.app", &[]);
        std::fs::write(&subject_file, subject).unwrap();
        let of_subject = |topic: &str| AppConfig {
            topic: topic.to_owned(),
            certificate_file: Some(subject_file.clone()),
            ..without_topic.clone()
        };
        check_certificate(&of_subject("com.example.app"), -40, &[], &[]);
        let wrong = "topic is wrong: the certificate is for com.example.app:";
        check_certificate(&of_subject("com.example.other"), -40, &[wrong], &[]);
        let both = AppConfig {
            key_file: key_file(directory.path(), "a.p8"),
            ..without_topic.clone()
        };
        check_certificate(&both, -40, &["give one of both"], &[]);
        let shown = AppConfig {
            content: Shown::BodyAndSender,
            ..without_topic
        };
        let told = "can read the text of messages and who writes them";
        check_certificate(&shown, -40, &[], &[told]);
    }

    #[test]
    fn numbers_out_of_range_are_told() {
        let config = Config {
            token_slot_seconds: 3_600,
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
                "[apns] token_slot_seconds = 3600: choose a value from 1200 to 2400",
            ]
        );
    }
}
