//! `campanile privacy`: what an operator does for people who ask about their data.
//!
//! The commands ask the service that runs, by its socket. Where none runs they open the store themselves
//! and do the same with the same actors.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use messages::Clock;
use privacy::admin::{Answer, AskError, CaseLine, Request, ask};
use privacy::desk::Serve;
use privacy::{Format, Report, statement};

use crate::wiring::{self, Offline};
use crate::{RunError, Settings, exit, facts, say};

/// How long the store may take to be closed in order.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);
/// Longest secret or token that is read from a file.
const SECRET_BYTES_MAX: u64 = 1_024;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Opens a case for somebody who asks, and prints the address and the code to give to them.
    Request(Who),
    /// Lists the cases.
    List,
    /// Writes all that is held on the person of a confirmed case, as JSON and as a page, or sends it.
    Export {
        /// The case.
        case: String,
        /// The files to write: NAME.json and NAME.html. None of them may exist.
        #[arg(long, value_name = "NAME", required_unless_present = "to_jid")]
        out: Option<PathBuf>,
        /// Sends it to the account that the case is about, in messages.
        #[arg(long)]
        to_jid: bool,
        /// Proof by other means.
        #[command(flatten)]
        proof: Override,
    },
    /// Erases all that is held on the person of a confirmed case, and closes it.
    Erase {
        /// The case.
        case: String,
        /// Proof by other means.
        #[command(flatten)]
        proof: Override,
    },
    /// Closes a case. Nothing of the person is kept of it.
    Close {
        /// The case.
        case: String,
    },
    /// Prints the privacy statement to publish, from the configuration in effect.
    Statement {
        /// How it is written.
        #[arg(long, value_enum, default_value_t = Kind::Markdown)]
        format: Kind,
    },
}

/// Who asks, and by what that is known.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Who {
    /// The bare JID, to be confirmed by a message from it.
    #[arg(long, value_name = "JID", conflicts_with_all = ["node", "token_file"])]
    jid: Option<String>,
    /// The node of a registration, for who has no account any more; with --secret-file.
    #[arg(
        long,
        value_name = "NODE",
        requires = "secret_file",
        conflicts_with = "token_file"
    )]
    node: Option<String>,
    /// The file with the registration's secret; - for standard input.
    #[arg(long, value_name = "FILE", requires = "node")]
    secret_file: Option<PathBuf>,
    /// The file with the device token in hex; - for standard input.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The served domain: that the person writes to, or registered at. The first, or any, by default.
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
}

/// Proof by other means.
#[derive(Debug, Args)]
pub struct Override {
    /// Takes the case for confirmed though the person has not sent the code. The reason is journalled.
    #[arg(long = "override", value_name = "REASON")]
    reason: Option<String>,
}

/// How a statement is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Markdown.
    Markdown,
    /// A page of HTML.
    Html,
}

/// What to do with the keys of the registrations.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum KeysCommand {
    /// Makes a new key and puts all registrations under it. Nobody notices: their secrets stay.
    Rotate,
}

/// `campanile keys`: does it, and returns the exit code.
///
/// # Errors
/// [`RunError`] when the service could neither be asked nor stood in for.
pub fn keys(config: &Path, command: KeysCommand) -> Result<i32, RunError> {
    let settings = Settings::load(config).map_err(RunError::Settings)?;
    match command {
        KeysCommand::Rotate => answer(&settings, &Request::RotateKeys, |answer| {
            print(answer);
            Ok(())
        }),
    }
}

