//! Looks after the certificates of the served domains and the trusted authorities: takes files that
//! changed into use, and says when they cannot be used or end soon.
//!
//! What is in use stays in use until there is something better, and streams that are open are not touched.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::{
    Actor, Context, Handler, Message, MessageResult, Recipient, ResponseFuture, Supervised,
    Supervisor,
};
use messages::{Clock, Domain, Drain, Drained, Health, Probe, Reload, UnixSeconds};
use rustls::sign::CertifiedKey;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use crate::ingress::{self, Certified, DAY_SECONDS, EXPIRY_DAYS};
use crate::stream::identity;
use crate::stream::tls;
use crate::{Error, Ingress};

/// Days before its end from which a certificate is an error instead of a warning.
const URGENT_DAYS: u64 = 7;

/// What the keeper of certificates accepts.
#[derive(Clone)]
pub struct Handles {
    /// Looks at all files now; answered when it has.
    pub reload: Recipient<Reload>,
    /// Tells what the served domains show.
    pub served: Recipient<ServedCertificates>,
    /// Ends the regular looks.
    pub drain: Recipient<Drain>,
    /// Counters.
    pub probe: Recipient<Probe>,
}

/// Which certificates do the served domains show?
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Vec<ServedCertificate>")]
pub struct ServedCertificates;

/// The certificate that a served domain shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedCertificate {
    /// The domain.
    pub domain: Domain,
    /// When it ends.
    pub expires: UnixSeconds,
    /// Whole days until then.
    pub days_left: u64,
    /// Why what lies on the disk is not in use, if it is not.
    pub refused: Option<String>,
}

/// Starts looking after what `ingress` uses, on the current arbiter.
#[must_use]
pub fn start(ingress: &Ingress, clock: Clock) -> Handles {
    let looking = Looking {
        watch: Arc::new(Mutex::new(Watch::new(ingress.clone(), clock))),
        seen: Arc::default(),
    };
    let every = Duration::from_secs(ingress.config().certificate_check_seconds.max(1));
    let looks = actix_rt::spawn(looking.clone().run(every));
    let address = Supervisor::start(|ctx: &mut Context<Certificates>| {
        ctx.set_mailbox_capacity(0);
        Certificates { looking, looks }
    });
    Handles {
        reload: address.clone().recipient(),
        served: address.clone().recipient(),
        drain: address.clone().recipient(),
        probe: address.recipient(),
    }
}

struct Certificates {
    looking: Looking,
    looks: JoinHandle<()>,
}

/// Looks, and what the last one saw. Files are read on a thread for that: a disk may hang.
#[derive(Clone)]
struct Looking {
    watch: Arc<Mutex<Watch>>,
    seen: Arc<Mutex<Seen>>,
}

impl Looking {
    async fn run(self, every: Duration) {
        let mut looks = interval(every);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            self.clone().look(Extent::Changed).await;
        }
    }

    async fn look(self, extent: Extent) {
        let looked = spawn_blocking(move || {
            let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = watch.look(extent);
            // Before the next look can begin, so that an older one never comes last.
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        });
        if let Err(error) = looked.await {
            tracing::error!(%error, "the certificates could not be looked at");
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a look came to.
#[derive(Default)]
struct Seen {
    served: Vec<ServedCertificate>,
    authorities: u64,
    loaded: u64,
    refused: u64,
}

impl Actor for Certificates {
    type Context = Context<Self>;
}

impl Supervised for Certificates {}

impl Handler<Reload> for Certificates {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Reload, _: &mut Self::Context) -> Self::Result {
        Box::pin(self.looking.clone().look(Extent::All))
    }
}

impl Handler<ServedCertificates> for Certificates {
    type Result = MessageResult<ServedCertificates>;

    fn handle(&mut self, _: ServedCertificates, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.looking.seen().served.clone())
    }
}

impl Handler<Drain> for Certificates {
    type Result = Drained;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Drained {
        self.looks.abort();
        Drained::default()
    }
}

impl Handler<Probe> for Certificates {
    type Result = Health;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Health {
        let seen = self.looking.seen();
        let days = seen.served.iter().map(|one| one.days_left).min();
        let unusable = seen.served.iter().filter(|one| one.refused.is_some());
        Health {
            counters: vec![
                ("certificate_days_left_min", days.unwrap_or_default()),
                ("certificates_unusable", unusable.count() as u64),
                ("certificates_loaded_total", seen.loaded),
                ("certificates_refused_total", seen.refused),
                ("authorities_trusted", seen.authorities),
            ],
        }
    }
}

/// What to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// Files that changed since they were read, and those that could not be used.
    Changed,
    All,
}

/// Tells one version of a file from another: where it is, and when it got there and was written.
type Stamp = (u64, u64, u64, i64, i64, i64, i64);

/// The file behind any links, so that a link that is turned to another file is seen too.
fn stamp(file: &Path) -> Option<Stamp> {
    let it = std::fs::metadata(file).ok()?;
    Some((
        it.dev(),
        it.ino(),
        it.len(),
        it.mtime(),
        it.mtime_nsec(),
        it.ctime(),
        it.ctime_nsec(),
    ))
}

