//! The commands of people about their own data.

use messages::{
    AccessedEvent, BareJid, CommandAction, CommandError, CommandField, CommandStage, CommandStatus,
    JournalEvent, PrivacyCommand, Proof, RunPrivacyCommand,
};

use super::{COMMAND_LINES_MAX, Core, PIECE_BYTES_MAX, count};
use crate::cases::Person;
use crate::sessions;

impl Core {
    pub(super) async fn command(
        &self,
        run: RunPrivacyCommand,
    ) -> Result<CommandStage, CommandError> {
        let RunPrivacyCommand {
            account,
            command,
            session,
            action,
            ..
        } = run;
        match (session, action) {
            (None, CommandAction::Cancel) => Err(CommandError::NoSession),
            (None, CommandAction::Execute) => self.begin(account, command).await,
            (None, _) => Err(CommandError::BadAction),
            (Some(name), CommandAction::Cancel) => {
                self.session(&name, &account, command)?;
                self.sessions.borrow_mut().end(&name);
                Ok(CommandStage {
                    session: name,
                    status: CommandStatus::Canceled,
                    note: None,
                    title: String::new(),
                    instructions: String::new(),
                    fields: Vec::new(),
                })
            }
            (Some(name), action) => match command {
                PrivacyCommand::Access => self.turn(&name, &account, action),
                PrivacyCommand::Erase => self.erase_own(name, account, action).await,
            },
        }
    }

    async fn begin(
        &self,
        account: BareJid,
        command: PrivacyCommand,
    ) -> Result<CommandStage, CommandError> {
        let now = self.now();
        if !self.limits.borrow_mut().take(&account, &self.config, now) {
            count(&self.counters.limited);
            return Err(CommandError::Limited);
        }
        let person = Person::Account(account.clone());
        match command {
            PrivacyCommand::Access => {
                let report = self.report(&person, COMMAND_LINES_MAX).await?;
                count(&self.counters.accesses);
                self.record(JournalEvent::Accessed(Box::new(AccessedEvent {
                    account: Some(account.clone()),
                    case: None,
                    proof: Proof::SelfService,
                })))
                .await;
                let pieces = sessions::pieces(&report.lines(), &report.json(), PIECE_BYTES_MAX);
                let name = self.begin_session(&account, command, pieces)?;
                self.turn(&name, &account, CommandAction::Execute)
            }
            PrivacyCommand::Erase => {
                let details = self.registrations(&person).await?;
                let session = self.begin_session(&account, command, Vec::new())?;
                let lines = vec![
                    format!("Registered devices: {}", details.len()),
                    "These registrations, all lines of the journal about you, and your requests to the \
                     operator will be erased, at once and for good. Your devices get no push notifications \
                     from here until they register again."
                        .to_owned(),
                ];
                Ok(CommandStage {
                    session,
                    status: CommandStatus::Executing {
                        actions: &[CommandAction::Complete],
                    },
                    note: None,
                    title: "Erase my data".to_owned(),
                    instructions:
                        "Do you want all data on your account to be erased? Complete this \
                                   command to erase it, or cancel it."
                            .to_owned(),
                    fields: vec![CommandField {
                        name: "data",
                        label: "What will be erased",
                        lines,
                    }],
                })
            }
        }
    }

    fn begin_session(
        &self,
        account: &BareJid,
        command: PrivacyCommand,
        pieces: Vec<sessions::Piece>,
    ) -> Result<String, CommandError> {
        let now = self.now();
        let mut sessions = self.sessions.borrow_mut();
        let begun = sessions.begin(account, command, pieces, &self.config, now);
        begun.map_err(|_| CommandError::Failed)
    }

    fn session(
        &self,
        name: &str,
        account: &BareJid,
        command: PrivacyCommand,
    ) -> Result<(), CommandError> {
        let now = self.now();
        let mut sessions = self.sessions.borrow_mut();
        let known = sessions.session(name, account, command, now);
        known.map(drop).ok_or(CommandError::NoSession)
    }

    /// Shows a piece of the report.
    fn turn(
        &self,
        name: &str,
        account: &BareJid,
        action: CommandAction,
    ) -> Result<CommandStage, CommandError> {
        const MIDDLE: &[CommandAction] = &[
            CommandAction::Next,
            CommandAction::Previous,
            CommandAction::Complete,
        ];
        let now = self.now();
        let mut sessions = self.sessions.borrow_mut();
        let access = PrivacyCommand::Access;
        let session = sessions
            .session(name, account, access, now)
            .ok_or(CommandError::NoSession)?;
        let last = session.pieces.len().saturating_sub(1);
        match action {
            CommandAction::Execute if !session.is_shown => {}
            CommandAction::Next | CommandAction::Execute if session.at < last => session.at += 1,
            CommandAction::Previous if session.at > 0 => session.at -= 1,
            CommandAction::Complete => session.at = last,
            _ => return Err(CommandError::BadAction),
        }
        session.is_shown = true;
        let (at, piece) = (session.at, session.pieces.get(session.at).cloned());
        let piece = piece.unwrap_or_default();
        let status = if at >= last {
            CommandStatus::Completed
        } else if at == 0 {
            CommandStatus::Executing {
                actions: &[CommandAction::Next, CommandAction::Complete],
            }
        } else {
            CommandStatus::Executing { actions: MIDDLE }
        };
        if status == CommandStatus::Completed {
            sessions.end(name);
        }
        let part = format!("Part {} of {}", at + 1, last + 1);
        Ok(CommandStage {
            session: name.to_owned(),
            status,
            note: None,
            title: "My data".to_owned(),
            instructions: match last {
                0 => "All that is held on your account.".to_owned(),
                _ => format!(
                    "All that is held on your account. {part}; put the parts of the JSON together in \
                     their order."
                ),
            },
            fields: vec![
                CommandField {
                    name: "data",
                    label: "Your data",
                    lines: piece.lines,
                },
                CommandField {
                    name: "json",
                    label: "The same as JSON",
                    lines: piece.json,
                },
            ],
        })
    }

    async fn erase_own(
        &self,
        name: String,
        account: BareJid,
        action: CommandAction,
    ) -> Result<CommandStage, CommandError> {
        self.session(&name, &account, PrivacyCommand::Erase)?;
        if !matches!(action, CommandAction::Complete | CommandAction::Execute) {
            return Err(CommandError::BadAction);
        }
        self.sessions.borrow_mut().end(&name);
        let person = Person::Account(account);
        let erased = self.erase(&person, None, Proof::SelfService).await?;
        let summary = if erased.unreached == 0 {
            "What was held on your account is erased."
        } else {
            "What was held on your account is erased, but for what could not be reached yet. That is tried \
             again every hour."
        };
        Ok(CommandStage {
            session: name,
            status: CommandStatus::Completed,
            note: Some(summary.to_owned()),
            title: "Erase my data".to_owned(),
            instructions: summary.to_owned(),
            fields: vec![CommandField {
                name: "data",
                label: "What was erased",
                lines: erased.lines(),
            }],
        })
    }
}
