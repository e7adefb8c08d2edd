//! Dialogues with scripted servers over loopback TCP and real TLS: byte literals in and out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "tests fail by panicking"
)]

mod attacks;
mod bidi;
mod component;
mod diagnosis;
mod dialback;
mod drain;
mod external;
mod finding;
mod flow;
mod inspect;
mod lasting;
mod limits;
mod overflow;
mod peer;
mod refusals;
mod renewal;
mod returning;
mod shares;
mod tls;
mod world;
