//! Builds the actors, last stage first, and connects them. The only file that names two actors; it has
//! no logic.

use std::sync::Arc;

use actix::Recipient;
use messages::{Clock, DeliverBatch, Drain, Probe, PublishBatch, Reload};
use xmpp::listener::Socket;

use crate::Settings;
use crate::facts::facts;
use crate::guardian::{Pulse, Ward};
use crate::lanes::{self, Lane};
use crate::log_files;
use crate::shutdown::{Order, Stage};

/// A running service.
pub struct Service {
    /// The threads that carry pushes.
    pub lanes: Vec<Lane>,
    /// The thread that new connections come through.
    pub porch: Lane,
    /// Whom the guardian watches.
    pub wards: Vec<Ward>,
    /// Who looks at its files again at SIGHUP.
    pub reloads: Vec<Recipient<Reload>>,
    /// How to stop.
    pub order: Order,
}

/// Puts an actor of its own in front of a stage: takes the address of the stage, starts the actor on the
/// current arbiter, and gives the address that the stage before shall use instead.
pub type Interpose<M> = Arc<dyn Fn(Recipient<M>) -> Recipient<M> + Send + Sync>;

/// Actors beyond the plain service, put between two stages on each lane.
#[derive(Clone, Default)]
pub struct Extras {
    /// In front of the resolver.
    pub before_resolver: Option<Interpose<PublishBatch>>,
    /// In front of the APNs pool.
    pub before_pool: Option<Interpose<DeliverBatch>>,
}

fn interpose<M>(extra: Option<&Interpose<M>>, stage: Recipient<M>) -> Recipient<M>
where
    M: actix::Message<Result = ()> + Send,
{
    match extra {
        Some(extra) => extra(stage),
        None => stage,
    }
}

