//! Serves what a peer sends on a stream that we opened to it (XEP-0288).
//!
//! It is a session without a socket: it has the tickets, and its answers take the egress, which is the one
//! that has the stream.

use std::cell::RefCell;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use actix::Addr;
use messages::Domain;
use tokio::time::{Instant, sleep_until};

use crate::accounts::Account;
use crate::gate::Lane;
use crate::jid::Jid;
use crate::service::Service;
use crate::session::{Batch, Core, Order, Pause, Rule, Session};
use crate::stream::Fault;
use crate::stream::outbound::Connection;
use crate::throttle::Throttle;
use crate::xml::XmlError;
use crate::xml::splitter::Unit;
use crate::xml::stream_error::StreamCondition;

/// The quiet time after which stanzas may come faster for a while.
pub(crate) const BURST: Duration = Duration::from_secs(1);

/// What is taken in on one stream.
pub(crate) struct Intake {
    core: Rc<Core>,
    session: Addr<Session>,
    rule: Pair,
    throttle: RefCell<Throttle>,
}

impl Drop for Intake {
    /// The session goes on until all that was asked is answered.
    fn drop(&mut self) {
        self.core.open.set(false);
        self.core.settled.notify_one();
    }
}

impl Intake {
    /// For the stream from `local` to `remote`, whose certificate proves it.
    pub(crate) fn start(
        lane: &Rc<Lane>,
        local: &Domain,
        remote: &Domain,
        account: Account,
    ) -> Self {
        let (core, session) = Session::begin(Rc::clone(lane), account, None);
        Self {
            core,
            session,
            rule: Pair {
                lane: Rc::clone(lane),
                local: local.clone(),
                remote: remote.clone(),
            },
            throttle: RefCell::new(Throttle::new(lane.ingress.config())),
        }
    }

    /// Takes nothing more.
    pub(crate) fn stop(&self) {
        self.core.order.set(Order::Drain);
    }

    /// Whether all that was asked is answered.
    pub(crate) fn is_settled(&self) -> bool {
        self.core.is_settled()
    }

    /// Takes what is there and reads on once. Dropping the future loses nothing.
    ///
    /// # Errors
    /// What ends the stream.
    pub(crate) async fn take(&self, framed: &mut Connection) -> Result<(), Fault> {
        if self.core.order.get() != Order::Run {
            return pending().await;
        }
        let mut batch = Batch::new(&self.core.lane);
        let taken = self.take_units(framed, &mut batch);
        self.core.pass_on(&self.session, &mut batch);
        match taken? {
            None => return framed.fill().await,
            Some(Pause::Turn) => {
                framed.rest().await;
                return Ok(());
            }
            Some(Pause::Until(later)) => sleep_until(later).await,
            // What was passed on may have come back at once.
            Some(Pause::Full) if !self.core.is_full() => {}
            Some(Pause::Full) => {
                self.core.stalled.set(true);
                self.core.lane.counters.stalls.add(1);
                self.core.changed.notified().await;
                self.core.stalled.set(false);
            }
        }
        framed.rested();
        Ok(())
    }

    /// Takes all whole units off the buffer. Returns why it stopped before, if it did.
    fn take_units(
        &self,
        framed: &mut Connection,
        batch: &mut Batch,
    ) -> Result<Option<Pause>, Fault> {
        let now = Instant::now();
        loop {
            if self.core.is_full() {
                return Ok(Some(Pause::Full));
            }
            let (len, is_blank) = match framed.unit()? {
                Unit::Element(len) => (len, false),
                Unit::Whitespace(len) => (len, true),
                Unit::Incomplete => return Ok(None),
                Unit::Close(_) => return Err(Fault::Ended),
                Unit::Header(_) => return Err(XmlError::BadFormat.into()),
            };
            if framed.is_turn_over() {
                return Ok(Some(Pause::Turn));
            }
            let mut throttle = self.throttle.borrow_mut();
            let account = &self.core.account;
            let taken = match is_blank {
                true => throttle.take_blank(account, len, now),
                false => throttle.take(account, len, now),
            };
            if let Err(later) = taken {
                return Ok(Some(Pause::Until(later)));
            }
            if is_blank {
                framed.consume(len);
                continue;
            }
            // What is no stanza was settled before, or is for nobody here.
            let _no_stanza = self.core.take_stanza(framed, len, &self.rule, batch)?;
            framed.consume(len);
        }
    }
}

/// Only the peer that the stream leads to may send, and only to the domain it comes from.
struct Pair {
    lane: Rc<Lane>,
    local: Domain,
    remote: Domain,
}

impl Rule for Pair {
    fn allow(&self, from: &str, to: &str) -> Result<Option<(Domain, &Service)>, Fault> {
        let is = |address: &str, domain: &Domain| {
            address == domain.as_str() || Jid::parse(address).is_ok_and(|jid| jid.domain == *domain)
        };
        if !is(from, &self.remote) {
            return Err(Fault::refuse(
                StreamCondition::InvalidFrom,
                "a stanza came from a domain that is not authenticated on this stream",
            ));
        }
        let service = self.lane.ingress.service(&self.local);
        match service.filter(|_| is(to, &self.local)) {
            Some(service) => Ok(Some((self.remote.clone(), service))),
            None => Err(Fault::refuse(
                StreamCondition::HostUnknown,
                "a stanza came for another domain than that of this stream",
            )),
        }
    }

    fn odd(&self, fault: Fault) -> Result<(), Fault> {
        Err(fault)
    }
}
