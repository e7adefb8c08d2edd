//! The operator's socket: one request a connection, one line of JSON each way.
//!
//! Who may open the socket may ask everything: it is for the user of the service and for root.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use actix::{Actor, Context, Handler, MessageResult, Recipient, Supervised, Supervisor};
use messages::{Drain, Drained, Health, Probe, redacted_debug};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::desk::Serve;
use crate::report::Report;
use crate::{Config, Error, file};

/// Longest request.
const REQUEST_BYTES_MAX: u64 = 16_384;
/// Longest answer that a client takes.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// How long a request may take to arrive, and an answer to be taken.
const TRANSFER_LIMIT: Duration = Duration::from_secs(10);
/// Requests at a time.
const CONNECTIONS_MAX: usize = 8;
/// How long to wait after the system has refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What an operator asks.
#[derive(Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Opens a case for an account.
    Open {
        /// Its prepared bare JID.
        account: String,
        /// The served domain whose address the code goes to; the first by default.
        service: Option<String>,
    },
    /// Opens a case for who knows a node and its secret.
    OpenBySecret {
        /// The node.
        node: String,
        /// The secret.
        secret: String,
        /// The served domain it was registered at; any by default.
        service: Option<String>,
    },
    /// Opens a case for who knows a device token.
    OpenByToken {
        /// The token in hex.
        token: String,
    },
    /// Lists the cases.
    List,
    /// Makes a new key of the registrations.
    RotateKeys,
    /// Reports what is held on the person of a case.
    Export {
        /// The case.
        case: String,
        /// Why it counts as confirmed though the person did not.
        override_reason: Option<String>,
    },
    /// Sends the report to the account of the case, in messages.
    Send {
        /// The case.
        case: String,
        /// Why it counts as confirmed though the person did not.
        override_reason: Option<String>,
    },
    /// Erases what is held on the person of a case.
    Erase {
        /// The case.
        case: String,
        /// Why it counts as confirmed though the person did not.
        override_reason: Option<String>,
    },
    /// Ends a case.
    Close {
        /// The case.
        case: String,
    },
}

/// What an operator is answered.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// A case waits for its code.
    Opened {
        /// The case.
        case: String,
        /// Where the person has to send the code.
        address: String,
        /// The code. It is shown this once.
        code: String,
        /// Until when it is good.
        expires_at: String,
    },
    /// A case is open and confirmed by what was given.
    OpenedProven {
        /// The case.
        case: String,
        /// By what.
        proof: String,
    },
    /// All cases.
    Cases(Vec<CaseLine>),
    /// What is held.
    Report(Box<Report>),
    /// The report is on its way.
    Sent {
        /// The account.
        account: String,
        /// In how many messages.
        messages: usize,
    },
    /// It is erased, the case with it.
    Erased {
        /// What was, in words.
        lines: Vec<String>,
    },
    /// The case is closed.
    Closed,
    /// The new key is in use, and the old one gone.
    Rotated,
}

/// A case in the list.
#[derive(Serialize, Deserialize)]
pub struct CaseLine {
    /// Its name.
    pub case: String,
    /// When it was opened.
    pub opened_at: String,
    /// How far it is.
    pub state: String,
    /// Who it is about, until it is closed.
    pub person: Option<String>,
    /// How the person was identified.
    pub proof: Option<String>,
    /// Until when the code is good.
    pub code_expires_at: Option<String>,
}

redacted_debug!(Request, Answer, CaseLine);

/// Why an operator's request was not done, in words for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The reason.
    pub refused: String,
}

impl Refusal {
    pub(crate) fn new(reason: &str) -> Self {
        Self {
            refused: reason.to_owned(),
        }
    }
}

/// What goes back on the socket.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Done { done: Answer },
    Refused(Refusal),
}

/// Where the socket sends.
pub struct Edges {
    /// Answers.
    pub serve: Recipient<Serve>,
}

/// What the socket accepts.
#[derive(Clone)]
pub struct Handles {
    /// Takes no further request.
    pub drain: Recipient<Drain>,
    /// Counters.
    pub probe: Recipient<Probe>,
}

/// A socket that is listened on.
pub struct Socket {
    listener: StdListener,
    path: PathBuf,
}