/// Does it, and returns the exit code.
///
/// # Errors
/// [`RunError`] when the service could neither be asked nor stood in for.
pub fn command(config: &Path, command: Command) -> Result<i32, RunError> {
    let settings = Settings::load(config).map_err(RunError::Settings)?;
    match command {
        Command::Statement { format } => {
            print_statement(&settings, format);
            Ok(exit::OK)
        }
        Command::Request(who) => match request(who) {
            Ok(request) => answer(&settings, &request, |answer| {
                print(answer);
                Ok(())
            }),
            Err(reason) => Ok(refused(&reason)),
        },
        Command::List => answer(&settings, &Request::List, |answer| {
            print(answer);
            Ok(())
        }),
        Command::Export {
            case,
            out,
            to_jid,
            proof,
        } => export(&settings, &case, out.as_deref(), to_jid, proof.reason),
        Command::Erase { case, proof } => {
            let request = Request::Erase {
                case,
                override_reason: proof.reason,
            };
            answer(&settings, &request, |answer| {
                print(answer);
                Ok(())
            })
        }
        Command::Close { case } => answer(&settings, &Request::Close { case }, |answer| {
            print(answer);
            Ok(())
        }),
    }
}

fn export(
    settings: &Settings,
    case: &str,
    out: Option<&Path>,
    to_jid: bool,
    override_reason: Option<String>,
) -> Result<i32, RunError> {
    let files = out.map(Files::new);
    if let Some(taken) = files.as_ref().and_then(Files::taken) {
        return Ok(refused(&format!("{} exists already", taken.display())));
    }
    let mut status = exit::OK;
    if let Some(files) = files {
        let request = Request::Export {
            case: case.to_owned(),
            override_reason: override_reason.clone(),
        };
        status = answer(settings, &request, |answer| match answer {
            Answer::Report(report) => files.write(&report),
            other => {
                print(other);
                Ok(())
            }
        })?;
    }
    if to_jid && status == exit::OK {
        let request = Request::Send {
            case: case.to_owned(),
            override_reason,
        };
        status = answer(settings, &request, |answer| {
            print(answer);
            Ok(())
        })?;
    }
    Ok(status)
}

fn request(who: Who) -> Result<Request, String> {
    let service = match who.domain {
        Some(domain) => {
            let prepared = xmpp::prepare_service(&domain).ok_or("--domain is no domain")?;
            Some(prepared.to_string())
        }
        None => None,
    };
    match who {
        Who { jid: Some(jid), .. } => {
            let account = xmpp::prepare_account(&jid)
                .ok_or("--jid is no bare JID, such as ada@chat.example")?;
            Ok(Request::Open {
                account: account.as_str().to_owned(),
                service,
            })
        }
        Who {
            node: Some(node),
            secret_file: Some(file),
            ..
        } => Ok(Request::OpenBySecret {
            node,
            secret: read(&file)?,
            service,
        }),
        Who {
            token_file: Some(file),
            ..
        } => Ok(Request::OpenByToken {
            token: read(&file)?,
        }),
        _ => Err("give --jid, --node with --secret-file, or --token-file".to_owned()),
    }
}

/// Reads a secret from a file: command lines are seen by others.
fn read(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::Read::read_to_string(
            &mut io::Read::take(io::stdin(), SECRET_BYTES_MAX),
            &mut text,
        )
    } else {
        std::fs::File::open(file).and_then(|opened| {
            io::Read::read_to_string(&mut io::Read::take(opened, SECRET_BYTES_MAX), &mut text)
        })
    };
    read.map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(text.trim().to_owned())
}

/// Asks the service, or stands in for it, and passes on what it answers.
fn answer(
    settings: &Settings,
    request: &Request,
    show: impl FnOnce(Answer) -> io::Result<()>,
) -> Result<i32, RunError> {
    let asked = match ask(&settings.privacy.socket, request) {
        Err(AskError::Absent) => stand_in(settings, request)?,
        asked => asked,
    };
    match asked {
        Ok(answer) => {
            show(answer).map_err(|source| RunError::System {
                what: "the answer could not be written",
                source,
            })?;
            Ok(exit::OK)
        }
        Err(AskError::Refused(refusal)) => Ok(refused(&refusal.refused)),
        Err(AskError::Io(source)) => Err(RunError::System {
            what: "the service could not be asked by privacy.socket",
            source,
        }),
        Err(AskError::Absent) => Ok(refused("the service does not run")),
    }
}

