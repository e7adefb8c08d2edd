//! Registrations are made, renewed, ended and swept.

use std::collections::HashMap;
use std::time::Duration;

use messages::{
    AppId, Change, Claim, DeadPush, DeadPushBatch, DeviceToken, EraseRegistrations, ErrorReason,
    FindAccountKeys, JournalEvent, NodeId, Origin, OutcomeBatch, PushOutcome, RegistrationKey,
    RegistryError, RejectedToken, Rejection, RemoveTokens, SubscribeWithdrawals, SweepExpired,
    SweptPage, Ticket, Touch, TouchBatch, UnixMillis, UnixSeconds, Withdraw, Withdrawal,
};
use registration::registry::Handles;
use testkit::Collector;

use crate::fixture::{
    ADA, EVE, Fixture, HERE, NODE, OTHER_NODE, START, account, after, counter, drain, only,
    register, request, secret, token, touch, unregister,
};

#[actix::test]
async fn registering_again_keeps_the_secret_and_takes_the_token() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let first = secret(&registry, ADA, NODE, "a").await;
    assert_eq!(first.len(), 64);
    fixture.at(90);
    assert_eq!(secret(&registry, ADA, NODE, "b").await, first);
    let description = only(&registrations, ADA);
    assert_eq!(description.registered_at, START);
    assert_eq!(description.renewed_at, after(90));
    assert!(description.device_token == token("b"));
    assert!(description.node.as_str() == NODE && description.app.as_str() == "app");
    assert_eq!(description.domain.as_str(), "chat.example");
    assert_eq!(description.service.as_str(), "push.example");
    // The old token leads nowhere any more.
    assert_eq!(dead(&registry, "a", 1_000_000).await, 0);
}

#[actix::test]
async fn the_journal_is_told_what_happened_once_it_is_durable() {
    let fixture = Fixture::new();
    let (_registrations, registry, mut journal) = fixture.start_with_journal();
    secret(&registry, ADA, NODE, "a").await;
    fixture.at(1);
    secret(&registry, ADA, NODE, "a").await;
    secret(&registry, ADA, OTHER_NODE, "a").await;
    fixture.at(5);
    assert_eq!(dead(&registry, "a", 4_000).await, 1);
    secret(&registry, EVE, NODE, "e").await;
    assert_eq!(unregister(&registry, ADA, NODE).await, 0);
    assert_eq!(unregister(&registry, EVE, NODE).await, 1);
    secret(&registry, ADA, NODE, "b").await;
    fixture.at(100);
    let sweep = SweepExpired {
        idle_since: after(50),
        after: None,
        limit: 10,
    };
    registry.sweep.send(sweep).await.unwrap().unwrap();

    let mut keys = HashMap::new();
    for name in [ADA, EVE] {
        let find = FindAccountKeys {
            account: account(name),
        };
        let found = registry.accounts.send(find).await.unwrap();
        assert_eq!(found.len(), 1);
        keys.insert(found[0], name);
    }
    assert_eq!(keys.len(), 2);
    let mut told = Vec::new();
    while told.len() < 9 {
        for entry in journal.take().await.items {
            let at = entry.at.0 - START.0;
            told.push(match entry.event {
                JournalEvent::Registered(event) => {
                    let what = if event.renewed { "renewed" } else { "made" };
                    let jid = event.account.as_str().to_owned();
                    assert_eq!(event.dialect.as_str(), "v1");
                    (at, what.to_owned(), Some(jid), event.node.as_str() == NODE)
                }
                JournalEvent::Ended(event) => {
                    let jid = event.account.map(|account| account.as_str().to_owned());
                    // With the key of the account, also where nobody named it.
                    let whose = account(keys[&event.account_key]);
                    assert!(jid.as_deref().is_none_or(|jid| jid == whose.as_str()));
                    let cause = format!("{:?}", event.cause);
                    (at, cause, jid, event.node.as_str() == NODE)
                }
                other => panic!("{other:?}"),
            });
        }
    }
    let of = |at, what: &str, jid: Option<&str>, first_node| {
        (at, what.to_owned(), jid.map(str::to_owned), first_node)
    };
    let (ada, eve) = (Some("ada@chat.example"), Some("eve@chat.example"));
    assert_eq!(
        told,
        [
            of(0, "made", ada, true),
            of(1, "renewed", ada, true),
            of(1, "made", ada, false),
            of(1, "Replaced", ada, true),
            of(5, "TokenDead(ErrorReason(\"Unregistered\"))", None, false),
            of(5, "made", eve, true),
            of(5, "Unregistered", eve, true),
            of(5, "made", ada, true),
            of(100, "Idle", None, true),
        ]
    );
    assert!(journal.drain().is_empty());
}

