//! The figures as a part of `docs/performance.md`.

use std::fmt::Write as _;

use crate::figures::{Figures, Line, number};

const BEGIN: &str = "<!-- figures: written by ./bench, do not edit -->\n";
const END: &str = "<!-- end of figures -->\n";

/// Puts the part in its place.
pub fn put(document: &str, part: &str) -> String {
    let (before, rest) = document.split_once(BEGIN).expect("there is a place");
    let (_, after) = rest.split_once(END).expect("the place has an end");
    format!("{before}{BEGIN}{part}{END}{after}")
}

/// All of it, with the plots that there are: their words and their files.
pub fn part(all: &[Figures], plots: &[(&str, &str)]) -> String {
    let mut text = String::new();
    let first = all.first().expect("there are figures");
    let _ = writeln!(
        text,
        "{}; commit `{}`, {} build. Medians, with the least and the most of the rounds. A ratio is to the line \
         above without a target, with latency to streams by latency, else to the target.\n",
        first.machine,
        first.commit.get(..12).unwrap_or(&first.commit),
        first.profile,
    );
    for other in all {
        if (&other.commit, &other.profile) != (&first.commit, &first.profile) {
            let _ = writeln!(
                text,
                "`{}` is of commit `{}`, {} build.\n",
                other.name,
                other.commit.get(..12).unwrap_or(&other.commit),
                other.profile,
            );
        }
    }
    for (words, file) in plots {
        let _ = writeln!(text, "![{words}]({file})\n");
    }
    text.push_str(
        "| row | | way in | target | median (least to most) | ratio | met |\n|---|---|---|---|---|---|---|\n",
    );
    for figures in all.iter().filter(|figures| figures.name != "stages") {
        for line in &figures.lines {
            text.push_str(&row(line));
        }
    }
    text.push('\n');
    for figures in all {
        let options: Vec<String> = figures
            .options
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        let _ = writeln!(text, "- `{}`: {}.", figures.name, options.join(", "));
    }
    text
}

fn row(line: &Line) -> String {
    let row = match line.row {
        0 => String::new(),
        row => row.to_string(),
    };
    let met = match line.met {
        Some(true) => "yes",
        Some(false) => "**no**",
        None => "",
    };
    format!(
        "| {row} | {} | {} | {} | {} | {} | {met} |\n",
        line.question.replace("<=", "≤"),
        line.way,
        line.target.map_or_else(String::new, |target| target.text()),
        spread(line),
        line.ratio.map(number).unwrap_or_default(),
    )
}

fn spread(line: &Line) -> String {
    let [median, least, most] = [line.median, line.least, line.most].map(number);
    match least == most {
        true => median,
        false => format!("{median} ({least} to {most})"),
    }
}
