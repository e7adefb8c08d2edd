//! The store on disk, by itself and behind the cache, does what the oracle does, whatever is asked in whatever
//! order.

use std::sync::Arc;

use messages::{AccountKey, ErrorReason, RegistrationKey, UnixSeconds};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use super::cached::CachedStore;
use super::memory::MemoryStore;
use super::sled::SledStore;
use super::{PushTimes, Record, RegistrationStore};

/// Few of each, so that operations meet.
const KEYS: u8 = 6;
const ACCOUNTS: u8 = 3;
const TOKENS: [&str; 3] = ["aa", "bb", "cc"];
const APPS: [&str; 2] = ["app", "beta"];

#[derive(Clone, Debug)]
enum Operation {
    Put {
        key: u8,
        account: u8,
        token: usize,
        app: usize,
        renewed_at: u64,
    },
    Remove(u8),
    Read(u8),
    Touch(u8, PushTimes),
    Page(Option<u8>, usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let times = (of(0_u64..9), of((0_u64..9, "[a-z]")));
    prop_oneof![
        4 => (0..KEYS, 0..ACCOUNTS, 0..TOKENS.len(), 0..APPS.len(), 0_u64..9).prop_map(
            |(key, account, token, app, renewed_at)| Operation::Put {
                // In life an account's registration has a key that no other account has.
                key: key * ACCOUNTS + account,
                account,
                token,
                app,
                renewed_at,
            }
        ),
        2 => (0..KEYS * ACCOUNTS).prop_map(Operation::Remove),
        4 => (0..KEYS * ACCOUNTS).prop_map(Operation::Read),
        2 => (0..KEYS * ACCOUNTS, times).prop_map(|(key, (success, error))| {
            let times = PushTimes {
                last_success: success.map(UnixSeconds),
                last_error: error
                    .map(|(at, reason)| (UnixSeconds(at), ErrorReason::foreign(&reason))),
                acceptance: None,
            };
            Operation::Touch(key, times)
        }),
        1 => (of(0..KEYS * ACCOUNTS), 0_usize..8)
            .prop_map(|(after, limit)| Operation::Page(after, limit)),
    ]
}

fn key(key: u8) -> RegistrationKey {
    RegistrationKey([key; 16])
}

/// Does an operation and tells what came of it.
fn apply(store: &dyn RegistrationStore, operation: &Operation) -> String {
    match operation {
        Operation::Put {
            key: k,
            account,
            token,
            app,
            renewed_at,
        } => {
            let record = Record {
                registered_at: UnixSeconds(1),
                renewed_at: UnixSeconds(*renewed_at),
                account: AccountKey([*account; 16]),
                salt: [*k; 32],
                mask: [0; 32],
                acceptance: None,
                device_token: TOKENS[*token],
                node: "node",
                app: APPS[*app],
                service: "push.example",
                domain: "chat.example",
            };
            store.put(key(*k), &record).unwrap();
            String::new()
        }
        Operation::Remove(k) => store.remove(key(*k)).unwrap().to_string(),
        Operation::Read(k) => {
            let mut shown = String::new();
            store
                .read(key(*k), &mut |record| shown = show(*k, record))
                .unwrap();
            shown
        }
        Operation::Touch(k, times) => store.touch(key(*k), times).unwrap().to_string(),
        Operation::Page(after, limit) => {
            let mut shown = Vec::new();
            let page = store
                .page(after.map(key), *limit, &mut |key, record| {
                    shown.push((key.0[0], record.renewed_at));
                })
                .unwrap();
            let last = page.last.map(|key| key.0[0]);
            format!("{shown:?} {} {} {last:?}", page.scanned, page.unreadable)
        }
    }
}

/// All that can be asked of a store.
fn contents(store: &dyn RegistrationStore) -> Vec<String> {
    let mut shown = Vec::new();
    for k in 0..KEYS * ACCOUNTS {
        store
            .read(key(k), &mut |record| shown.push(show(k, record)))
            .unwrap();
        shown.push(format!("{:?}", store.times(key(k)).unwrap()));
    }
    for account in 0..ACCOUNTS {
        store
            .of_account(AccountKey([account; 16]), &mut |key, record| {
                shown.push(show(key.0[0], record));
            })
            .unwrap();
    }
    for (app, token) in APPS.iter().flat_map(|app| TOKENS.map(|token| (app, token))) {
        shown.push(format!("{app} {token}"));
        let mut after = None;
        loop {
            after = store
                .of_token(app, token, after, 2, &mut |key, record| {
                    shown.push(show(key.0[0], record));
                })
                .unwrap();
            shown.push(format!("{after:?}"));
            if after.is_none() {
                break;
            }
        }
    }
    shown
}

fn show(key: u8, record: &Record<'_>) -> String {
    let Record {
        renewed_at,
        account,
        salt,
        device_token,
        app,
        ..
    } = record;
    format!(
        "{key} {renewed_at:?} {:?} {salt:?} {device_token} {app}",
        account.0
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_disk_agrees_with_the_oracle(operations in vec(operation(), 1..60)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let oracle = MemoryStore::default();
        let disk = SledStore::open(&path, 1 << 20).unwrap();
        disk.initialise(&[]).unwrap();
        for operation in &operations {
            prop_assert_eq!(apply(&disk, operation), apply(&oracle, operation));
        }
        prop_assert_eq!(contents(&disk), contents(&oracle));
        disk.flush().unwrap();
        drop(disk);
        let disk = SledStore::open(&path, 1 << 20).unwrap();
        prop_assert_eq!(contents(&disk), contents(&oracle));
    }

    #[test]
    fn the_cache_agrees_with_the_oracle(
        operations in vec(operation(), 1..120),
        records in 0_u64..20,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let disk = SledStore::open(&directory.path().join("store"), 1 << 20).unwrap();
        let oracle = MemoryStore::default();
        // Room for none, for a few, for all.
        let cached = CachedStore::new(Arc::new(disk), records * 300);
        for operation in &operations {
            prop_assert_eq!(apply(&cached, operation), apply(&oracle, operation));
        }
        // What the first look has kept the second one finds.
        for _ in 0..2 {
            prop_assert_eq!(contents(&cached), contents(&oracle));
        }
    }
}
