//! `campanile load`: what this machine does with how many pushes.

mod endpoint;
mod memory;
mod options;
mod progress;
mod report;
mod times;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use messages::{Clock, DeviceToken, NodeId, Secret};
use simulators::apple::{self, Faults};
use simulators::server::{
    AskProgress, Flood, FloodReport, Pace, PublishShape, RegisterDevice, RegisteredDevice,
};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

pub use self::endpoint::{Endpoint, EndpointError};
pub use self::options::Options;

use self::options::Extent;
use self::progress::Progress;
use self::report::{Cpu, Report, Sample};
use crate::dev::world::{Plan, SERVICE, World};
use crate::processor::{self, Span};
use crate::shutdown::Signals;
use crate::wiring::Extras;
use crate::{RunError, Settings, exit, lanes, say, serve, telemetry};

/// Registrations without an answer at a time, as many as the service takes of one stream.
const REGISTRATIONS: usize = 32;
/// How long answers may stay out.
const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds of the first part of a load whose rate is not known before.
const FIRST_SECONDS: f64 = 1.0;
/// What share of the time of a load may be left over at its end: no part is made for it.
const TIME_LEFT_OVER: f64 = 0.05;
/// Pushes unanswered at a time before the first that counts.
const WARM_UP_WINDOW: u32 = 64;

/// Loads the service until all was pushed, or a signal comes.
///
/// # Errors
/// [`RunError`] when the options do not fit, or the world or the service cannot run.
pub fn command(options: &Options) -> Result<i32, RunError> {
    let log = telemetry::Config {
        filter: "warn".to_owned(),
        ..telemetry::Config::default()
    };
    let _logging =
        telemetry::install(&log).map_err(|error| RunError::Unusable(vec![error.to_string()]))?;
    actix_rt::System::new().block_on(run(options))
}

async fn run(options: &Options) -> Result<i32, RunError> {
    let signals = Signals::listen()?;
    let way = options.way()?;
    if let Some(endpoint) = &options.endpoint {
        endpoint.refuse_apples_addresses().await?;
    }
    let world = World::start(Plan {
        apple: apple::Config {
            recording: false,
            remembered_ids: 0,
            faults: Faults {
                latency_millis: options.latency,
                ..Faults::default()
            },
            ..apple::Config::default()
        },
        way,
        listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
        elsewhere: options.elsewhere(),
        ..Plan::default()
    })
    .await?;
    let settings = settings(&world, options)?;
    let lanes = settings.runtime.lanes_on(lanes::cores());
    let listeners =
        xmpp::listener::bind(&settings.xmpp).map_err(|error| RunError::Bind(error.to_string()))?;
    for socket in &listeners {
        let address = socket.local_addr().map_err(|source| RunError::System {
            what: "cannot listen on loopback",
            source,
        })?;
        world.service_is_at(address).await;
    }

    let (stop, stopped) = oneshot::channel::<()>();
    let service = actix_rt::spawn(serve::run(
        settings,
        listeners,
        Clock::system(),
        Extras::default(),
        async {
            let _dropped_means_stop_too = stopped.await;
        },
    ));
    let mut load = Load {
        world: &world,
        options,
        report: Report::default(),
        progress: Progress::new(options.extent()),
    };
    if !options.json {
        say!("{}", heading(options, lanes));
    }
    let loaded = tokio::select! {
        loaded = load.run() => loaded,
        () = signals.requested() => Ok(()),
    };
    load.progress.end();
    let report = load.report;
    drop(stop);
    let ended = service.await;
    world.stop().await;
    loaded?;
    let run = ended.map_err(|_| RunError::Dead("service".to_owned()))??;
    match options.json {
        true => say!("{}", json(options, lanes, &report)),
        false => say!("{report}"),
    }
    Ok(if report.is_clean() && run.abandoned == 0 {
        exit::OK
    } else {
        exit::FAILED
    })
}

/// The world's, with what variables in the environment say, except of where pushes go.
fn settings(world: &World, options: &Options) -> Result<Settings, RunError> {
    let mut settings = Settings::load(world.config_file()).map_err(RunError::Settings)?;
    let apple = match &options.endpoint {
        Some(endpoint) => endpoint.to_string(),
        None => format!("localhost:{}", world.apple.address.port()),
    };
    for app in settings.apps.values_mut() {
        app.endpoint = Some(apple.clone());
        app.proxy = None;
    }
    // One for registrations beside those of the flood, all at once and from one address.
    let streams = u32::from(options.streams) + 1;
    let xmpp = &mut settings.xmpp;
    for most in [
        &mut xmpp.connections_per_second_max,
        &mut xmpp.connections_per_address_per_second_max,
    ] {
        *most = streams.max(*most);
    }
    for most in [
        &mut xmpp.streams_max,
        &mut xmpp.streams_per_address_max,
        &mut xmpp.streams_per_domain_max,
    ] {
        *most = (streams as usize).max(*most);
    }
    Ok(settings)
}