/// Files that are read together.
#[derive(Default)]
struct Files {
    /// Of the version that was read last.
    stamps: Option<Vec<Option<Stamp>>>,
    refusal: Option<Refusal>,
}

/// Why files are not in use.
struct Refusal {
    reason: String,
    told: UnixSeconds,
}

impl Files {
    /// Whether to read. Stamps are taken before the reading: what changes meanwhile is read next time.
    /// Files that could not be used are read each time: what was wrong may lie elsewhere.
    fn is_due<'a>(&mut self, files: impl Iterator<Item = &'a Path>, extent: Extent) -> bool {
        let stamps = Some(files.map(stamp).collect());
        let changed = self.stamps != stamps;
        self.stamps = stamps;
        changed || extent == Extent::All || self.refusal.is_some()
    }

    /// Keeps the reason. Returns whether it is new, and whether to tell it.
    fn refuse(&mut self, reason: &str, now: UnixSeconds, alarm_seconds: u64) -> (bool, bool) {
        match &mut self.refusal {
            Some(refusal) if refusal.reason == reason => {
                let tell = now.0.saturating_sub(refusal.told.0) >= alarm_seconds;
                if tell {
                    refusal.told = now;
                }
                (false, tell)
            }
            refusal => {
                *refusal = Some(Refusal {
                    reason: reason.to_owned(),
                    told: now,
                });
                (true, true)
            }
        }
    }
}

/// What is looked at, and what was said of it.
struct Watch {
    ingress: Ingress,
    clock: Clock,
    /// In the order of [`Ingress::certified`].
    certificates: Vec<(Files, Expiry)>,
    authorities: Files,
    loaded: u64,
    refused: u64,
}

impl Watch {
    fn new(ingress: Ingress, clock: Clock) -> Self {
        let certificates = ingress.certified().iter().map(|_| Default::default());
        Self {
            certificates: certificates.collect(),
            authorities: Files::default(),
            ingress,
            clock,
            loaded: 0,
            refused: 0,
        }
    }

    fn look(&mut self, extent: Extent) -> Seen {
        let now = self.clock.now();
        let ingress = self.ingress.clone();
        let mut served = Vec::with_capacity(self.certificates.len());
        for (index, certified) in ingress.certified().iter().enumerate() {
            self.look_at_certificate(index, certified, extent, now);
            let in_use = certified.credentials.get();
            let Some((files, expiry)) = self.certificates.get_mut(index) else {
                continue;
            };
            let end = in_use.cert.first().and_then(identity::validity);
            let end = UnixSeconds(end.map_or(u64::MAX, |validity| validity.end));
            let days_left = end.0.saturating_sub(now.0) / DAY_SECONDS;
            expiry.tell(&certified.domain, end, now);
            served.push(ServedCertificate {
                domain: certified.domain.clone(),
                expires: end,
                days_left,
                refused: files.refusal.as_ref().map(|it| it.reason.clone()),
            });
        }
        self.look_at_authorities(extent, now);
        Seen {
            served,
            authorities: ingress.authorities() as u64,
            loaded: self.loaded,
            refused: self.refused,
        }
    }

    fn look_at_certificate(
        &mut self,
        index: usize,
        certified: &Certified,
        extent: Extent,
        now: UnixSeconds,
    ) {
        let Some((files, _)) = self.certificates.get_mut(index) else {
            return;
        };
        let Certified {
            domain,
            certificate,
            key,
            credentials,
        } = certified;
        let paths = [certificate.as_path(), key.as_path()];
        if !files.is_due(paths.into_iter(), extent) {
            return;
        }
        match load(certified, now) {
            Ok(pair) => {
                files.refusal = None;
                if pair.cert != credentials.get().cert {
                    let days_left = pair.cert.first().map(|leaf| ingress::days_left(leaf, now));
                    credentials.replace(pair);
                    self.loaded += 1;
                    tracing::info!(%domain, days_left, "a new certificate is in use");
                }
            }
            Err(error) => {
                let reason = error.to_string();
                let alarm = self.ingress.config().certificate_alarm_seconds;
                let (new, tell) = files.refuse(&reason, now, alarm);
                self.refused += u64::from(new);
                if tell {
                    tracing::error!(
                        %domain,
                        reason,
                        "the certificate on the disk cannot be used, the one before stays in use"
                    );
                }
            }
        }
    }