#[actix::test]
async fn who_pushes_is_told_what_became_of_registrations() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let mut told = Collector::<Withdraw>::start();
    let subscriber = told.recipient();
    let subscription = SubscribeWithdrawals { subscriber };
    registry.withdrawals.send(subscription).await.unwrap();
    let ended = |registration| Withdrawal {
        registration,
        change: Change::Ended,
    };

    secret(&registry, ADA, NODE, "a").await;
    let first = only(&registrations, ADA).registration;
    secret(&registry, ADA, NODE, "a").await;
    secret(&registry, ADA, NODE, "b").await;
    let replaced = Withdrawal {
        registration: first,
        change: Change::Replaced {
            app: AppId::new("app"),
            device_token: token("b"),
        },
    };
    assert_eq!(told.take().await.items, [replaced], "and of no renewal");
    let mut other_app = request(ADA, NODE, token("b"));
    other_app.app = AppId::new("other");
    registry.register.send(other_app).await.unwrap().unwrap();
    let replaced = Withdrawal {
        registration: first,
        change: Change::Replaced {
            app: AppId::new("other"),
            device_token: token("b"),
        },
    };
    assert_eq!(told.take().await.items, [replaced]);
    // The device has given up its node.
    secret(&registry, ADA, NODE, "b").await;
    told.take().await;
    secret(&registry, ADA, OTHER_NODE, "b").await;
    assert_eq!(told.take().await.items, [ended(first)]);
    let second = only(&registrations, ADA).registration;
    assert_eq!(unregister(&registry, ADA, OTHER_NODE).await, 1);
    assert_eq!(told.take().await.items, [ended(second)]);

    secret(&registry, ADA, NODE, "a").await;
    let third = only(&registrations, ADA).registration;
    fixture.at(2);
    assert_eq!(dead(&registry, "a", 1_000).await, 1);
    assert_eq!(told.take().await.items, [ended(third)]);

    secret(&registry, ADA, NODE, "a").await;
    let fourth = only(&registrations, ADA).registration;
    let claim = Claim::Account(account(ADA));
    let erase = EraseRegistrations { claim };
    registry.erase.send(erase).await.unwrap().unwrap();
    assert_eq!(told.take().await.items, [ended(fourth)]);

    let many = Withdraw::ITEMS_MAX + 1;
    for n in 0..many {
        let name = format!("{EVE}{}", n / 8);
        let node = format!("node-{n}");
        let device_token = DeviceToken::parse(&format!("{n:064x}")).unwrap();
        let request = request(&name, &node, device_token);
        registry.register.send(request).await.unwrap().unwrap();
    }
    let theirs = (0..many.div_ceil(8)).flat_map(|n| {
        let name = account(&format!("{EVE}{n}"));
        registrations.describe(&name).unwrap()
    });
    let claim = Claim::Registrations(theirs.map(|one| one.registration).collect());
    let erase = EraseRegistrations { claim };
    let erased = registry.erase.send(erase).await.unwrap().unwrap();
    assert_eq!(erased.len(), many);
    assert_eq!(told.take().await.items.len(), Withdraw::ITEMS_MAX);
    assert_eq!(told.take().await.items.len(), 1);
    assert!(told.drain().is_empty());
}

