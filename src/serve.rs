//! Runs the service.

use std::path::Path;
use std::time::Duration;

use messages::Clock;
use xmpp::listener::Socket;

use crate::reload::Hangups;
use crate::shutdown::Signals;
use crate::wiring::{Extras, Service};
use crate::{RunError, Settings, descriptors, exit, guardian, telemetry, wiring};

/// How a run of the service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Pieces of work (iqs, pushes, replies) given up at the end.
    pub abandoned: u64,
}

/// `campanile serve`.
///
/// # Errors
/// [`RunError`] when it cannot start, or an actor died.
pub fn command(config: &Path) -> Result<i32, RunError> {
    let settings = Settings::load(config).map_err(RunError::Settings)?;
    let _logging = telemetry::install(&settings.log)
        .map_err(|error| RunError::Unusable(vec![error.to_string()]))?;
    let (allowed, needed) = (descriptors::raise(), descriptors::needed(&settings));
    if let Some(warning) = descriptors::warning(allowed, needed) {
        tracing::warn!("{warning}");
    }
    let report = actix_rt::System::new().block_on(async {
        // Before the port is open: whoever can connect can also stop the service in order.
        let signals = Signals::listen()?;
        let listeners = xmpp::listener::bind(&settings.xmpp)
            .map_err(|error| RunError::Bind(error.to_string()))?;
        let clock = Clock::system();
        run(
            settings,
            listeners,
            clock,
            Extras::default(),
            signals.requested(),
        )
        .await
    })?;
    Ok(if report.abandoned == 0 {
        exit::OK
    } else {
        exit::ABANDONED
    })
}

/// Runs the service on bound sockets until `stop` resolves, then drains it.
///
/// # Errors
/// [`RunError`] when what the configuration points to cannot be used, or an actor died; in the second
/// case the rest is drained first.
pub async fn run(
    settings: Settings,
    listeners: Vec<Socket>,
    clock: Clock,
    extras: Extras,
    stop: impl Future<Output = ()>,
) -> Result<Report, RunError> {
    let grace = Duration::from_secs(settings.shutdown.grace_seconds);
    let guardian = settings.guardian.clone();
    let hangups = Hangups::listen()?;
    let addresses: Vec<_> = listeners
        .iter()
        .filter_map(|socket| Some((socket.local_addr().ok()?, socket.kind())))
        .collect();
    let Service {
        lanes,
        porch,
        wards,
        reloads,
        order,
    } = wiring::start(&settings, listeners, &clock, extras)
        .await
        .map_err(RunError::Unusable)?;
    for (address, tls) in addresses {
        tracing::info!(%address, ?tls, "listening");
    }
    tracing::info!(version = crate::VERSION, lanes = lanes.len(), "serving");

    let dead = tokio::select! {
        () = stop => None,
        dead = guardian::watch(guardian, wards) => Some(dead),
        never = hangups.pass_on(reloads) => match never {},
    };
    match &dead {
        None => tracing::info!("draining"),
        Some(dead) => tracing::error!(actor = dead.name, "actor is dead, draining"),
    }

    let abandoned = order.drain(grace).await;
    for lane in lanes.into_iter().chain([porch]) {
        lane.stop().await;
    }
    tracing::info!(abandoned, "stopped");
    match dead {
        None => Ok(Report { abandoned }),
        Some(dead) => Err(RunError::Dead(dead.name)),
    }
}
