//! How fast the elements of one stream are taken.

use std::time::Duration;

use tokio::time::Instant;

use crate::Config;
use crate::accounts::Account;
use crate::pace::{Pace, Taken};
use crate::shortages::Shortage;

/// The quiet time after which elements may come faster for a while.
const BURST: Duration = Duration::from_secs(1);
/// White space at a time that counts for nothing.
const BLANK_BYTES: usize = 256;

/// The pace of a stream, within that of all streams of its source.
pub(crate) struct Throttle {
    pace: Pace,
    taken: Taken,
    /// When the element that is next has its turn, if it is counted already.
    turn: Option<Instant>,
}

impl Throttle {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            pace: Pace::per_second(config.stanzas_per_second_max, BURST),
            taken: Taken::default(),
            turn: None,
        }
    }

    /// Takes the next element, of `len` bytes.
    ///
    /// # Errors
    /// When it has its turn, if that is not now. It is the next one until then.
    pub(crate) fn take(
        &mut self,
        account: &Account,
        len: usize,
        now: Instant,
    ) -> Result<(), Instant> {
        let turn = match self.turn {
            Some(turn) => turn,
            None => {
                let taken = self.taken.take_stanza(self.pace, len, now);
                taken.inspect_err(|_| account.slowed(Shortage::StreamPace))?;
                let turn = account.turn(len, now);
                if turn > now {
                    account.slowed(Shortage::SourcePace);
                }
                turn
            }
        };
        self.turn = (turn > now).then_some(turn);
        self.turn.map_or(Ok(()), Err)
    }

    /// Takes white space, of `len` bytes. A little is free: it shows that somebody is there, or stands between
    /// stanzas for people to read.
    ///
    /// # Errors
    /// Those of [`Self::take`].
    pub(crate) fn take_blank(
        &mut self,
        account: &Account,
        len: usize,
        now: Instant,
    ) -> Result<(), Instant> {
        match len <= BLANK_BYTES {
            true => Ok(()),
            false => self.take(account, len, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::{Accounts, Source};

    #[tokio::test(start_paused = true)]
    async fn the_slower_pace_holds_and_what_waits_is_counted_once() {
        let config = Config {
            stanzas_per_second_max: 5,
            stanzas_per_second_per_address_max: 8,
            ..Config::default()
        };
        let accounts = Accounts::new(&config);
        let account = accounts.of(Source::address([192, 0, 2, 1].into()));
        let mut streams = [Throttle::new(&config), Throttle::new(&config)];
        let start = Instant::now();
        let passed = streams.each_mut().map(|stream| {
            (0..20)
                .filter(|_| stream.take(&account, 1, start).is_ok())
                .count()
        });
        // The first stops at its own pace, the second at that of both.
        assert_eq!(passed, [5, 3]);
        let turns = streams
            .each_mut()
            .map(|stream| stream.take(&account, 1, start).unwrap_err() - start);
        let expected = [5, 8].map(|pace| Duration::from_secs(1) / pace);
        assert_eq!(turns, expected);
        let (_, lines) = accounts.shortages().counts();
        assert_eq!(lines, 2, "of each pace");
        let [_, second] = &mut streams;
        let turn = start + expected[1];
        assert!(second.take(&account, 1, turn).is_ok());
        assert!(second.take(&account, 1, turn).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn much_white_space_counts_and_a_little_does_not() {
        let config = Config {
            stanzas_per_second_max: 5,
            ..Config::default()
        };
        let account = Accounts::new(&config).of(Source::address([192, 0, 2, 1].into()));
        let now = Instant::now();
        let passed = |len| {
            let mut stream = Throttle::new(&config);
            (0..20)
                .filter(|_| stream.take_blank(&account, len, now).is_ok())
                .count()
        };
        assert_eq!((passed(1), passed(256), passed(257)), (20, 20, 5));
    }
}