/// Starts everything on the current arbiter (control) and on new lanes.
///
/// # Errors
/// A line for each thing that cannot be used.
pub async fn start(
    settings: &Settings,
    listeners: Vec<Socket>,
    clock: &Clock,
    extras: Extras,
) -> Result<Service, Vec<String>> {
    let mut xmpp_config = settings.xmpp.clone();
    xmpp_config.privacy = xmpp::Privacy {
        localpart: Some(settings.privacy.localpart.clone()),
        self_service: settings.privacy.self_service,
    };
    let upstreams = apns::Upstreams::prepare(&settings.apns, &settings.apps, clock.clone())
        .map_err(|errors| lines(&errors))?;
    let ingress = xmpp::Ingress::prepare(&xmpp_config, &settings.domains, crate::VERSION)
        .map_err(|errors| lines(&errors))?;
    let components =
        xmpp::component::prepare(&settings.xmpp, &settings.domains, &settings.components)
            .map_err(|errors| lines(&errors))?;
    let registrations = registration::Registrations::open(&settings.registration, clock.clone())
        .map_err(|error| vec![error.to_string()])?;
    let cases = prepare_desk(settings)?;
    let socket =
        privacy::admin::bind(&settings.privacy).map_err(|error| vec![error.to_string()])?;
    let journal = journal::Journal::open(&settings.journal, clock.clone())
        .map_err(|error| vec![error.to_string()])?;

    let mut wards = Vec::new();
    let control = Pulse::here();
    let mut ward = |name: String, probe: Recipient<Probe>, pulse: &Pulse| {
        let pulse = pulse.clone();
        wards.push(Ward { name, probe, pulse });
    };

    // Control.
    let journal = journal::start(journal).map_err(|error| vec![error.to_string()])?;
    let log_files = log_files::start(&settings.log);
    let registry_edges = registration::registry::Edges {
        journal: Some(journal.record.clone()),
    };
    let registry = registration::registry::start(&registrations, registry_edges)
        .map_err(|error| vec![error.to_string()])?;
    let feedback = feedback::start(
        &settings.feedback,
        feedback::Edges {
            remove: registry.remove_tokens.clone(),
        },
    );
    let desk = privacy::desk::start(cases, clock.clone(), desk_edges(&registry, &journal));
    let retention = retention::start(
        &settings.retention,
        clock.clone(),
        retention::Edges {
            sweep: registry.sweep.clone(),
            keepers: vec![
                ("journal segments", journal.sweep.clone()),
                ("log files", log_files.sweep.clone()),
                ("cases", desk.sweep.clone()),
            ],
        },
    );
    let admin = privacy::admin::start(
        socket,
        privacy::admin::Edges {
            serve: desk.serve.clone(),
        },
    )
    .map_err(|error| vec![error.to_string()])?;
    let asked = xmpp::gate::PrivacyEdges {
        confirm: desk.confirm.clone(),
        command: desk.command.clone(),
        offer: desk.offer.clone(),
    };
    let provider_tokens = apns::provider_tokens::start(&upstreams);
    let certificates = xmpp::certificates::start(&ingress, clock.clone());
    let outcomes = xmpp::outcomes::start(&ingress);
    ward("journal".to_owned(), journal.probe.clone(), &control);
    ward("log files".to_owned(), log_files.probe.clone(), &control);
    ward("registry".to_owned(), registry.probe.clone(), &control);
    ward("feedback".to_owned(), feedback.probe.clone(), &control);
    ward("retention".to_owned(), retention.probe.clone(), &control);
    ward("privacy".to_owned(), desk.probe.clone(), &control);
    ward(
        "operator's socket".to_owned(),
        admin.probe.clone(),
        &control,
    );
    ward(
        "provider tokens".to_owned(),
        provider_tokens.probe.clone(),
        &control,
    );
    ward(
        "certificates".to_owned(),
        certificates.probe.clone(),
        &control,
    );
    ward("outcomes".to_owned(), outcomes.probe.clone(), &control);

    // Lanes: first the way to APNs and the replies' way out on all of them, because any lane may reply
    // through any other.
    let lanes: Vec<Lane> = (0..settings.runtime.lanes_on(lanes::cores()))
        .map(|_| Lane::start())
        .collect();
    let mut pulses = Vec::with_capacity(lanes.len());
    let mut pools = Vec::with_capacity(lanes.len());
    let mut egresses = Vec::with_capacity(lanes.len());
    let mut publishes = Vec::with_capacity(lanes.len());
    for (index, lane) in lanes.iter().enumerate() {
        let (upstreams, registrations, ingress) =
            (upstreams.clone(), registrations.clone(), ingress.clone());
        let pool_edges = apns::pool::Edges {
            touch: registry.touch.clone(),
            rejected: feedback.rejected.clone(),
            dead_pushes: registry.dead_pushes.clone(),
            journal: journal.pushes.clone(),
            subscribe: provider_tokens.subscribe.clone(),
            refused: provider_tokens.refused.clone(),
            withdrawals: registry.withdrawals.clone(),
        };
        let (register, unregister) = (registry.register.clone(), registry.unregister.clone());
        let asked = asked.clone();
        let pushes = journal.pushes.clone();
        let extras = extras.clone();
        let (pulse, pool, resolver, egress, publish) = on(lane, move || {
            let pool = apns::pool::start(&upstreams, pool_edges);
            let deliver = interpose(extras.before_pool.as_ref(), pool.deliver.clone());
            let resolver = registration::resolver::start(
                &registrations,
                registration::resolver::Edges {
                    deliver,
                    journal: pushes,
                },
            );
            let publish = interpose(extras.before_resolver.as_ref(), resolver.publish.clone());
            let egress = xmpp::egress::start(
                &ingress,
                xmpp::egress::Edges {
                    publish: publish.clone(),
                    register,
                    unregister,
                    privacy: Some(asked),
                },
            );
            (Pulse::here(), pool, resolver, egress, publish)
        })
        .await?;
        ward(format!("pool of lane {index}"), pool.probe.clone(), &pulse);
        ward(
            format!("resolver of lane {index}"),
            resolver.probe.clone(),
            &pulse,
        );
        ward(
            format!("egress of lane {index}"),
            egress.probe.clone(),
            &pulse,
        );
        pulses.push(pulse);
        pools.push(pool);
        egresses.push(egress);
        publishes.push(publish);
    }
    let replies: Vec<_> = egresses
        .iter()
        .map(|egress| egress.replies.clone())
        .collect();

    let mut gates = Vec::with_capacity(lanes.len());
    let stages = publishes.into_iter().zip(pulses);
    for (index, (lane, (publish, pulse))) in lanes.iter().zip(stages).enumerate() {
        let ingress = ingress.clone();
        let edges = xmpp::gate::Edges {
            publish,
            register: registry.register.clone(),
            unregister: registry.unregister.clone(),
            privacy: Some(asked.clone()),
            egress: replies.clone(),
        };
        let gate = on(lane, move || xmpp::gate::start(&ingress, edges)).await?;
        ward(format!("gate of lane {index}"), gate.probe.clone(), &pulse);
        gates.push(gate);
    }

    for (component, gate) in components.into_iter().zip(gates.iter().cycle()) {
        let attached = gate.attach.send(component).await;
        attached.map_err(|error| vec![format!("a lane's gate takes no component: {error}")])?;
    }
    let gate_drains = drains(gates.iter().map(|gate| &gate.drain));
    let thread = Lane::start_nice(settings.runtime.handshake_niceness);
    let (pulse, porch, listener) = on(&thread, move || {
        let porch = xmpp::porch::start(&ingress, gates);
        let listener = xmpp::listener::start(&ingress, listeners, porch.clone());
        (Pulse::here(), porch, listener)
    })
    .await?;
    ward("porch".to_owned(), porch.probe, &pulse);
    ward("listener".to_owned(), listener.probe, &pulse);

    let order = Order {
        stages: vec![
            Stage {
                name: "listener",
                farewells_left: 2,
                actors: vec![listener.drain, porch.drain, certificates.drain, admin.drain],
            },
            Stage {
                name: "sessions",
                farewells_left: 2,
                actors: gate_drains,
            },
            Stage {
                name: "replies",
                farewells_left: 1,
                actors: drains(egresses.iter().map(|egress| &egress.drain)),
            },
            Stage {
                name: "outcomes",
                farewells_left: 1,
                actors: vec![outcomes.drain],
            },
            Stage {
                name: "pools",
                farewells_left: 1,
                actors: drains(pools.iter().map(|pool| &pool.drain)),
            },
            Stage {
                name: "feedback",
                farewells_left: 0,
                actors: vec![feedback.drain, retention.drain, desk.drain],
            },
            Stage {
                name: "registry",
                farewells_left: 0,
                actors: vec![registry.drain],
            },
            Stage {
                name: "journal",
                farewells_left: 0,
                actors: vec![journal.drain],
            },
        ],
    };
    Ok(Service {
        lanes,
        porch: thread,
        wards,
        reloads: vec![certificates.reload],
        order,
    })
}

