//! The statement to publish.

use std::fmt::Write as _;

use crate::facts::{Facts, Holding, Place, Recipient};
use crate::html;

/// How a statement is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Markdown.
    Markdown,
    /// A page of HTML.
    Html,
}

/// Writes the statement.
#[must_use]
pub fn statement(facts: &Facts, format: Format) -> String {
    let blocks = blocks(facts);
    match format {
        Format::Markdown => markdown(&blocks),
        Format::Html => {
            let body = blocks.iter().map(Block::html).collect::<String>();
            html::page("Privacy statement", &body)
        }
    }
}

enum Block {
    Title(String),
    Heading(&'static str),
    Text(String),
    List(Vec<String>),
    Table(Vec<&'static str>, Vec<Vec<String>>),
}

fn blocks(facts: &Facts) -> Vec<Block> {
    let domains: Vec<_> = facts.services.iter().map(|place| &*place.domain).collect();
    let mut blocks = vec![
        Block::Title(format!("Privacy statement of {}", domains.join(", "))),
        Block::Text(
            "This push service wakes apps on Apple devices when the XMPP servers of their users ask it \
             to. This is what it sees, keeps and passes on."
                .to_owned(),
        ),
    ];
    if !facts.missing.is_empty() {
        blocks.push(Block::Heading("Missing"));
        blocks.push(Block::Text(
            "This statement is not complete. The configuration does not say:".to_owned(),
        ));
        blocks.push(Block::List(facts.missing.clone()));
    }
    blocks.push(Block::Heading("Who is responsible"));
    blocks.push(Block::List(responsible(facts)));
    blocks.push(Block::Heading("What is seen and kept"));
    blocks.push(Block::Table(
        vec!["when", "what", "what for", "how long"],
        facts.holdings.iter().map(Holding::row).collect(),
    ));
    blocks.push(Block::Heading("What is not"));
    blocks.push(Block::List(facts.never.clone()));
    blocks.push(Block::Heading("Who gets data"));
    blocks.push(Block::Table(
        vec!["who", "what", "what for"],
        facts.recipients.iter().map(Recipient::row).collect(),
    ));
    blocks.push(Block::Heading("Where it runs"));
    blocks.push(Block::Table(
        vec!["domain", "reached over", "location"],
        facts
            .services
            .iter()
            .map(|place| place.row(&facts.locations))
            .collect(),
    ));
    blocks.push(Block::Heading("Your rights"));
    blocks.push(Block::List(facts.rights.clone()));
    blocks
}

fn responsible(facts: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    lines.push(match &facts.controller {
        Some(controller) => format!("Controller: {controller}"),
        None => "Controller: not stated".to_owned(),
    });
    lines.push(match facts.contact.is_empty() {
        true => "Contact: not stated".to_owned(),
        false => format!("Contact: {}", facts.contact.join(", ")),
    });
    if let Some(authority) = &facts.authority {
        lines.push(format!("Supervisory authority: {authority}"));
    }
    lines
}

impl Holding {
    fn row(&self) -> Vec<String> {
        let Self {
            occasion,
            data,
            purpose,
            kept,
        } = self.clone();
        vec![occasion, data, purpose, kept]
    }
}

impl Recipient {
    fn row(&self) -> Vec<String> {
        let Self {
            name,
            data,
            purpose,
        } = self.clone();
        vec![name, data, purpose]
    }
}

impl Place {
    fn row(&self, locations: &[String]) -> Vec<String> {
        let families = match self.families.is_empty() {
            true => "the XMPP server it is a component of".to_owned(),
            false => self.families.join(" and "),
        };
        let location = match locations.is_empty() {
            true => "not stated".to_owned(),
            false => locations.join(", "),
        };
        vec![self.domain.clone(), families, location]
    }
}

fn markdown(blocks: &[Block]) -> String {
    let mut out = String::new();
    for block in blocks {
        // Writing to a string cannot fail.
        let _ = match block {
            Block::Title(text) => writeln!(out, "# {}\n", escape(text)),
            Block::Heading(text) => writeln!(out, "## {text}\n"),
            Block::Text(text) => writeln!(out, "{}\n", escape(text)),
            Block::List(items) => {
                let items = items.iter().map(|item| format!("- {}\n", escape(item)));
                writeln!(out, "{}", items.collect::<String>())
            }
            Block::Table(head, rows) => {
                let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
                let head_line = line(head.iter().map(ToString::to_string).collect());
                let rule = line(vec!["---".to_owned(); head.len()]);
                let rows = rows
                    .iter()
                    .map(|row| line(row.iter().map(|cell| escape(cell)).collect()));
                writeln!(out, "{head_line}{rule}{}", rows.collect::<String>())
            }
        };
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// What an operator wrote shows as written, and breaks no table.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '|' | '*' | '_' | '<' | '[' | '`' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

impl Block {
    fn html(&self) -> String {
        match self {
            Self::Title(text) => format!("<h1>{}</h1>\n", html::escape(text)),
            Self::Heading(text) => format!("<h2>{}</h2>\n", html::escape(text)),
            Self::Text(text) => format!("<p>{}</p>\n", html::escape(text)),
            Self::List(items) => {
                let items = items
                    .iter()
                    .map(|item| format!("<li>{}</li>\n", html::escape(item)));
                format!("<ul>\n{}</ul>\n", items.collect::<String>())
            }
            Self::Table(head, rows) => html::table(head, rows),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            services: vec![Place {
                domain: "push.example".to_owned(),
                families: vec!["IPv4".to_owned(), "IPv6".to_owned()],
            }],
            controller: Some("Ada | <Co>".to_owned()),
            holdings: vec![Holding {
                occasion: "registering".to_owned(),
                data: "node".to_owned(),
                purpose: "to find the device".to_owned(),
                kept: "180 days".to_owned(),
            }],
            missing: vec!["privacy.contact: whom to ask".to_owned()],
            ..Facts::default()
        }
    }

    #[test]
    fn what_is_missing_is_said_and_not_made_up() {
        for format in [Format::Markdown, Format::Html] {
            let text = statement(&facts(), format);
            for part in [
                "not complete",
                "privacy.contact: whom to ask",
                "Contact: not stated",
                "IPv4 and IPv6",
                "180 days",
            ] {
                assert!(text.contains(part), "{part}: {text}");
            }
            let whole = Facts {
                missing: Vec::new(),
                ..facts()
            };
            assert!(!statement(&whole, format).contains("not complete"));
        }
    }

    #[test]
    fn what_an_operator_wrote_breaks_nothing() {
        assert!(statement(&facts(), Format::Markdown).contains("Ada \\| \\<Co>"));
        assert!(statement(&facts(), Format::Html).contains("Ada | &lt;Co&gt;"));
    }
}