#[actix::test]
async fn a_second_account_with_the_same_node_touches_nothing_of_the_first() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let ada = secret(&registry, ADA, NODE, "a").await;
    let before = only(&registrations, ADA);
    fixture.at(5);
    let eve = secret(&registry, EVE, NODE, "e").await;
    assert_ne!(ada, eve);
    assert_eq!(only(&registrations, ADA), before);
    assert_eq!(unregister(&registry, EVE, NODE).await, 1);
    assert_eq!(unregister(&registry, EVE, NODE).await, 0);
    assert_eq!(only(&registrations, ADA), before);
    assert_eq!(secret(&registry, ADA, NODE, "a").await, ada);
    assert_eq!(unregister(&registry, ADA, NODE).await, 1);
    // A new registration is no continuation of one that ended.
    assert_ne!(secret(&registry, ADA, NODE, "a").await, ada);
}

#[actix::test]
async fn a_device_that_changes_its_node_gives_up_the_old_one() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    secret(&registry, ADA, NODE, "a").await;
    secret(&registry, ADA, OTHER_NODE, "a").await;
    assert_eq!(only(&registrations, ADA).node.as_str(), OTHER_NODE);
    secret(&registry, ADA, NODE, "b").await;
    assert_eq!(registrations.describe(&account(ADA)).unwrap().len(), 2);
}

#[actix::test]
async fn an_account_has_so_many_registrations_and_no_more() {
    let mut fixture = Fixture::new();
    fixture.config.registrations_per_account_max = 2;
    let (registrations, registry) = fixture.start();
    for (node, digit) in [("1", "a"), ("2", "b")] {
        secret(&registry, ADA, node, digit).await;
    }
    let refused = register(&registry, ADA, "3", "c").await.unwrap_err();
    assert_eq!(refused, RegistryError::TooMany);
    // Renewing, replacing, and other accounts are not concerned.
    secret(&registry, ADA, "1", "c").await;
    secret(&registry, ADA, "3", "b").await;
    secret(&registry, EVE, "3", "c").await;
    assert_eq!(registrations.describe(&account(ADA)).unwrap().len(), 2);
    assert_eq!(unregister(&registry, ADA, "2").await, 0);
}

/// All of them end in one go when the token dies.
#[actix::test]
async fn a_device_token_has_so_many_registrations_and_no_more() {
    let mut fixture = Fixture::new();
    fixture.config.registrations_per_device_token_max = 4;
    let (registrations, registry) = fixture.start();
    for name in ["one", "two", "three", "four"] {
        secret(&registry, name, NODE, "a").await;
    }
    Fixture::stop(registrations, registry).await;

    fixture.config.registrations_per_device_token_max = 3;
    let (registrations, registry) = fixture.start();
    let refused = register(&registry, ADA, NODE, "a").await.unwrap_err();
    assert_eq!(refused, RegistryError::Crowded);
    // Those of before are renewed, and one takes the place of the account's own.
    secret(&registry, "one", NODE, "a").await;
    secret(&registry, "one", OTHER_NODE, "a").await;
    assert_eq!(only(&registrations, "one").node.as_str(), OTHER_NODE);
    // Another token, and the same of another app, are not concerned.
    secret(&registry, ADA, NODE, "b").await;
    let mut beta = request(EVE, NODE, token("a"));
    beta.app = AppId::new("beta");
    registry.register.send(beta).await.unwrap().unwrap();
    // Nobody comes in by a renewal with another token, and what was registered stays.
    let refused = register(&registry, ADA, NODE, "a").await.unwrap_err();
    assert_eq!(refused, RegistryError::Crowded);
    assert!(only(&registrations, ADA).device_token == token("b"));
    assert_eq!(unregister(&registry, "two", NODE).await, 1);
    let refused = register(&registry, ADA, NODE, "a").await.unwrap_err();
    assert_eq!(refused, RegistryError::Crowded);
    assert_eq!(unregister(&registry, "three", NODE).await, 1);
    secret(&registry, ADA, NODE, "a").await;
}