/// Opens the store and answers in the place of the service.
fn stand_in(settings: &Settings, request: &Request) -> Result<Result<Answer, AskError>, RunError> {
    let repeated = serde_json::to_vec(request).and_then(|bytes| serde_json::from_slice(&bytes));
    let request = repeated.map_err(|error| RunError::System {
        what: "the request cannot be written as JSON",
        source: error.into(),
    })?;
    actix_rt::System::new().block_on(async {
        let Offline { serve, order } =
            wiring::offline(settings, &Clock::system()).map_err(RunError::Unusable)?;
        let answered = serve.send(Serve(request)).await;
        order.drain(CLOSE_LIMIT).await;
        match answered {
            Ok(answered) => Ok(answered.map_err(AskError::Refused)),
            Err(_) => Err(RunError::Dead("privacy".to_owned())),
        }
    })
}

#[allow(
    clippy::print_stderr,
    reason = "errors of the command line go to the person who typed it"
)]
fn refused(reason: &str) -> i32 {
    eprintln!("campanile: {reason}");
    exit::FAILED
}

fn print(answer: Answer) {
    match answer {
        Answer::Opened {
            case,
            address,
            code,
            expires_at,
        } => {
            say!("case {case} is open");
            say!("Give this to the person, over a way by which you know them:");
            say!("  send a message with the code");
            say!("    {code}");
            say!("  from your account to");
            say!("    {address}");
            say!("  by {expires_at}");
        }
        Answer::OpenedProven { case, proof } => {
            say!("case {case} is open and confirmed by {proof}");
        }
        Answer::Cases(cases) if cases.is_empty() => say!("there are no cases"),
        Answer::Cases(cases) => cases.iter().for_each(print_case),
        Answer::Report(report) => report.lines().iter().for_each(|line| say!("{line}")),
        Answer::Sent { account, messages } => say!("sent to {account} in {messages} messages"),
        Answer::Erased { lines } => lines.iter().for_each(|line| say!("{line}")),
        Answer::Closed => say!("the case is closed"),
        Answer::Rotated => {
            say!("all registrations are under a new key; back up registration.key_file now");
        }
    }
}

fn print_case(case: &CaseLine) {
    let CaseLine {
        case,
        opened_at,
        state,
        person,
        proof,
        code_expires_at,
    } = case;
    let mut line = format!("{case}  opened {opened_at}  {state}");
    for (name, value) in [
        ("by", proof),
        ("code good until", code_expires_at),
        ("about", person),
    ] {
        if let Some(value) = value {
            line.push_str(&format!("  {name} {value}"));
        }
    }
    say!("{line}");
}

fn print_statement(settings: &Settings, format: Kind) {
    let facts = facts::facts(settings);
    let format = match format {
        Kind::Markdown => Format::Markdown,
        Kind::Html => Format::Html,
    };
    say!("{}", statement(&facts, format).trim_end());
}

/// Where a report goes.
struct Files {
    json: PathBuf,
    html: PathBuf,
}

impl Files {
    fn new(name: &Path) -> Self {
        let with = |extension: &str| match name.extension().and_then(|known| known.to_str()) {
            Some("json" | "html") => name.with_extension(extension),
            _ => {
                let mut path = name.as_os_str().to_owned();
                path.push(".");
                path.push(extension);
                path.into()
            }
        };
        Self {
            json: with("json"),
            html: with("html"),
        }
    }

    fn taken(&self) -> Option<&Path> {
        [&self.json, &self.html]
            .into_iter()
            .find(|path| path.exists())
            .map(PathBuf::as_path)
    }

    fn write(&self, report: &Report) -> io::Result<()> {
        for (path, text) in [(&self.json, report.json()), (&self.html, report.html())] {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            say!("{} is written", path.display());
        }
        Ok(())
    }
}
