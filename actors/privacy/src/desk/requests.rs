//! What operators ask.

use messages::{
    AccessedEvent, BareJid, CaseId, DeviceToken, Domain, FindRegistration, JournalEvent, NodeId,
    OverriddenEvent, Proof, RotateKeys, Secret, SendMessage,
};

use super::{COMMAND_LINES_MAX, Core, Failure, PIECE_BYTES_MAX, READ_LIMIT, SYNC_LIMIT, count};
use crate::admin::{Answer, CaseLine, Refusal, Request};
use crate::cases::{self, Outcome, Person, State};
use crate::{sessions, time};

impl Core {
    pub(super) async fn serve(&self, request: Request) -> Result<Answer, Refusal> {
        match request {
            Request::Open { account, service } => self.open(&account, service).await,
            Request::OpenBySecret {
                node,
                secret,
                service,
            } => self.open_by_secret(&node, &secret, service).await,
            Request::OpenByToken { token } => self.open_by_token(&token).await,
            Request::List => Ok(self.list()),
            Request::RotateKeys => {
                let rotated = self.edges.rotate.send(RotateKeys).await;
                rotated
                    .map_err(Failure::from)
                    .and_then(|rotated| rotated.map_err(Failure::from))?;
                tracing::info!("the keys of the registrations are rotated");
                Ok(Answer::Rotated)
            }
            Request::Export {
                case,
                override_reason,
            } => {
                let (id, person, proof) = self.confirmed(&case, override_reason).await?;
                let lines_max = usize::try_from(self.config.lines_max).unwrap_or(usize::MAX);
                let report = self.report(&person, lines_max).await?;
                self.accessed(id, &person, proof).await;
                Ok(Answer::Report(Box::new(report)))
            }
            Request::Send {
                case,
                override_reason,
            } => {
                let (id, person, proof) = self.confirmed(&case, override_reason).await?;
                self.send_report(id, person, proof).await
            }
            Request::Erase {
                case,
                override_reason,
            } => {
                let (id, person, proof) = self.confirmed(&case, override_reason).await?;
                let erased = self.erase(&person, Some(&id), proof).await?;
                Ok(Answer::Erased {
                    lines: erased.lines(),
                })
            }
            Request::Close { case } => {
                let id = self.known(&case)?;
                let now = self.now();
                self.change(|cases| cases.close(&id, Outcome::Closed, now))
                    .await?;
                Ok(Answer::Closed)
            }
        }
    }

    async fn accessed(&self, case: CaseId, person: &Person, proof: Proof) {
        count(&self.counters.accesses);
        let account = match person {
            Person::Account(account) => Some(account.clone()),
            Person::Token(_) | Person::Registration(_) => None,
        };
        self.record(JournalEvent::Accessed(Box::new(AccessedEvent {
            account,
            case: Some(case),
            proof,
        })))
        .await;
    }

    /// Sends a report to the account that it is about, and to nobody else.
    async fn send_report(
        &self,
        case: CaseId,
        person: Person,
        proof: Proof,
    ) -> Result<Answer, Refusal> {
        let Person::Account(account) = &person else {
            return Err(Refusal::new("the case is about no account: use --out"));
        };
        let service = self.service(None)?;
        let from = BareJid::new(&self.config.localpart, service);
        let report = self.report(&person, COMMAND_LINES_MAX).await?;
        let pieces = sessions::pieces(&report.lines(), &report.json(), PIECE_BYTES_MAX);
        let halves: [fn(&sessions::Piece) -> &Vec<String>; 2] =
            [|piece| &piece.lines, |piece| &piece.json];
        let texts = halves
            .iter()
            .flat_map(|half| pieces.iter().map(half))
            .filter(|lines| !lines.is_empty());
        let mut messages = 0;
        for lines in texts {
            let message = || SendMessage {
                from: from.clone(),
                to: account.clone(),
                text: lines.join("\n"),
            };
            if !self.post(message).await {
                return Err(Refusal::new(
                    "no message can be sent now: the service has to run and to serve its first domain",
                ));
            }
            messages += 1;
        }
        self.accessed(case, &person, proof).await;
        Ok(Answer::Sent {
            account: account.as_str().to_owned(),
            messages,
        })
    }

    /// Sends a message by whoever sends for its domain.
    async fn post(&self, message: impl Fn() -> SendMessage) -> bool {
        let posts = self.posts.borrow().clone();
        for post in posts {
            let sent = post.send(message()).timeout(SYNC_LIMIT).await;
            if sent.unwrap_or(false) {
                return true;
            }
        }
        false
    }

    /// The domain that was named, or the first.
    fn service(&self, named: Option<&str>) -> Result<Domain, Refusal> {
        let known = match named {
            Some(name) => self.services.iter().find(|known| known.as_str() == name),
            None => self.services.first(),
        };
        known
            .cloned()
            .ok_or_else(|| Refusal::new("that domain is not served"))
    }

