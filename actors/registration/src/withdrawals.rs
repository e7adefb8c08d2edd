//! Who is told that registrations ended or changed, so that what waits to be sent for them does not go.

use std::mem;
use std::sync::{Arc, Mutex};

use actix::Recipient;
use messages::{Withdraw, Withdrawal};

use crate::writer::lock;

/// Everybody who wants to be told. Clones share the list, which is locked for moments only.
#[derive(Clone, Default)]
pub(crate) struct Subscribers(Arc<Mutex<Vec<Recipient<Withdraw>>>>);

impl Subscribers {
    /// Adds one.
    pub(crate) fn add(&self, subscriber: Recipient<Withdraw>) {
        lock(&self.0).push(subscriber);
    }

    /// Tells all of them, in messages of bounded size. Who has ended is forgotten.
    pub(crate) fn tell(&self, mut items: Vec<Withdrawal>) {
        let mut subscribers = lock(&self.0);
        while !items.is_empty() && !subscribers.is_empty() {
            let rest = items.split_off(items.len().min(Withdraw::ITEMS_MAX));
            let items = mem::replace(&mut items, rest);
            subscribers.retain(|subscriber| {
                let items = items.clone();
                subscriber.try_send(Withdraw { items }).is_ok()
            });
        }
    }
}
