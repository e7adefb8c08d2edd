//! The figures: as a table for people and as JSON for `docs/`.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// Median of the rounds, with the least and the most.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    pub fn of<T>(rounds: &[T], figure: impl Fn(&T) -> f64) -> Self {
        let mut values: Vec<f64> = rounds.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        Self {
            median: values[values.len() / 2],
            least: values[0],
            most: values[values.len() - 1],
        }
    }
}

/// What is to be reached.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// By the ratio.
    RatioAtMost(f64),
    /// By the ratio.
    RatioAtLeast(f64),
    /// By the figure.
    AtMost(f64),
    /// By the figure.
    AtLeast(f64),
}

impl Target {
    fn is_met(self, figure: f64, ratio: f64) -> bool {
        match self {
            Self::RatioAtMost(limit) => ratio <= limit,
            Self::RatioAtLeast(limit) => ratio >= limit,
            Self::AtMost(limit) => figure <= limit,
            Self::AtLeast(limit) => figure >= limit,
        }
    }

    fn text(self) -> String {
        match self {
            Self::RatioAtMost(limit) => format!("<= {limit:.2} x"),
            Self::RatioAtLeast(limit) => format!(">= {limit:.2} x"),
            Self::AtMost(limit) => format!("<= {limit:.2}"),
            Self::AtLeast(limit) => format!(">= {limit:.0}"),
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Of the table of targets; 0 for what is only shown.
    pub row: u8,
    pub question: String,
    /// `component`, `s2s` or what else was measured.
    pub way: &'static str,
    pub figure: Spread,
    /// To what the question compares with, and to the target if with nothing.
    pub ratio: Option<f64>,
    pub target: Option<Target>,
    pub met: Option<bool>,
    /// How late the flood itself was, in milliseconds, at the same quantile.
    pub late: Option<f64>,
}

impl Line {
    /// Something to compare with.
    pub fn shown(question: &str, way: &'static str, figure: Spread) -> Self {
        Self {
            row: 0,
            question: question.to_owned(),
            way,
            figure,
            ratio: None,
            target: None,
            met: None,
            late: None,
        }
    }

    /// Compares with the figure of something else.
    pub fn compared(self, row: u8, with: f64, target: Target) -> Self {
        let ratio = self.figure.median / with;
        Self {
            row,
            ratio: Some(ratio),
            target: Some(target),
            met: Some(target.is_met(self.figure.median, ratio)),
            ..self
        }
    }

    fn print(&self) {
        let decimals = if self.figure.median >= 100.0 { 0 } else { 2 };
        let Spread {
            median,
            least,
            most,
        } = self.figure;
        let row = match self.row {
            0 => String::new(),
            row => row.to_string(),
        };
        let met = match self.met {
            Some(true) => "yes",
            Some(false) => "no",
            None => "",
        };
        println!(
            "{row:<3}{:<38}{:<11}{:>10}{:>28}{:>8}{met:>5}{:>8}",
            self.question,
            self.way,
            self.target.map_or_else(String::new, Target::text),
            format!("{median:.decimals$} ({least:.decimals$} to {most:.decimals$})"),
            self.ratio
                .map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            self.late
                .map_or_else(String::new, |late| format!("{late:.2}")),
        );
    }
}

/// Prints the table.
pub fn print(lines: &[Line]) {
    println!(
        "{:<3}{:<38}{:<11}{:>10}{:>28}{:>8}{:>5}{:>8}",
        "", "", "", "target", "median (least to most)", "ratio", "met", "late"
    );
    for line in lines {
        line.print();
    }
}

/// Writes all of it with the machine and the commit.
pub fn write(file: &Path, options: &serde_json::Value, lines: &[Line]) {
    let text = serde_json::json!({
        "machine": { "cores": campanile::lanes::cores(), "cpu": cpu_model() },
        "commit": commit(),
        "profile": if cfg!(debug_assertions) { "dev" } else { "release" },
        "options": options,
        "lines": lines,
    });
    let text = serde_json::to_string_pretty(&text).unwrap() + "\n";
    fs::write(file, text).unwrap();
}

fn cpu_model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(": ")?.1.to_owned())
}

fn commit() -> Option<String> {
    let mut git = Command::new("git");
    let asked = git
        .args(["rev-parse", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    let answer = asked.ok().filter(|answer| answer.status.success())?;
    Some(String::from_utf8(answer.stdout).ok()?.trim().to_owned())
}
