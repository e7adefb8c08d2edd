//! The table of unanswered publishes of one stream.
//!
//! A slot is the credit, the key and the iq at once: no free slot, no reading. All iqs of a stream have
//! the same time limit, so the order of insertion is the order of expiry.

use std::collections::VecDeque;
use std::time::Instant;

use messages::{Ticket, redacted_debug};

use crate::xml::stanza::IqHead;

/// Whom to answer, in one allocation.
pub(crate) struct Asker {
    /// Id, from and to, one behind the other.
    text: Box<str>,
    from: usize,
    to: usize,
}

redacted_debug!(Asker);

impl Asker {
    fn new(head: &IqHead<'_>) -> Self {
        let id = head.id.as_deref().unwrap_or_default();
        let text = [id, &head.from, &head.to].concat();
        Self {
            text: text.into(),
            from: id.len(),
            to: id.len() + head.from.len(),
        }
    }

    /// What was copied. Only a publish with an id gets a ticket, so there is one.
    pub(crate) fn head(&self) -> IqHead<'_> {
        IqHead {
            id: self.text.get(..self.from).map(Into::into),
            from: self.text.get(self.from..self.to).unwrap_or_default().into(),
            to: self.text.get(self.to..).unwrap_or_default().into(),
        }
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// How often the slot was used before its present use.
    generation: u32,
    asker: Option<Asker>,
}

/// A table with a fixed number of slots. It knows no time of its own.
#[derive(Debug)]
pub(crate) struct Pending {
    slots_max: usize,
    /// Grows as far as it was ever needed.
    slots: Vec<Slot>,
    /// Slots without an iq.
    free: Vec<u32>,
    /// Tickets in order of insertion. Answered ones stay until they come to the front, or until they
    /// are the larger part.
    order: VecDeque<(Ticket, Instant)>,
    late: u64,
}

impl Pending {
    /// A table for at most `slots_max` unanswered iqs.
    pub(crate) const fn new(slots_max: u32) -> Self {
        Self {
            slots_max: slots_max as usize,
            slots: Vec::new(),
            free: Vec::new(),
            order: VecDeque::new(),
            late: 0,
        }
    }

    /// Takes a slot for an iq that has to be answered by `deadline`, which must not be before that of
    /// the ticket before. `None` when no slot is free.
    pub(crate) fn take_ticket(&mut self, head: &IqHead<'_>, deadline: Instant) -> Option<Ticket> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < self.slots_max => {
                self.slots.push(Slot::default());
                u32::try_from(self.slots.len() - 1).ok()?
            }
            None => return None,
        };
        let tenant = self.slots.get_mut(slot as usize)?;
        tenant.asker = Some(Asker::new(head));
        let ticket = Ticket {
            slot,
            generation: tenant.generation,
        };
        if self.order.len() >= 2 * self.slots_max {
            let slots = &self.slots;
            self.order.retain(|(ticket, _)| is_open(slots, *ticket));
        }
        self.order.push_back((ticket, deadline));
        Some(ticket)
    }

    /// Frees the slot of a ticket. `None`, and counted as late, when the ticket was answered before.
    pub(crate) fn resolve(&mut self, ticket: Ticket) -> Option<Asker> {
        let asker = self.release(ticket);
        self.late += u64::from(asker.is_none());
        asker
    }

    /// Frees the slot of the oldest iq if its deadline has come. Ask again until `None`.
    pub(crate) fn overdue(&mut self, now: Instant) -> Option<Asker> {
        while let Some((ticket, deadline)) = self.order.front().copied() {
            if !is_open(&self.slots, ticket) {
                self.order.pop_front();
            } else if deadline <= now {
                self.order.pop_front();
                return self.release(ticket);
            } else {
                break;
            }
        }
        None
    }

    /// Frees all slots, oldest iq first.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Asker> {
        std::iter::from_fn(|| {
            loop {
                let (ticket, _) = self.order.pop_front()?;
                if let Some(asker) = self.release(ticket) {
                    return Some(asker);
                }
            }
        })
    }

    /// Unanswered iqs.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether every iq is answered.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the next [`Pending::take_ticket`] would find no slot.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.slots_max
    }

    /// Outcomes that came for iqs already answered.
    pub(crate) const fn late(&self) -> u64 {
        self.late
    }

    fn release(&mut self, ticket: Ticket) -> Option<Asker> {
        let slot = self.slots.get_mut(ticket.slot as usize)?;
        if slot.generation != ticket.generation {
            return None;
        }
        let asker = slot.asker.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(ticket.slot);
        Some(asker)
    }
}