/// What answers an operator while the service does not run.
pub struct Offline {
    /// Answers.
    pub serve: Recipient<privacy::desk::Serve>,
    /// How to stop.
    pub order: Order,
}

/// Starts what an operator needs on the current arbiter.
///
/// # Errors
/// A line for each thing that cannot be used.
pub fn offline(settings: &Settings, clock: &Clock) -> Result<Offline, Vec<String>> {
    let registrations = registration::Registrations::open(&settings.registration, clock.clone())
        .map_err(|error| vec![error.to_string()])?;
    let cases = prepare_desk(settings)?;
    let journal = journal::Journal::open(&settings.journal, clock.clone())
        .map_err(|error| vec![error.to_string()])?;
    let journal = journal::start(journal).map_err(|error| vec![error.to_string()])?;
    let registry_edges = registration::registry::Edges {
        journal: Some(journal.record.clone()),
    };
    let registry = registration::registry::start(&registrations, registry_edges)
        .map_err(|error| vec![error.to_string()])?;
    let desk = privacy::desk::start(cases, clock.clone(), desk_edges(&registry, &journal));
    let order = Order {
        stages: vec![
            Stage {
                name: "privacy",
                farewells_left: 0,
                actors: vec![desk.drain],
            },
            Stage {
                name: "registry",
                farewells_left: 0,
                actors: vec![registry.drain],
            },
            Stage {
                name: "journal",
                farewells_left: 0,
                actors: vec![journal.drain],
            },
        ],
    };
    Ok(Offline {
        serve: desk.serve,
        order,
    })
}

fn prepare_desk(settings: &Settings) -> Result<privacy::desk::Prepared, Vec<String>> {
    let names = settings.domains.iter();
    let services = names.filter_map(|domain| xmpp::prepare_service(&domain.name));
    privacy::desk::Prepared::open(&settings.privacy, facts(settings), services.collect())
        .map_err(|error| vec![error.to_string()])
}

fn desk_edges(
    registry: &registration::registry::Handles,
    journal: &journal::Handles,
) -> privacy::desk::Edges {
    privacy::desk::Edges {
        find: registry.find.clone(),
        accounts: registry.accounts.clone(),
        describe: registry.describe.clone(),
        erase: registry.erase.clone(),
        rotate: registry.rotate.clone(),
        journal: Some(privacy::desk::JournalEdges {
            read: journal.read.clone(),
            erase: journal.erase.clone(),
            sync: journal.sync.clone(),
        }),
    }
}

async fn on<T: Send + 'static>(
    lane: &Lane,
    build: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Vec<String>> {
    lane.build(build)
        .await
        .ok_or_else(|| vec!["a lane's thread did not start".to_owned()])
}

fn drains<'a>(actors: impl Iterator<Item = &'a Recipient<Drain>>) -> Vec<Recipient<Drain>> {
    actors.cloned().collect()
}

fn lines<E: std::fmt::Display>(errors: &[E]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}
