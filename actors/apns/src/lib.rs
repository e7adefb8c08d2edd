//! APNs client: connection pools over h2, provider tokens, verdicts.
//!
//! [`Upstreams::prepare`] loads keys and checks the configuration once. [`provider_tokens::start`] then
//! runs one signer for the process, and [`pool::start`] one pool actor per lane. A push enters as
//! [`messages::DeliverBatch`] and leaves as exactly one outcome per ticket; what else the verdict means
//! goes out as [`messages::TouchBatch`] and [`messages::RejectedTokens`].
//!
//! | file | noun |
//! |---|---|
//! | `pool` | the actor of a lane: takes pushes in, ticks, drains |
//! | `route` | the pushes of one lane for one endpoint and key, and the connections that take them |
//! | `waiting` | what is not on the wire, at most one push per registration |
//! | `turns` | whose push goes next: the owners of the publishing servers take turns |
//! | `connection` | one connection as one task: sends, reads answers, pings, notices its end |
//! | `connect`, `proxy` | name look-up to first SETTINGS |
//! | `class` | what an operator sets for a class of notifications |
//! | `signing_key`, `certificate` | who we are to APNs |
//! | `token_file` | the provider token in use, for the next start and for other processes |
//! | `verdict` | what is done about an answer |
//! | `ledger` | outcomes owed, and all that is told to other actors |
//! | `reason`, `reply`, `request`, `payload`, `jwt` | the wire, without any state |
//! | `guard`, `breaker`, `alarm`, `backoff` | when not to act |
//! | `lately` | what is remembered for a while |
//!
//! What may be sent again, and when:
//!
//! | what happened | the push |
//! |---|---|
//! | never written, refused, above the last stream of a GOAWAY | goes again at once, after many times with a pause |
//! | connection lost or no answer in time: perhaps processed | goes again with the same `apns-id`: at once the first time, then a few times after a pause |
//! | 500, 503 | goes again after a pause while it is fresh |
//! | 429 for the device | answered; it and all later ones go as one after the hold |
//! | a newer one for the registration comes while it waits | answered; the newer one takes its place |
//! | provider token expired | waits for a newer one, goes again once |
//! | no connection | stays queued while it is fresh |
//! | its registration ends or gets another device token while it waits | answered, not sent |

mod alarm;
mod backoff;
#[cfg(feature = "bench")]
pub mod bench;
mod breaker;
mod certificate;
mod class;
mod config;
mod connect;
mod connection;
mod error;
mod guard;
mod jwt;
mod lately;
mod ledger;
mod paced;
mod payload;
pub mod pool;
pub mod provider_tokens;
mod proxy;
mod push;
mod reason;
mod reply;
mod request;
mod route;
mod signing_key;
mod tls;
mod token_file;
mod turns;
mod upstream;
mod verdict;
mod waiting;

pub use class::{Badge, ClassConfig, Collapse, InterruptionLevel, PushType};
pub use config::{AppConfig, Config, Environment, Shown};
pub use connect::Names;
pub use error::Error;
pub use upstream::{Upstreams, inspect, warnings};
