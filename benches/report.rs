//! Question: none; it writes down what the other benches have measured.
//!
//! Reads the JSON of each bench from a directory, and writes the table into `docs/performance.md` and the plots
//! beside it. `./bench` runs all of them and then this. A bench whose file is not there is left out.
//!
//! ```sh
//! cargo bench --bench report -- --figures target/figures --document docs/performance.md
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    missing_docs,
    unreachable_pub,
    reason = "a bench fails by panicking and speaks to a person"
)]

#[path = "report/figures.rs"]
mod figures;
#[path = "report/markdown.rs"]
mod markdown;
#[path = "report/plot.rs"]
mod plot;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde_json::Value;

use figures::{Figures, number};
use plot::Bar;

/// The benches, in the order of the table.
const BENCHES: [&str; 5] = [
    "push_throughput",
    "growth",
    "memory",
    "registrations",
    "stages",
];
/// Where the plots are, beside the document.
const PLOTS: &str = "performance";

/// Writes down what was measured.
#[derive(Debug, Parser)]
struct Options {
    /// Directory of the files that the benches wrote.
    #[arg(long, default_value = "target/figures")]
    figures: PathBuf,
    /// The document with a place for the table.
    #[arg(long, default_value = "docs/performance.md")]
    document: PathBuf,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    let all: Vec<Figures> = BENCHES
        .iter()
        .filter_map(|name| Figures::read(&options.figures, name))
        .collect();
    assert!(
        !all.is_empty(),
        "no figures in {}",
        options.figures.display()
    );
    let directory = options.document.parent().unwrap().join(PLOTS);
    fs::create_dir_all(&directory).unwrap();
    let mut plots = vec![targets(&all)];
    plots.extend(all.iter().find(|of| of.name == "stages").map(stages));
    plots.extend(soak(&options.figures).into_iter().flatten());
    let mut named = Vec::new();
    for Plot { words, file, svg } in &plots {
        fs::write(directory.join(file), svg).unwrap();
        named.push((*words, format!("{PLOTS}/{file}")));
    }
    let named: Vec<(&str, &str)> = named
        .iter()
        .map(|(words, file)| (*words, file.as_str()))
        .collect();
    let document = fs::read_to_string(&options.document).unwrap();
    let document = markdown::put(&document, &markdown::part(&all, &named));
    fs::write(&options.document, document).unwrap();
    println!(
        "wrote {} and {} plots",
        options.document.display(),
        plots.len()
    );
}

struct Plot {
    words: &'static str,
    file: &'static str,
    svg: String,
}

/// How far each figure is from its target.
fn targets(all: &[Figures]) -> Plot {
    let lines = all.iter().flat_map(|figures| &figures.lines);
    let bars: Vec<Bar> = lines
        .filter_map(|line| {
            let value = line.by_target()?;
            let way = match line.way.as_str() {
                "" => String::new(),
                way => format!(", {way}"),
            };
            Some(Bar {
                name: format!("{} {}{way}", line.row, line.question),
                value,
                label: format!("{} ×", number(value)),
                met: line.met,
            })
        })
        .collect();
    Plot {
        words: "How far each figure is from its target",
        file: "targets.svg",
        svg: plot::bars(
            "Each figure by its target: shorter is better",
            &bars,
            Some((1.0, "target")),
        ),
    }
}

/// What each stage costs.
fn stages(figures: &Figures) -> Plot {
    let of = |question: &'static str| {
        let lines = figures.lines.iter();
        lines.filter(move |line| line.question == question)
    };
    let bars: Vec<Bar> = of("ns per push")
        .zip(of("allocations per push"))
        .map(|(nanos, allocations)| Bar {
            name: nanos.way.clone(),
            value: nanos.median,
            label: format!(
                "{} ns, {} alloc.",
                number(nanos.median.round()),
                number(allocations.median)
            ),
            met: None,
        })
        .collect();
    Plot {
        words: "Nanoseconds and allocations of each stage",
        file: "stages.svg",
        svg: plot::bars("A push, stage by stage", &bars, None),
    }
}

/// Memory and p99 over time, of `campanile load --json`.
fn soak(directory: &Path) -> Option<[Plot; 2]> {
    let text = fs::read_to_string(directory.join("soak.json")).ok()?;
    let file: Value = serde_json::from_str(&text).expect("campanile load wrote it");
    let course = file["report"]["course"].as_array().unwrap();
    let points = |key: &str| -> Vec<(f64, f64)> {
        course
            .iter()
            .filter_map(|sample| Some((sample["at_seconds"].as_f64()?, sample[key].as_f64()?)))
            .collect()
    };
    let rate = number(file["report"]["pushes_per_second"].as_f64().unwrap());
    Some([
        Plot {
            words: "Memory over time under load",
            file: "soak-memory.svg",
            svg: plot::course(
                &format!("Memory at {rate} pushes/s, simulators included"),
                "MiB",
                &points("memory_mib"),
            ),
        },
        Plot {
            words: "p99 over time under load",
            file: "soak-p99.svg",
            svg: plot::course(
                &format!("p99 from publish to answer at {rate} pushes/s"),
                "ms",
                &points("p99_ms"),
            ),
        },
    ])
}