/// A load under way.
struct Load<'a> {
    world: &'a World,
    options: &'a Options,
    report: Report,
    progress: Progress,
}

impl Load<'_> {
    async fn run(&mut self) -> Result<(), RunError> {
        let devices = register(self.world, self.options.devices).await?;
        let mut flood = Flood {
            devices,
            pushes: self.options.warm_up,
            pace: Pace::Outstanding(WARM_UP_WINDOW),
            streams: self.options.streams.into(),
            has_body: true,
            shape: PublishShape::Prosody,
            patience: PATIENCE,
        };
        let mut rate = self.flood(&flood).await?.rate();
        flood.pace = self.options.pace();
        if !self.options.json {
            say!("{}", Sample::HEADING);
        }
        let parts = Parts::new(self.options);
        let (began, before) = (Instant::now(), self.cpu().await);
        let notified = self.notified();
        // Parts, so that what is kept of each push does not grow with the time.
        while let Some(pushes) = parts.next(self.report.sent, began.elapsed(), rate) {
            flood.pushes = pushes;
            let part = self.flood(&flood).await?;
            rate = part.rate();
            let now = self.cpu().await;
            self.report.cpu = now.since(before);
            self.report.notified = self
                .notified()
                .zip(notified)
                .map(|(now, before)| now - before);
            let line = self.report.add(began.elapsed(), &part, memory::resident());
            if !self.options.json {
                self.progress.beside(|| say!("{line}"));
            }
            if part.unanswered > 0 {
                break;
            }
        }
        Ok(())
    }

    async fn flood(&self, flood: &Flood) -> Result<FloodReport, RunError> {
        let flooding = self.world.chat.flood.send(flood.clone());
        tokio::pin!(flooding);
        let mut ticks = tokio::time::interval(progress::STEP);
        loop {
            tokio::select! {
                report = &mut flooding => return Ok(report.map_err(gone)??),
                _ = ticks.tick(), if self.progress.is_shown() => {
                    let now = self.world.chat.progress.send(AskProgress).await.map_err(gone)?;
                    self.progress.at(self.report.sent + u64::from(now.answered));
                }
            }
        }
    }

    /// Notifications that the built-in APNs has taken until now.
    fn notified(&self) -> Option<u64> {
        let is_built_in = self.options.endpoint.is_none();
        is_built_in.then(|| self.world.apple.control.counters().accepted)
    }

    /// CPU time of the service, and of the simulators.
    async fn cpu(&self) -> Cpu {
        let simulators = self.world.simulators_cpu().await;
        Cpu {
            service: processor::used(Span::Process).saturating_sub(simulators),
            simulators,
        }
    }
}

/// How a load is cut into parts.
struct Parts {
    extent: Extent,
    /// Seconds of a part.
    every: f64,
    pace: Pace,
}

impl Parts {
    fn new(options: &Options) -> Self {
        Self {
            extent: options.extent(),
            every: options.every.into(),
            pace: options.pace(),
        }
    }

    /// Pushes of the next part, after so many in so much time, the last of them at this rate.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of pushes, which saturates"
    )]
    fn next(&self, sent: u64, elapsed: Duration, rate: f64) -> Option<u32> {
        let mut seconds = self.every;
        let (rate, least) = match self.pace {
            Pace::PerSecond(rate) => (rate.into(), 1),
            Pace::Outstanding(window) => {
                if sent == 0 {
                    // The rate is that of the warm-up, which may be far from what comes.
                    seconds = seconds.min(FIRST_SECONDS);
                }
                (rate, window.max(1))
            }
        };
        let most = match self.extent {
            Extent::Pushes(pushes) => pushes.saturating_sub(sent),
            Extent::Seconds(all) => {
                let left = f64::from(all) - elapsed.as_secs_f64();
                if left <= f64::from(all) * TIME_LEFT_OVER {
                    return None;
                }
                seconds = seconds.min(left);
                u64::MAX
            }
        };
        let wanted = ((rate * seconds) as u32).max(least);
        let pushes = u32::try_from(most).map_or(wanted, |most| wanted.min(most));
        (pushes > 0).then_some(pushes)
    }
}