fn is_open(slots: &[Slot], ticket: Ticket) -> bool {
    slots
        .get(ticket.slot as usize)
        .is_some_and(|slot| slot.generation == ticket.generation && slot.asker.is_some())
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn head(id: &str) -> IqHead<'_> {
        IqHead {
            id: Some(id.into()),
            from: "chat.test".into(),
            to: "push.test".into(),
        }
    }

    fn id(asker: &Asker) -> String {
        asker.head().id.unwrap().into_owned()
    }

    #[test]
    fn an_asker_keeps_all_three_parts() {
        let mut pending = Pending::new(1);
        let now = Instant::now();
        let head = IqHead {
            id: Some("i\u{e9}&1".into()),
            from: "a@b/c".into(),
            to: "push.test".into(),
        };
        let ticket = pending.take_ticket(&head, now).unwrap();
        let asker = pending.resolve(ticket).unwrap();
        let kept = asker.head();
        assert_eq!(kept.id.as_deref(), Some("i\u{e9}&1"));
        assert_eq!((&*kept.from, &*kept.to), ("a@b/c", "push.test"));
    }

    #[test]
    fn a_second_outcome_finds_nothing_and_is_counted() {
        let mut pending = Pending::new(1);
        let now = Instant::now();
        let first = pending.take_ticket(&head("1"), now).unwrap();
        assert!(pending.is_full());
        assert!(pending.take_ticket(&head("x"), now).is_none());
        assert_eq!(id(&pending.resolve(first).unwrap()), "1");
        let second = pending.take_ticket(&head("2"), now).unwrap();
        assert_eq!(first.slot, second.slot);
        assert!(pending.resolve(first).is_none());
        assert!(
            pending
                .resolve(Ticket {
                    slot: 9,
                    generation: 0
                })
                .is_none()
        );
        assert_eq!(pending.late(), 2);
        assert_eq!(id(&pending.resolve(second).unwrap()), "2");
        assert!(pending.is_empty());
    }

    #[test]
    fn one_slow_iq_does_not_make_the_order_grow() {
        let mut pending = Pending::new(4);
        let now = Instant::now();
        let slow = pending.take_ticket(&head("slow"), now).unwrap();
        for _ in 0..1000 {
            let ticket = pending.take_ticket(&head("quick"), now).unwrap();
            pending.resolve(ticket).unwrap();
            assert!(pending.order.len() <= 8);
        }
        assert_eq!(id(&pending.overdue(now).unwrap()), "slow");
        assert!(pending.resolve(slow).is_none());
    }

    /// What a step of the property does.
    #[derive(Clone, Copy, Debug)]
    enum Act {
        Take,
        Resolve(usize),
        Wait(u64),
        Drain,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            8 => Just(Act::Take),
            6 => any::<usize>().prop_map(Act::Resolve),
            3 => (0..40u64).prop_map(Act::Wait),
            1 => Just(Act::Drain),
        ]
    }

    proptest! {
        #[test]
        fn behaves_as_a_plain_queue(slots in 1..6u32, acts in prop::collection::vec(act(), 0..200)) {
            let limit = Duration::from_millis(50);
            let mut now = Instant::now();
            let mut pending = Pending::new(slots);
            let mut model: VecDeque<(String, Instant)> = VecDeque::new();
            let mut issued: Vec<(Ticket, String)> = Vec::new();
            let mut answers: HashMap<String, u32> = HashMap::new();
            let mut late = 0;
            for act in acts {
                match act {
                    Act::Take => {
                        let name = issued.len().to_string();
                        match pending.take_ticket(&head(&name), now + limit) {
                            Some(ticket) => {
                                prop_assert!(model.len() < slots as usize);
                                model.push_back((name.clone(), now + limit));
                                issued.push((ticket, name));
                            }
                            None => prop_assert_eq!(model.len(), slots as usize),
                        }
                    }
                    Act::Resolve(any) if !issued.is_empty() => {
                        let (ticket, name) = &issued[any % issued.len()];
                        let open = model.iter().position(|(open, _)| open == name);
                        let found = pending.resolve(*ticket);
                        prop_assert_eq!(found.as_ref().map(id), open.map(|_| name.clone()));
                        match open {
                            Some(at) => {
                                model.remove(at);
                                *answers.entry(name.clone()).or_default() += 1;
                            }
                            None => late += 1,
                        }
                    }
                    Act::Resolve(_) => {}
                    Act::Wait(millis) => {
                        now += Duration::from_millis(millis);
                        while let Some(asker) = pending.overdue(now) {
                            let (name, deadline) = model.pop_front().unwrap();
                            prop_assert!(deadline <= now);
                            prop_assert_eq!(&id(&asker), &name);
                            *answers.entry(name).or_default() += 1;
                        }
                        prop_assert!(model.front().is_none_or(|(_, deadline)| *deadline > now));
                    }
                    Act::Drain => {
                        let drained: Vec<_> = pending.drain().map(|asker| id(&asker)).collect();
                        let open: Vec<_> = model.drain(..).map(|(name, _)| name).collect();
                        prop_assert_eq!(&drained, &open);
                        for name in drained {
                            *answers.entry(name).or_default() += 1;
                        }
                    }
                }
                prop_assert_eq!(pending.len(), model.len());
                prop_assert_eq!(pending.is_empty(), model.is_empty());
                prop_assert_eq!(pending.is_full(), model.len() == slots as usize);
                prop_assert_eq!(pending.late(), late);
            }
            let rest: Vec<_> = pending.drain().map(|asker| id(&asker)).collect();
            for name in rest {
                *answers.entry(name).or_default() += 1;
            }
            prop_assert_eq!(answers.len(), issued.len());
            prop_assert!(answers.values().all(|times| *times == 1));
        }
    }
}