/// Makes the socket for its owner alone, in the place of one that nobody listens on.
///
/// # Errors
/// [`Error::SocketTaken`] and [`Error::File`].
pub fn bind(config: &Config) -> Result<Socket, Error> {
    let path = &config.socket;
    let fail = || file::failed(path);
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            if StdStream::connect(path).is_ok() {
                return Err(Error::SocketTaken { path: path.clone() });
            }
        }
        Ok(_) => return Err(fail()(io::ErrorKind::AlreadyExists.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = files::parent(path);
            if !directory.is_dir() {
                file::create_private(directory)?;
            }
        }
        Err(error) => return Err(fail()(error)),
    }
    // Under another name until only the owner may open it.
    let unfinished = path.with_extension("new");
    let _nothing_there = fs::remove_file(&unfinished);
    let listener = StdListener::bind(&unfinished).map_err(fail())?;
    listener.set_nonblocking(true).map_err(fail())?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o600)).map_err(fail())?;
    fs::rename(&unfinished, path).map_err(fail())?;
    Ok(Socket {
        listener,
        path: path.clone(),
    })
}

/// Starts to take requests on the current arbiter.
///
/// # Errors
/// [`Error::File`] when the socket cannot be used.
pub fn start(socket: Socket, edges: Edges) -> Result<Handles, Error> {
    let Socket { listener, path } = socket;
    let listener = UnixListener::from_std(listener).map_err(file::failed(&path))?;
    let task = actix_rt::spawn(accept(listener, Rc::new(edges)));
    let address = Supervisor::start(|ctx: &mut Context<Admin>| {
        ctx.set_mailbox_capacity(0);
        Admin { task, path }
    });
    Ok(Handles {
        drain: address.clone().recipient(),
        probe: address.recipient(),
    })
}

async fn accept(listener: UnixListener, edges: Rc<Edges>) {
    let room = Rc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = listener.accept().await;
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (edges, room) = (Rc::clone(&edges), Rc::clone(&room));
        actix_rt::spawn(async move {
            let Ok(_place) = room.try_acquire() else {
                return;
            };
            if let Err(error) = answer(stream, &edges).await {
                tracing::debug!("a request on the operator's socket ended: {error}");
            }
        });
    }
}

/// Takes one request. An erasure takes as long as it does.
async fn answer(stream: UnixStream, edges: &Edges) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut request = Vec::new();
    let mut lines = tokio::io::BufReader::new(read.take(REQUEST_BYTES_MAX));
    timeout(TRANSFER_LIMIT, lines.read_until(b'\n', &mut request)).await??;
    let line = match serde_json::from_slice(&request) {
        Ok(request) => match edges.serve.send(Serve(request)).await {
            Ok(Ok(done)) => Line::Done { done },
            Ok(Err(refusal)) => Line::Refused(refusal),
            Err(_) => Line::Refused(Refusal::new("the service is stopping")),
        },
        Err(_) => Line::Refused(Refusal::new(
            "the request is not one that this version knows: is the service that runs another one?",
        )),
    };
    let mut bytes = serde_json::to_vec(&line)?;
    bytes.push(b'\n');
    timeout(TRANSFER_LIMIT, write.write_all(&bytes)).await??;
    write.shutdown().await
}

struct Admin {
    task: actix_rt::task::JoinHandle<()>,
    path: PathBuf,
}

impl Actor for Admin {
    type Context = Context<Self>;
}

impl Supervised for Admin {}

impl Handler<Drain> for Admin {
    type Result = MessageResult<Drain>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        self.task.abort();
        // One that stays is replaced by the next start.
        let _ = fs::remove_file(&self.path);
        MessageResult(Drained::default())
    }
}

impl Handler<Probe> for Admin {
    type Result = MessageResult<Probe>;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
        MessageResult(Health::default())
    }
}

/// Why the running service could not be asked.
#[derive(Debug)]
pub enum AskError {
    /// Nobody listens: the service does not run.
    Absent,
    /// The service said no.
    Refused(Refusal),
    /// The socket failed, or what came was no answer.
    Io(io::Error),
}

/// Asks the service that listens on a socket. Blocks until it has answered.
///
/// # Errors
/// [`AskError`].
pub fn ask(socket: &Path, request: &Request) -> Result<Answer, AskError> {
    let mut stream = StdStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::Absent,
        _ => AskError::Io(error),
    })?;
    let mut line = serde_json::to_vec(request).map_err(|error| AskError::Io(error.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(AskError::Io)?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX))
        .read_until(b'\n', &mut answer)
        .map_err(AskError::Io)?;
    match serde_json::from_slice(&answer) {
        Ok(Line::Done { done }) => Ok(done),
        Ok(Line::Refused(refusal)) => Err(AskError::Refused(refusal)),
        Err(error) => Err(AskError::Io(error.into())),
    }
}