#[actix::test]
async fn the_servers_of_an_owner_have_so_many_registrations_and_no_more() {
    let mut fixture = Fixture::new();
    fixture.config.registrations_per_owner_max = 2;
    for _restart in 0..2 {
        let (registrations, registry) = fixture.start();
        secret(&registry, ADA, "1", "a").await;
        secret(&registry, EVE, "2", "b").await;
        let refused = register(&registry, EVE, "3", "c").await.unwrap_err();
        assert_eq!(refused, RegistryError::Crowded);
        // Renewals are not concerned, and whoever goes makes room.
        secret(&registry, EVE, "2", "c").await;
        assert_eq!(unregister(&registry, ADA, "1").await, 1);
        secret(&registry, ADA, "1", "d").await;
        let refused = register(&registry, ADA, "3", "e").await.unwrap_err();
        assert_eq!(refused, RegistryError::Crowded);
        Fixture::stop(registrations, registry).await;
    }
}

/// By registering and unregistering without end it uses up its own pace, not its server's.
#[actix::test]
async fn one_account_keeps_nobody_else_from_registering() {
    let fixture = Fixture::new();
    let (_registrations, registry) = fixture.start();
    for _ in 0..1_000 {
        if register(&registry, EVE, NODE, "a").await.is_ok() {
            assert_eq!(unregister(&registry, EVE, NODE).await, 1);
        }
    }
    secret(&registry, ADA, NODE, "a").await;
}

#[actix::test]
async fn new_registrations_come_at_a_pace() {
    let mut fixture = Fixture::new();
    fixture.config.new_registrations_per_second_max = 1;
    let (_registrations, registry) = fixture.start();
    let name = |number: u32| format!("user{number}");
    for number in 0..100 {
        let digit = if number < 50 { "a" } else { "b" };
        secret(&registry, &name(number), NODE, digit).await;
    }
    let refused = register(&registry, ADA, NODE, "f").await.unwrap_err();
    assert_eq!(refused, RegistryError::Crowded);
    secret(&registry, &name(0), NODE, "c").await;
    fixture.at(1);
    secret(&registry, ADA, NODE, "f").await;
}

/// What the iq of a push to that token is answered with, when the token was dead at some milliseconds
/// after the start.
async fn answered(
    registry: &Handles,
    registration: RegistrationKey,
    (app, digit): (&str, &str),
    milliseconds: u64,
) -> PushOutcome {
    let mut outcomes = Collector::<OutcomeBatch>::start();
    let ticket = Ticket {
        slot: 3,
        generation: 1,
    };
    let push = DeadPush {
        ticket,
        registration,
        rejected: RejectedToken {
            app: AppId::new(app),
            device_token: token(digit),
            reason: ErrorReason::known("Unregistered"),
            invalid_since: UnixMillis(START.millis().0 + milliseconds),
        },
    };
    let batch = DeadPushBatch {
        origin: Origin::new(outcomes.recipient()),
        items: vec![push],
    };
    assert!(registry.dead_pushes.try_send(batch).is_ok());
    let told = outcomes.take().await.items;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, ticket);
    told[0].1
}

#[actix::test]
async fn a_server_is_told_of_a_dead_token_only_if_the_registration_ends() {
    let dead = PushOutcome::Rejected(Rejection::Unregistered);
    let alive = PushOutcome::Rejected(Rejection::Unavailable);
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    fixture.at(10);
    secret(&registry, ADA, NODE, "a").await;
    let key = only(&registrations, ADA).registration;
    let its = ("app", "a");
    assert_eq!(answered(&registry, key, its, 11_000).await, dead);
    // Renewed since, or in the same second.
    assert_eq!(answered(&registry, key, its, 10_999).await, alive);
    assert_eq!(answered(&registry, key, its, 5_000).await, alive);
    // The client has registered another token while the push was on the wire.
    assert_eq!(answered(&registry, key, ("app", "b"), 11_000).await, alive);
    assert_eq!(answered(&registry, key, ("beta", "a"), 11_000).await, alive);
    unregister(&registry, ADA, NODE).await;
    assert_eq!(answered(&registry, key, its, 5_000).await, dead);
    assert_eq!(drain(&registry.drain).await.abandoned, 0);
    assert_eq!(answered(&registry, key, its, 5_000).await, dead);
}