    fn look_at_authorities(&mut self, extent: Extent, now: UnixSeconds) {
        let config = self.ingress.config();
        // They were read when the ingress was prepared.
        let first = self.authorities.stamps.is_none();
        let paths = config.ca_files.iter().map(|file| file.as_path());
        if !self.authorities.is_due(paths, extent) || first {
            return;
        }
        let (trust, mut errors) = ingress::load_trust(config);
        if trust.len() == 0 && self.ingress.authorities() > 0 {
            errors.push(Error::NoRoots);
        }
        let Some(error) = errors.first() else {
            self.authorities.refusal = None;
            tracing::info!(authorities = trust.len(), "certificate authorities read");
            self.ingress.replace_trust(trust);
            return;
        };
        let reason = error.to_string();
        let alarm = config.certificate_alarm_seconds;
        let (_, tell) = self.authorities.refuse(&reason, now, alarm);
        if tell {
            tracing::error!(
                reason,
                "certificate authorities cannot be read, those before stay trusted"
            );
        }
    }
}

/// Reads a certificate and its key, and takes only what peers take.
fn load(certified: &Certified, now: UnixSeconds) -> Result<Arc<CertifiedKey>, Error> {
    let Certified {
        domain,
        certificate,
        key,
        ..
    } = certified;
    let pair = tls::load(certificate, key)?;
    let weaknesses = pair
        .cert
        .first()
        .map(|leaf| ingress::weaknesses(leaf, domain, certificate, now));
    match weaknesses.unwrap_or_default().into_iter().next() {
        Some(error) => Err(error),
        None => Ok(pair),
    }
}

/// What was said of the end of a certificate.
#[derive(Default)]
struct Expiry {
    /// When, and whether it was urgent.
    told: Option<(UnixSeconds, bool)>,
}

impl Expiry {
    /// Tells of an end that is near, once a day and when it becomes urgent.
    fn tell(&mut self, domain: &Domain, end: UnixSeconds, now: UnixSeconds) {
        let Some(urgent) = self.is_due(end, now) else {
            return;
        };
        let days_left = end.0.saturating_sub(now.0) / DAY_SECONDS;
        if end <= now {
            tracing::error!(%domain, "the certificate has expired, peers refuse it: renew it");
        } else if urgent {
            tracing::error!(%domain, days_left, "the certificate expires: renew it");
        } else {
            tracing::warn!(%domain, days_left, "the certificate expires soon: renew it");
        }
    }

    /// Whether something has to be told now, and whether it is urgent.
    fn is_due(&mut self, end: UnixSeconds, now: UnixSeconds) -> Option<bool> {
        let left = end.0.saturating_sub(now.0);
        if left >= EXPIRY_DAYS * DAY_SECONDS {
            self.told = None;
            return None;
        }
        let urgent = left < URGENT_DAYS * DAY_SECONDS;
        let due = self.told.is_none_or(|(told, was_urgent)| {
            now.0.saturating_sub(told.0) >= DAY_SECONDS || urgent != was_urgent
        });
        due.then(|| {
            self.told = Some((now, urgent));
            urgent
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = DAY_SECONDS;

    /// What is told of a certificate that ends on day 100, at these hours.
    #[track_caller]
    fn check(hours: &[u64], expected: &[Option<bool>]) {
        let mut expiry = Expiry::default();
        let told = hours.iter().map(|hour| {
            let now = UnixSeconds(hour * 3600);
            expiry.is_due(UnixSeconds(100 * DAY), now)
        });
        assert_eq!(told.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_end_is_told_daily_and_louder_when_it_is_near() {
        let (warning, urgent) = (Some(false), Some(true));
        check(&[0, 70 * 24], &[None, None]);
        check(
            &[70 * 24 + 1, 70 * 24 + 2, 71 * 24, 71 * 24 + 1],
            &[warning, None, None, warning],
        );
        check(
            &[93 * 24 - 1, 93 * 24 + 1, 93 * 24 + 2, 94 * 24 + 1],
            &[warning, urgent, None, urgent],
        );
        check(&[100 * 24, 101 * 24], &[urgent, urgent]);
    }

    #[test]
    fn a_refusal_is_told_at_once_and_then_at_intervals() {
        let mut files = Files::default();
        let mut refuse = |reason: &str, at| files.refuse(reason, UnixSeconds(at), 60);
        assert_eq!(refuse("one", 0), (true, true));
        assert_eq!(refuse("one", 59), (false, false));
        assert_eq!(refuse("one", 60), (false, true));
        assert_eq!(refuse("one", 61), (false, false));
        assert_eq!(refuse("two", 62), (true, true));
    }

    #[test]
    fn a_link_that_is_turned_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("one"), "same").unwrap();
        std::fs::write(at("two"), "same").unwrap();
        std::os::unix::fs::symlink(at("one"), at("link")).unwrap();
        let mut files = Files::default();
        let link = at("link");
        let mut is_due = |extent| files.is_due([link.as_path()].into_iter(), extent);
        assert!(is_due(Extent::Changed));
        assert!(!is_due(Extent::Changed));
        assert!(is_due(Extent::All));
        std::os::unix::fs::symlink(at("two"), at("new")).unwrap();
        std::fs::rename(at("new"), &link).unwrap();
        assert!(is_due(Extent::Changed));
        assert!(!is_due(Extent::Changed));
        std::fs::remove_file(&link).unwrap();
        assert!(is_due(Extent::Changed));
    }
}
