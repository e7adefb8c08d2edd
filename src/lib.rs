//! Campanile: an XMPP push app server (XEP-0357) for Apple devices.
//!
//! The actors live in the crates under `actors/`; this crate loads the configuration, wires the actors,
//! watches them, and stops them. `docs/architecture.md` is the map.

pub mod check;
pub mod descriptors;
pub mod desk;
pub mod dev;
mod error;
pub mod exit;
pub mod facts;
mod findings;
pub mod guardian;
pub mod lanes;
pub mod load;
mod log_files;
mod places;
mod processor;
pub mod reload;
pub mod serve;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod wiring;

/// The version of this program, as `jabber:iq:version` and `--version` tell it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub use error::RunError;
pub use serve::{Report, run};
pub use settings::Settings;

/// The allocator of the program, for benches that stand beside it. A push costs a tenth less of the processor with
/// it than with that of the system (`docs/performance.md`).
pub use tikv_jemallocator::Jemalloc as Allocator;

/// Prints a line for the person at the terminal; one who has gone is no fault.
#[macro_export]
macro_rules! say {
    ($($line:tt)*) => {{
        use ::std::io::Write as _;
        let _nobody_reads = ::std::writeln!(::std::io::stdout(), $($line)*);
    }};
}
