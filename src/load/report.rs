//! What a load has shown.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use simulators::server::FloodReport;

use super::times::Times;

/// The quantiles that are told, with their names.
const QUANTILES: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p999", 0.999),
    ("max", 1.0),
];
/// Characters of the longest bar of the picture.
const BAR: f64 = 50.0;

/// What all pushes that counted have shown.
#[derive(Default)]
pub(super) struct Report {
    pub(super) sent: u64,
    results: u64,
    /// What the built-in APNs got: pushes to one device that wait together become one.
    pub(super) notified: Option<u64>,
    errors: BTreeMap<String, u64>,
    duplicates: u64,
    strays: u64,
    unanswered: u64,
    /// While pushes were under way.
    elapsed: Duration,
    /// From the write of a push to its answer.
    took: Times,
    /// From when a push was due to its write.
    late: Times,
    pub(super) cpu: Cpu,
    samples: Vec<Sample>,
}

/// CPU time.
#[derive(Clone, Copy, Default)]
pub(super) struct Cpu {
    pub(super) service: Duration,
    pub(super) simulators: Duration,
}

impl Cpu {
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            service: self.service.saturating_sub(before.service),
            simulators: self.simulators.saturating_sub(before.simulators),
        }
    }
}

/// One line of the course of a load.
pub(super) struct Sample {
    /// Since the first push.
    at: Duration,
    pushes: u64,
    rate: f64,
    p50: f64,
    p99: f64,
    max: f64,
    /// Of the whole process, with the simulators.
    memory: Option<u64>,
    /// Pushes not answered once with a result.
    failed: u64,
}

impl Report {
    /// Adds what a part of the load has shown, and gives its line.
    pub(super) fn add(&mut self, at: Duration, part: &FloodReport, memory: Option<u64>) -> String {
        self.sent += part.sent;
        self.results += part.results;
        for (error, count) in &part.errors {
            *self.errors.entry(error.to_string()).or_default() += count;
        }
        self.duplicates += part.duplicates;
        self.strays += part.strays;
        self.unanswered += part.unanswered;
        self.elapsed += part.elapsed;
        self.took.add(&part.latencies_micros);
        self.late.add(&part.lateness_micros);
        let millis = |share| f64::from(part.quantile_micros(share)) / 1_000.0;
        let sample = Sample {
            at,
            pushes: part.sent,
            rate: part.rate(),
            p50: millis(0.5),
            p99: millis(0.99),
            max: millis(1.0),
            memory,
            failed: part.sent - part.results + part.duplicates + part.strays,
        };
        let line = sample.to_string();
        self.samples.push(sample);
        line
    }

    /// Whether every push got exactly one answer and that a result.
    pub(super) const fn is_clean(&self) -> bool {
        self.results == self.sent && self.duplicates == 0 && self.strays == 0
    }

    /// Pushes answered a second, while pushes were under way.
    fn rate(&self) -> f64 {
        number(self.sent - self.unanswered) / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// Of the service and of the simulators.
    fn cpu_per_100_000(&self) -> [f64; 2] {
        let pushes = number(self.sent.max(1));
        [self.cpu.service, self.cpu.simulators].map(|cpu| cpu.as_secs_f64() * 100_000.0 / pushes)
    }

    /// All of it, for programs.
    pub(super) fn json(&self) -> serde_json::Value {
        let [service, simulators] = self.cpu_per_100_000();
        let steps = self.took.steps().into_iter();
        serde_json::json!({
            "sent": self.sent,
            "results": self.results,
            "notified": self.notified,
            "errors": self.errors,
            "unanswered": self.unanswered,
            "duplicates": self.duplicates,
            "strays": self.strays,
            "seconds": self.elapsed.as_secs_f64(),
            "pushes_per_second": self.rate(),
            "cpu_seconds_per_100000": { "service": service, "simulators": simulators },
            "latency_ms": quantiles(&self.took),
            "late_ms": (!self.late.is_empty()).then(|| quantiles(&self.late)),
            "histogram": steps
                .map(|step| serde_json::json!({ "up_to_ms": step.up_to_millis, "count": step.count }))
                .collect::<Vec<_>>(),
            "course": self.samples.iter().map(Sample::json).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    /// The summary, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [service, simulators] = self.cpu_per_100_000();
        writeln!(
            f,
            "\n{} sent, {} accepted, {} without an answer, {} answers too many",
            self.sent,
            self.results,
            self.unanswered,
            self.duplicates + self.strays,
        )?;
        if let Some(notified) = self.notified {
            writeln!(
                f,
                "{notified} notifications to APNs: pushes to a device that wait together become one"
            )?;
        }
        for (error, count) in &self.errors {
            writeln!(f, "{count} answered {error}")?;
        }
        writeln!(
            f,
            "{:.0} pushes/s; CPU s per 100,000 pushes: {service:.2}, and {simulators:.2} of the simulators",
            self.rate(),
        )?;
        write!(f, "{}", Quantiles("from publish to answer", &self.took))?;
        if !self.late.is_empty() {
            write!(f, "{}", Quantiles("published later than due", &self.late))?;
        }
        writeln!(f)?;
        let steps = self.took.steps();
        let most = steps.iter().map(|step| step.count).max().unwrap_or(1);
        for step in steps {
            let width = number(step.count) * BAR / number(most);
            writeln!(
                f,
                "{:>10.3} ms {:>10} {}",
                step.up_to_millis,
                step.count,
                bar(width)
            )?;
        }
        Ok(())
    }
}

/// A line of quantiles.
struct Quantiles<'a>(&'static str, &'a Times);

impl fmt::Display for Quantiles<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(what, times) = self;
        write!(f, "{what}:")?;
        for (name, share) in QUANTILES {
            write!(f, " {name} {:.2}", times.quantile_millis(share))?;
        }
        writeln!(f, " ms")
    }
}

fn quantiles(times: &Times) -> serde_json::Value {
    QUANTILES
        .map(|(name, share)| (name.to_owned(), times.quantile_millis(share).into()))
        .into_iter()
        .collect::<serde_json::Map<_, _>>()
        .into()
}

impl Sample {
    /// What stands above the lines.
    pub(super) const HEADING: &str =
        "  seconds     pushes/s    p50 ms    p99 ms    max ms   memory MiB   failed";

    fn memory_mib(&self) -> Option<f64> {
        self.memory.map(|bytes| number(bytes) / f64::from(1 << 20))
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "at_seconds": self.at.as_secs_f64(),
            "pushes": self.pushes,
            "pushes_per_second": self.rate,
            "p50_ms": self.p50,
            "p99_ms": self.p99,
            "max_ms": self.max,
            "memory_mib": self.memory_mib(),
            "failed": self.failed,
        })
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = self
            .memory_mib()
            .map_or_else(|| "?".to_owned(), |mib| format!("{mib:.1}"));
        write!(
            f,
            "{:>9.1} {:>12.0} {:>9.2} {:>9.2} {:>9.2} {memory:>12} {:>8}",
            self.at.as_secs_f64(),
            self.rate,
            self.p50,
            self.p99,
            self.max,
            self.failed,
        )
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the length of a bar"
)]
fn bar(width: f64) -> String {
    "#".repeat(width.ceil().clamp(0.0, BAR) as usize)
}

#[allow(clippy::cast_precision_loss, reason = "a number for people")]
const fn number(count: u64) -> f64 {
    count as f64
}