async fn register(world: &World, devices: u32) -> Result<Vec<(NodeId, Secret)>, RunError> {
    let mut registered = Vec::new();
    let mut asked: JoinSet<Result<_, RunError>> = JoinSet::new();
    let mut numbers = 0..devices;
    loop {
        if asked.len() < REGISTRATIONS
            && let Some(n) = numbers.next()
        {
            let answer = world.chat.register.send(device(n)?);
            asked.spawn_local(async move { Ok(answer.await.map_err(gone)??) });
            continue;
        }
        let Some(device) = asked.join_next().await else {
            return Ok(registered);
        };
        let device = device.map_err(|_| gone(actix::MailboxError::Closed))?;
        let RegisteredDevice { node, secret, .. } = device?;
        registered.push((node, secret));
    }
}

/// A device that is made up.
fn device(n: u32) -> Result<RegisterDevice, RunError> {
    let unusable = |_| RunError::Simulator("a device of its own is malformed".to_owned());
    Ok(RegisterDevice {
        user: format!("user{n}"),
        node: NodeId::new(&format!("6A1B0C1E-0000-4000-8000-{n:012X}")).map_err(unusable)?,
        device_token: DeviceToken::parse(&format!("{n:08x}").repeat(8)).map_err(unusable)?,
    })
}

fn heading(options: &Options, lanes: usize) -> String {
    let pace = match options.pace() {
        Pace::PerSecond(rate) => format!("{rate} pushes a second"),
        Pace::Outstanding(window) => format!("{window} pushes unanswered at a time"),
    };
    let apple = match &options.endpoint {
        Some(endpoint) => endpoint.to_string(),
        None => format!("the built-in APNs with {} ms", options.latency),
    };
    format!(
        "Campanile {} with {SERVICE} {} ({} stream(s)), {pace}, {} devices, {apple}; {} cores, {lanes} lane(s)\n\
         The simulators run on the same cores, so the service alone does more.",
        crate::VERSION,
        options.way_name(),
        options.streams,
        options.devices,
        lanes::cores(),
    )
}

fn json(options: &Options, lanes: usize, report: &Report) -> serde_json::Value {
    let (rate, window) = match options.pace() {
        Pace::PerSecond(rate) => (Some(rate), None),
        Pace::Outstanding(window) => (None, Some(window)),
    };
    serde_json::json!({
        "version": crate::VERSION,
        "machine": { "cores": lanes::cores(), "lanes": lanes },
        "options": {
            "way": options.way_name(),
            "streams": options.streams,
            "rate": rate,
            "window": window,
            "devices": options.devices,
            "warm_up": options.warm_up,
            "endpoint": options.endpoint.as_ref().map(ToString::to_string),
            "latency_ms": options.latency,
        },
        "report": report.json(),
    })
}

fn gone(_: actix::MailboxError) -> RunError {
    RunError::Simulator("the XMPP server has ended".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        (extent, pace): (Extent, Pace),
        (sent, seconds, rate): (u64, u64, f64),
        next: Option<u32>,
    ) {
        let parts = Parts {
            extent,
            every: 10.0,
            pace,
        };
        let got = parts.next(sent, Duration::from_secs(seconds), rate);
        assert_eq!(got, next);
    }

    #[test]
    fn a_load_is_cut_into_parts_and_ends() {
        let paced = (Extent::Pushes(25_000), Pace::PerSecond(1_000));
        check(paced, (0, 0, 5.0), Some(10_000));
        check(paced, (20_000, 20, 999.0), Some(5_000));
        check(paced, (25_000, 25, 999.0), None);
        let counted = (Extent::Pushes(25_000), Pace::Outstanding(500));
        check(counted, (0, 0, 2_000.0), Some(2_000));
        check(counted, (2_000, 1, 1_500.0), Some(15_000));
        check(counted, (24_900, 10, 1_500.0), Some(100));
        check(counted, (25_000, 10, 1_500.0), None);
        let timed = (Extent::Seconds(30), Pace::Outstanding(500));
        check(timed, (0, 0, 0.0), Some(500));
        check(timed, (9_000, 27, 1_000.0), Some(3_000));
        check(timed, (9_000, 29, 1_000.0), None);
        check(timed, (9_000, 40, 1_000.0), None);
    }
}
