//! What people may ask about their data: cases, access, erasure, and the statement to publish.
//!
//! [`desk`] is the actor. It gathers what the registry and the journal hold on a person, erases it there,
//! keeps the cases of people who ask an operator, and answers two ways in: the XMPP side, for people who
//! ask by themselves and for codes that they send, and [`admin`], the socket of operators.
//!
//! The answers are made from [`Facts`], which the configuration in effect gives, so that what people are
//! told is what is done; [`statement()`] writes them down for publication.

pub mod admin;
mod cases;
mod code;
mod config;
mod debt;
pub mod desk;
mod error;
mod facts;
mod file;
mod hex;
mod html;
mod limits;
mod report;
mod sessions;
mod statement;
mod time;

pub use config::Config;
pub use desk::inspect;
pub use error::Error;
pub use facts::{Facts, Holding, Place, Recipient};
pub use report::Report;
pub use statement::{Format, statement};