    async fn open(&self, account: &str, service: Option<String>) -> Result<Answer, Refusal> {
        let account = cases::account(account).ok_or_else(|| Refusal::new("that is no bare JID"))?;
        let service = self.service(service.as_deref())?;
        let address = BareJid::new(&self.config.localpart, service);
        let now = self.now();
        let opened = self
            .change(|cases| {
                cases.open(
                    account.clone(),
                    address.clone(),
                    &self.key,
                    &self.config,
                    now,
                )
            })
            .await?;
        match opened {
            Ok(Some((id, code, expires_at))) => {
                tracing::info!(case = %id, "a case is opened");
                Ok(Answer::Opened {
                    case: id.to_string(),
                    address: address.as_str().to_owned(),
                    code: code.as_str().to_owned(),
                    expires_at: time::text(expires_at),
                })
            }
            Ok(None) => Err(full()),
            Err(_) => Err(self.failed().into()),
        }
    }

    async fn open_by_secret(
        &self,
        node: &str,
        secret: &str,
        service: Option<String>,
    ) -> Result<Answer, Refusal> {
        let services = match service {
            Some(name) => vec![self.service(Some(&name))?],
            None => self.services.clone(),
        };
        let (Ok(node), Ok(secret)) = (NodeId::new(node), Secret::new(secret)) else {
            return Err(Refusal::new("node or secret is empty or too long"));
        };
        let find = FindRegistration {
            services,
            node,
            secret,
        };
        let asked = self.edges.find.send(find).timeout(READ_LIMIT).await;
        let found = asked
            .map_err(Failure::from)
            .and_then(|found| found.map_err(Failure::from))?;
        let registration = found.ok_or_else(|| {
            Refusal::new("no registration has this node and secret, or it has ended")
        })?;
        self.open_proven(Person::Registration(registration), Proof::NodeAndSecret)
            .await
    }

    async fn open_by_token(&self, token: &str) -> Result<Answer, Refusal> {
        let token = DeviceToken::parse(token)
            .map_err(|_| Refusal::new("that is no device token in hex"))?;
        self.open_proven(Person::Token(token), Proof::DeviceToken)
            .await
    }

    async fn open_proven(&self, person: Person, proof: Proof) -> Result<Answer, Refusal> {
        let now = self.now();
        let opened = self
            .change(|cases| cases.open_proven(person, proof, &self.config, now))
            .await?;
        match opened {
            Ok(Some(id)) => Ok(Answer::OpenedProven {
                case: id.to_string(),
                proof: proof.as_str().to_owned(),
            }),
            Ok(None) => Err(full()),
            Err(_) => Err(self.failed().into()),
        }
    }

    fn list(&self) -> Answer {
        let now = self.now();
        let cases = self.cases.borrow();
        let lines = cases.all().iter().map(|case| {
            let (person, proof, until) = match &case.state {
                State::Open(open) => (
                    Some(open.account.as_str().to_owned()),
                    None,
                    Some(time::text(open.expires_at)),
                ),
                State::Confirmed { person, proof, .. } => {
                    let person = match person {
                        Person::Account(account) => account.as_str().to_owned(),
                        Person::Token(_) => "a device token".to_owned(),
                        Person::Registration(_) => "a node and its secret".to_owned(),
                    };
                    (Some(person), Some(proof.as_str().to_owned()), None)
                }
                State::Closed { .. } => (None, None, None),
            };
            CaseLine {
                case: case.id.to_string(),
                opened_at: time::text(case.opened_at),
                state: case.state_name(now).to_owned(),
                person,
                proof,
                code_expires_at: until,
            }
        });
        Answer::Cases(lines.collect())
    }

    fn known(&self, case: &str) -> Result<CaseId, Refusal> {
        let id = CaseId::new(case).ok();
        id.filter(|id| self.cases.borrow().case(id).is_some())
            .ok_or_else(|| Refusal::new("there is no such case; campanile privacy list shows them"))
    }

    /// The person of a confirmed case. An operator's word makes it one, and goes to the journal first.
    async fn confirmed(
        &self,
        case: &str,
        override_reason: Option<String>,
    ) -> Result<(CaseId, Person, Proof), Refusal> {
        let id = self.known(case)?;
        if self.is_open(&id)
            && let Some(reason) = override_reason
        {
            if reason.trim().is_empty() {
                return Err(Refusal::new("an override needs a reason"));
            }
            if reason.len() > OverriddenEvent::REASON_BYTES_MAX {
                return Err(Refusal::new(
                    "the reason of an override is too long for the journal: 4096 bytes at most",
                ));
            }
            let overridden = OverriddenEvent {
                case: id.clone(),
                reason: reason.into(),
            };
            self.record_durably(JournalEvent::Overridden(Box::new(overridden)))
                .await?;
            let now = self.now();
            self.change(|cases| cases.confirm_by_override(&id, now))
                .await?;
            tracing::warn!(case = %id, "an operator answers for the identity in a case");
        }
        let cases = self.cases.borrow();
        match cases.case(&id).map(|case| &case.state) {
            Some(State::Confirmed { person, proof, .. }) => Ok((id, person.clone(), *proof)),
            Some(State::Open(_)) => Err(Refusal::new(
                "the case is not confirmed: the person has to send the code first; with proof by other \
                 means use --override \"reason\", which is journalled",
            )),
            Some(State::Closed { .. }) | None => Err(Refusal::new("the case is closed")),
        }
    }

    fn is_open(&self, id: &CaseId) -> bool {
        let cases = self.cases.borrow();
        cases
            .case(id)
            .is_some_and(|case| matches!(case.state, State::Open(_)))
    }
}

fn full() -> Refusal {
    Refusal::new("there are as many cases as privacy.cases_max allows: close some")
}
