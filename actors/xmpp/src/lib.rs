//! XMPP ingress: server-to-server streams, the services of the served domains, replies.
//!
//! Four actors and what they share:
//!
//! - [`Ingress`] is prepared once from the configuration: certificates, trusted authorities, resolver,
//!   dialback secret. Clones are cheap and go to every thread.
//! - [`listener`] accepts connections on the control arbiter.
//! - [`porch`] leads them through TLS on a thread that yields to the others, and hands each stream to the lane
//!   that has least to do.
//! - [`gate`] runs once per lane and starts a session for each stream. A session reads publishes, holds a
//!   ticket for each, and answers every iq exactly once.
//! - [`egress`] runs once per lane and owns the streams that we open to peers: answers go there, since a
//!   stream between servers carries stanzas one way (RFC 6120 §4.5).
//!
//! A served domain may instead be a [`component`] of a server, which a gate connects to.
//!
//! `xml`, `service`, `reply` and `pending` compute and do no I/O; `stream` negotiates.

mod accounts;
mod back;
mod backlog;
mod backoff;
#[cfg(feature = "bench")]
pub mod bench;
mod calls;
mod census;
pub mod certificates;
pub mod component;
mod config;
mod denials;
pub mod egress;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod gate;
mod ingress;
mod intake;
mod jid;
mod limiter;
pub mod listener;
pub mod outcomes;
mod pace;
mod pending;
mod policy;
pub mod porch;
mod reply;
mod service;
mod session;
mod shortages;
mod stream;
mod throttle;
mod xml;

pub use config::{
    ComponentConfig, Config, Contacts, DomainConfig, HostOverride, Privacy, TlsVersion,
};
pub use error::Error;
pub use ingress::{Finding, Ingress, inspect};
pub use jid::{prepare_account, prepare_service};
