//! Pages for people: no script, nothing loaded from elsewhere.

/// A whole page around a body that is HTML already.
pub(crate) fn page(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{}</title>\n<style>\n\
         body {{ font: 1em/1.5 sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }}\n\
         table {{ border-collapse: collapse; width: 100% }}\n\
         th, td {{ border: 1px solid #888; padding: 0.3em 0.6em; text-align: left; \
         vertical-align: top; overflow-wrap: anywhere }}\n</style>\n</head>\n<body>\n{body}</body>\n\
         </html>\n",
        escape(title)
    )
}

/// A table of texts.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let row = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
        let cells = cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let head = row("th", &mut head.iter().copied());
    let rows = rows
        .iter()
        .map(|cells| row("td", &mut cells.iter().map(String::as_str)));
    format!("<table>\n{head}{}</table>\n", rows.collect::<String>())
}

/// Text that is markup nowhere.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