/// How many registrations end when a token was dead at some milliseconds after the start.
async fn dead(registry: &Handles, digit: &str, milliseconds: u64) -> u64 {
    let item = RejectedToken {
        app: AppId::new("app"),
        device_token: token(digit),
        reason: ErrorReason::known("Unregistered"),
        invalid_since: UnixMillis(START.millis().0 + milliseconds),
    };
    let request = RemoveTokens { items: vec![item] };
    let removed = registry.remove_tokens.send(request).await.unwrap().unwrap();
    removed.count
}

#[actix::test]
async fn a_token_that_died_before_the_renewal_keeps_the_registration() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    fixture.at(10);
    secret(&registry, ADA, NODE, "a").await;
    secret(&registry, EVE, NODE, "a").await;
    secret(&registry, EVE, OTHER_NODE, "b").await;
    assert_eq!(dead(&registry, "a", 0).await, 0);
    // The renewal may have come later in the same second.
    assert_eq!(dead(&registry, "a", 10_999).await, 0);
    only(&registrations, ADA);
    assert_eq!(dead(&registry, "a", 11_000).await, 2);
    assert!(registrations.describe(&account(ADA)).unwrap().is_empty());
    assert_eq!(only(&registrations, EVE).node.as_str(), OTHER_NODE);
    assert_eq!(dead(&registry, "a", 11_000).await, 0);
}

#[actix::test]
async fn a_dead_token_is_dead_for_its_app_only() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let mut beta = request(ADA, NODE, token("a"));
    beta.app = AppId::new("beta");
    registry.register.send(beta).await.unwrap().unwrap();
    assert_eq!(dead(&registry, "a", 5_000).await, 0);
    only(&registrations, ADA);
}

async fn sweep(registry: &Handles, idle_since: UnixSeconds, limit: u32) -> Vec<SweptPage> {
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let request = SweepExpired {
            idle_since,
            after,
            limit,
        };
        let page = registry.sweep.send(request).await.unwrap().unwrap();
        pages.push(page);
        after = page.next;
        if after.is_none() {
            return pages;
        }
    }
}

#[actix::test]
async fn a_sweep_takes_pages_and_ends_what_is_idle() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    for node in 0..6 {
        let name = format!("old{node}");
        secret(&registry, &name, NODE, "a").await;
    }
    // Three of them are in use: pushed before and written, pushed and not written, renewed.
    touch(
        &registry,
        only(&registrations, "old0").registration,
        after(99),
    );
    fixture.at(100);
    secret(&registry, "old2", NODE, "a").await;
    Fixture::stop(registrations, registry).await;
    let (registrations, registry) = fixture.start();
    touch(
        &registry,
        only(&registrations, "old1").registration,
        after(100),
    );

    let pages = sweep(&registry, after(99), 4).await;
    let total: (u64, u64) = pages.iter().fold((0, 0), |sum, page| {
        (sum.0 + page.scanned, sum.1 + page.removed)
    });
    assert_eq!((pages.len(), total), (2, (6, 3)));
    let left = |name: String| registrations.describe(&account(&name)).unwrap().len();
    let left: Vec<_> = (0..6).map(|node| left(format!("old{node}"))).collect();
    assert_eq!(left, [1, 1, 1, 0, 0, 0]);
    // A page that is full and the last one says so.
    let pages = sweep(&registry, after(99), 3).await;
    assert_eq!((pages.len(), pages[0].scanned), (1, 3));
    let pages = sweep(&registry, after(100), 1).await;
    let removed: u64 = pages.iter().map(|page| page.removed).sum();
    assert_eq!((pages.len(), removed), (3, 1));
}

