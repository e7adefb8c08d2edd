//! The actors of this crate over the store on disk, through their public edges.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod erasure;
mod fixture;
mod opening;
mod registry;
mod resolver;
