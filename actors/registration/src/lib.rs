//! Registration state: the resolver on the hot path and the registry, the single writer.
//!
//! [`Registrations`] opens the store and is shared by all actors of this crate, the only one that
//! touches storage. [`registry`] runs once, on the control arbiter; [`resolver`] once per lane.

mod census;
mod config;
mod erasure;
mod error;
mod keys;
mod registrations;
pub mod registry;
pub mod resolver;
mod store;
mod touches;
mod withdrawals;
mod writer;

pub use config::Config;
pub use error::{Error, Fault};
pub use registrations::{Registrations, inspect};
