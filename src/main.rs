//! The `campanile` command.

use std::path::PathBuf;
use std::process::ExitCode;

use campanile::{check, desk, dev, exit, load, serve};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use rustix::fs::Mode;

#[global_allocator]
static ALLOCATOR: campanile::Allocator = campanile::Allocator;

/// XMPP push app server: wakes iOS devices through APNs when their XMPP server asks (XEP-0357).
#[derive(Debug, Parser)]
#[command(name = "campanile", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the service until SIGTERM or SIGINT.
    Serve {
        /// The configuration file; CAMPANILE__SECTION__KEY variables override it.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Loads and validates everything the service needs, and prints each finding in one line.
    Check {
        /// The configuration file; CAMPANILE__SECTION__KEY variables override it.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Answers people about their data: cases, access, erasure, and the statement to publish.
    Privacy {
        /// The configuration file; CAMPANILE__SECTION__KEY variables override it.
        #[arg(
            long,
            value_name = "FILE",
            global = true,
            default_value = "/etc/campanile/campanile.toml"
        )]
        config: PathBuf,
        #[command(subcommand)]
        command: desk::Command,
    },
    /// Exchanges the key that secrets and accounts are hashed with.
    Keys {
        /// The configuration file; CAMPANILE__SECTION__KEY variables override it.
        #[arg(
            long,
            value_name = "FILE",
            global = true,
            default_value = "/etc/campanile/campanile.toml"
        )]
        config: PathBuf,
        #[command(subcommand)]
        command: desk::KeysCommand,
    },
    /// Runs the real server between two built-in simulators and shows pushes travel. Needs no
    /// configuration.
    Dev {
        /// Stop after this many pushes; exit 0 only if each was answered rightly.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        pushes: Option<u64>,
    },
    /// Loads the real server between the simulators, to see what this machine does. Needs no configuration.
    Load(load::Options),
}

#[allow(
    clippy::print_stderr,
    reason = "errors of the command line go to the person who typed it"
)]
fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _nobody_reads = error.print();
            return code(match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => exit::OK,
                _ => exit::USAGE,
            });
        }
    };
    // Whatever writes a file here, also a library, writes it for the owner alone.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let done = match cli.command {
        Command::Serve { config } => serve::command(&config),
        Command::Check { config } => Ok(check::command(&config)),
        Command::Privacy { config, command } => desk::command(&config, command),
        Command::Keys { config, command } => desk::keys(&config, command),
        Command::Dev { pushes } => dev::command(pushes),
        Command::Load(options) => load::command(&options),
    };
    match done {
        Ok(status) => code(status),
        Err(error) => {
            for line in error.lines() {
                eprintln!("campanile: {line}");
            }
            code(error.exit_code())
        }
    }
}

fn code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}
