//! Plots as SVG: light, with words instead of legends.

use std::fmt::Write as _;

use crate::figures::number;

const WIDTH: f64 = 800.0;
/// Where bars begin: left of it are their names.
const LEFT: f64 = 330.0;
/// Room for the numbers right of the bars.
const RIGHT: f64 = 90.0;
const STEP: f64 = 22.0;
const TOP: f64 = 40.0;
const GOOD: &str = "#2f7d5b";
const BAD: &str = "#c2503f";
const PLAIN: &str = "#4a6fa5";

/// One bar.
pub struct Bar {
    pub name: String,
    pub value: f64,
    /// What stands beside it.
    pub label: String,
    /// `None` where there is nothing to be met.
    pub met: Option<bool>,
}

/// Bars below each other. With a `mark`, a line there; bars that go beyond twice the mark are cut.
pub fn bars(title: &str, bars: &[Bar], mark: Option<(f64, &str)>) -> String {
    let longest = bars
        .iter()
        .map(|bar| bar.value)
        .fold(f64::MIN_POSITIVE, f64::max);
    let most = match mark {
        Some((at, _)) => longest.min(2.5 * at).max(1.2 * at),
        None => longest,
    };
    let room = WIDTH - LEFT - RIGHT;
    let length = |value: f64| (value / most).clamp(0.0, 1.0) * room;
    let height = TOP + STEP * bars.len() as f64 + 16.0;
    let mut svg = begin(title, height);
    for (n, bar) in bars.iter().enumerate() {
        let middle = TOP + STEP * n as f64 + STEP / 2.0;
        let color = match bar.met {
            Some(true) => GOOD,
            Some(false) => BAD,
            None => PLAIN,
        };
        let long = length(bar.value);
        text(&mut svg, LEFT - 8.0, middle + 4.0, "end", &bar.name);
        let _ = writeln!(
            svg,
            r#"<rect x="{LEFT}" y="{:.1}" width="{long:.1}" height="{:.1}" rx="2" fill="{color}"/>"#,
            middle - STEP * 0.35,
            STEP * 0.7,
        );
        text(
            &mut svg,
            LEFT + long + 6.0,
            middle + 4.0,
            "start",
            &bar.label,
        );
    }
    if let Some((at, words)) = mark {
        let x = LEFT + length(at);
        let _ = writeln!(
            svg,
            r##"<path d="M{x:.1} {:.1}V{:.1}" stroke="#333" stroke-dasharray="4 3"/>"##,
            TOP - 4.0,
            height - 12.0
        );
        text(&mut svg, x + 4.0, TOP - 6.0, "start", words);
    }
    svg + "</svg>\n"
}

/// A course over time, from zero up: seconds and values.
pub fn course(title: &str, unit: &str, points: &[(f64, f64)]) -> String {
    const HEIGHT: f64 = 240.0;
    const EDGE: f64 = 60.0;
    let (width, bottom) = (WIDTH - 2.0 * EDGE, HEIGHT - 34.0);
    let most = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).fold(f64::MIN_POSITIVE, f64::max);
    let (last, highest) = (most(|(x, _)| *x), most(|(_, y)| *y) * 1.15);
    let place = |(x, y): &(f64, f64)| {
        let x = EDGE + x / last * width;
        (x, bottom - y / highest * (bottom - TOP))
    };
    let mut svg = begin(title, HEIGHT);
    for share in [0.0, 0.5, 1.0] {
        let (_, y) = place(&(0.0, share * highest));
        let _ = writeln!(
            svg,
            r##"<path d="M{EDGE} {y:.1}H{:.1}" stroke="#ddd"/>"##,
            EDGE + width
        );
        text(
            &mut svg,
            EDGE - 6.0,
            y + 4.0,
            "end",
            &number(share * highest),
        );
        let (x, _) = place(&(share * last, 0.0));
        let at = format!("{} s", number((share * last).round()));
        text(&mut svg, x, HEIGHT - 14.0, "middle", &at);
    }
    text(&mut svg, EDGE - 6.0, TOP - 10.0, "end", unit);
    let path: Vec<String> = points
        .iter()
        .map(|point| {
            let (x, y) = place(point);
            format!("{x:.1} {y:.1}")
        })
        .collect();
    let _ = writeln!(
        svg,
        r#"<path d="M{}" fill="none" stroke="{PLAIN}" stroke-width="2"/>"#,
        path.join("L")
    );
    svg + "</svg>\n"
}

fn begin(title: &str, height: f64) -> String {
    let title = escaped(title);
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}" font-family="sans-serif" font-size="12" fill="#222">
<rect width="{WIDTH}" height="{height}" fill="#fff"/>
<text x="12" y="20" font-size="14" font-weight="bold">{title}</text>
"##
    )
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = escaped(words);
    let _ = writeln!(
        svg,
        r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{words}</text>"#
    );
}

fn escaped(words: &str) -> String {
    words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}
