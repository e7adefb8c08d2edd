//! Exit codes, after `sysexits.h` where it has a fitting one.

/// All done.
pub const OK: i32 = 0;
/// A promised result was not reached: `check` found problems that keep the service from running well,
/// or a push of `dev --pushes` or of `load` got the wrong answer.
pub const FAILED: i32 = 1;
/// The command line is wrong.
pub const USAGE: i32 = 64;
/// A listening address cannot be bound.
pub const UNAVAILABLE: i32 = 69;
/// A fault of this program, or of the machine below it.
pub const INTERNAL: i32 = 70;
/// Stopped with work given up.
pub const ABANDONED: i32 = 75;
/// The configuration is wrong.
pub const CONFIGURATION: i32 = 78;
