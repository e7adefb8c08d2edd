//! The most that one can say at a time.

use std::fmt::Write as _;
use std::iter::repeat_n;

use campanile::dev::world::SERVICE;
use xmpp::Config;

/// Entities that would come to three gigabytes.
pub(crate) fn billion_laughs() -> String {
    let mut document = "<?xml version='1.0'?><!DOCTYPE lolz [<!ENTITY lol0 'lol'>".to_owned();
    for n in 1..10 {
        let laughs = format!("&lol{};", n - 1).repeat(10);
        write!(document, "<!ENTITY lol{n} '{laughs}'>").unwrap();
    }
    document + "]><lolz>&lol9;</lolz>"
}

/// The beginning of a stanza, whose end never comes.
pub(crate) fn open(domain: &str) -> String {
    format!("<message from='{domain}' to='{SERVICE}'><body>")
}

/// Stanzas that are as large as they may be: of text, of elements, of attributes whose names have to be
/// resolved and compared with each other, and of publishes to nobody.
pub(crate) fn maximal(domain: &str, limits: &Config) -> [String; 4] {
    let size = limits.stanza_bytes_max;
    let message = |content: &str| filled(&open(domain), content, "</body></message>", size);
    let publish = format!(
        "<iq type='set' id='1' from='{domain}' to='{SERVICE}'>\
         <pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='nobody'><item>"
    );
    [
        message(""),
        message(&elements(limits)),
        message(&attributes(limits)),
        filled(
            &publish,
            &elements(limits),
            "</item></publish></pubsub></iq>",
            size,
        ),
    ]
}

/// The most that one can say who has proven nothing, and that is no reason yet to be sent away.
pub(crate) fn unproven(domain: &str) -> String {
    filled(
        &format!("<db:verify type='valid' from='{domain}' to='{SERVICE}' id='x'>"),
        "",
        "</db:verify>",
        10_000,
    )
}

fn filled(open: &str, content: &str, close: &str, size: usize) -> String {
    let rest = size - open.len() - content.len() - close.len();
    let text = "x".repeat(rest);
    [open, content, text.as_str(), close].concat()
}

/// Elements in a namespace whose name is as long as it may be.
fn elements(limits: &Config) -> String {
    let namespace = "u".repeat(limits.tag_bytes_max - 100);
    let most = limits.markup_max as usize - 20;
    let elements = "<a/>".repeat(most);
    format!("<x xmlns='{namespace}'>{elements}</x>")
}

/// Attributes of one name and many namespaces.
fn attributes(limits: &Config) -> String {
    let most = limits.attributes_max as usize - 4;
    let declared: String = (0..most).map(|n| format!(" xmlns:n{n}='u:{n}'")).collect();
    let attributes: String = (0..most).map(|n| format!(" n{n}:a=''")).collect();
    let elements = (limits.markup_max as usize - most - 20) / (most + 1);
    let elements: String = repeat_n(format!("<e{attributes}/>"), elements).collect();
    format!("<x{declared}>{elements}</x>")
}