#[actix::test]
async fn push_times_are_folded_and_written_after_the_period() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    secret(&registry, ADA, NODE, "a").await;
    let registration = only(&registrations, ADA).registration;
    tokio::time::pause();
    let items = [(7, None), (8, Some("Shutdown")), (9, None)]
        .map(|(seconds, error)| Touch {
            registration,
            at: after(seconds),
            verdict: error.map_or(Ok(HERE), |reason| Err(ErrorReason::known(reason))),
        })
        .to_vec();
    registry.touch.try_send(TouchBatch { items }).unwrap();
    assert_eq!(
        counter(&registry.probe, "registry_touches_waiting").await,
        1
    );
    let folded = only(&registrations, ADA);
    assert_eq!(folded.last_success, Some(after(9)));
    assert_eq!(
        folded.last_error,
        Some((after(8), ErrorReason::known("Shutdown")))
    );

    tokio::time::sleep(Duration::from_secs(31)).await;
    // Answered after what queued before it.
    assert_eq!(unregister(&registry, EVE, NODE).await, 0);
    assert_eq!(
        counter(&registry.probe, "registry_touches_waiting").await,
        0
    );
    assert_eq!(
        counter(&registry.probe, "registry_touches_written_total").await,
        1
    );
    let (_kept, copy) = fixture.open_copy();
    assert_eq!(only(&copy, ADA), folded);
}

#[actix::test]
async fn many_push_times_are_written_early_and_too_many_are_counted() {
    let mut fixture = Fixture::new();
    fixture.config.touches_max = 2;
    let (registrations, registry) = fixture.start();
    secret(&registry, ADA, NODE, "a").await;
    touch(&registry, only(&registrations, ADA).registration, after(1));
    assert_eq!(unregister(&registry, EVE, NODE).await, 0);
    assert_eq!(
        counter(&registry.probe, "registry_touches_written_total").await,
        1
    );
    let stranger = |n| Touch {
        registration: RegistrationKey([n; 16]),
        at: START,
        verdict: Ok(HERE),
    };
    let items = (0..5).map(stranger).collect();
    registry.touch.try_send(TouchBatch { items }).unwrap();
    assert_eq!(
        counter(&registry.probe, "registry_touches_dropped_total").await,
        3
    );
}

#[actix::test]
async fn a_late_push_time_raises_nothing_from_the_dead() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    secret(&registry, ADA, NODE, "a").await;
    let registration = only(&registrations, ADA).registration;
    touch(&registry, registration, after(1));
    assert_eq!(unregister(&registry, ADA, NODE).await, 1);
    touch(&registry, registration, after(2));
    drain(&registry.drain).await;
    assert_eq!(
        counter(&registry.probe, "registry_touches_written_total").await,
        0
    );
    assert!(registrations.describe(&account(ADA)).unwrap().is_empty());
}

#[actix::test]
async fn a_drain_writes_what_waits_and_takes_no_more() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    secret(&registry, ADA, NODE, "a").await;
    touch(&registry, only(&registrations, ADA).registration, after(3));
    let last = registry.register.send(request(ADA, OTHER_NODE, token("b")));
    assert_eq!(drain(&registry.drain).await.abandoned, 0);
    last.await.unwrap().unwrap();
    assert_eq!(drain(&registry.drain).await.abandoned, 0);
    let refused = register(&registry, EVE, NODE, "e").await.unwrap_err();
    assert_eq!(refused, RegistryError::Stopping);
    touch(&registry, RegistrationKey([0; 16]), after(4));
    assert_eq!(
        counter(&registry.probe, "registry_touches_dropped_total").await,
        1
    );
    let (_kept, copy) = fixture.open_copy();
    let mut kept = copy.describe(&account(ADA)).unwrap();
    kept.sort_by_key(|description| description.node == NodeId::new(OTHER_NODE).unwrap());
    assert_eq!(kept.len(), 2);
    assert_eq!(kept[0].last_success, Some(after(3)));
}
