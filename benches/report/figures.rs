//! What the benches wrote.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// The file of one bench.
pub struct Figures {
    pub name: String,
    pub machine: String,
    pub commit: String,
    pub profile: String,
    pub options: Vec<(String, String)>,
    pub lines: Vec<Line>,
}

/// One line of a bench's table.
pub struct Line {
    /// Of the table of targets; 0 for what is only shown.
    pub row: u64,
    pub question: String,
    pub way: String,
    pub median: f64,
    pub least: f64,
    pub most: f64,
    pub ratio: Option<f64>,
    pub target: Option<Target>,
    pub met: Option<bool>,
}

/// What is to be reached.
#[derive(Clone, Copy)]
pub struct Target {
    pub limit: f64,
    pub is_ratio: bool,
    pub is_most: bool,
}

impl Figures {
    /// Reads a file; `None` if there is none.
    pub fn read(directory: &Path, name: &str) -> Option<Self> {
        let text = fs::read_to_string(directory.join(name).with_extension("json")).ok()?;
        let file: Value = serde_json::from_str(&text).expect("a bench wrote it");
        let machine = &file["machine"];
        let options = file["options"].as_object().into_iter().flatten();
        Some(Self {
            name: name.to_owned(),
            machine: format!(
                "{} cores, {}",
                machine["cores"],
                machine["cpu"].as_str().unwrap_or("unknown")
            ),
            commit: file["commit"].as_str().unwrap_or("unknown").to_owned(),
            profile: file["profile"].as_str().unwrap_or("unknown").to_owned(),
            options: options
                .map(|(name, value)| (name.replace('_', " "), value.to_string()))
                .collect(),
            lines: file["lines"]
                .as_array()
                .expect("a table has lines")
                .iter()
                .map(Line::read)
                .collect(),
        })
    }
}

impl Line {
    fn read(line: &Value) -> Self {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let figure = |key: &str| line["figure"][key].as_f64().unwrap_or(f64::NAN);
        Self {
            row: line["row"].as_u64().unwrap_or(0),
            question: text("question"),
            way: text("way"),
            median: figure("median"),
            least: figure("least"),
            most: figure("most"),
            ratio: line["ratio"].as_f64(),
            target: Target::read(&line["target"]),
            met: line["met"].as_bool(),
        }
    }

    /// The figure by its target, so that 1 is where it is just met and more is missed.
    pub fn by_target(&self) -> Option<f64> {
        let target = self.target?;
        let reached = match target.is_ratio {
            true => self.ratio?,
            false => self.median,
        };
        Some(match target.is_most {
            true => reached / target.limit,
            false => target.limit / reached,
        })
    }
}

impl Target {
    fn read(target: &Value) -> Option<Self> {
        let (kind, limit) = target.as_object()?.iter().next()?;
        Some(Self {
            limit: limit.as_f64()?,
            is_ratio: kind.starts_with("ratio"),
            is_most: kind.ends_with("most"),
        })
    }

    pub fn text(self) -> String {
        let sign = if self.is_most { "≤" } else { "≥" };
        let times = if self.is_ratio { " ×" } else { "" };
        format!("{sign} {}{times}", number(self.limit))
    }
}

/// As people write it: with as many digits as mean something.
pub fn number(value: f64) -> String {
    if value.abs() >= 1_000.0 {
        let digits = format!("{value:.0}");
        let mut text = String::new();
        for (n, digit) in digits.chars().enumerate() {
            let left = digits.len() - n;
            if n > 0 && left.is_multiple_of(3) && !text.ends_with('-') {
                text.push(',');
            }
            text.push(digit);
        }
        return text;
    }
    let decimals = if value.abs() >= 100.0 { 0 } else { 2 };
    let text = format!("{value:.decimals$}");
    match text.split_once('.') {
        Some(_) => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        None => text,
    }
}
