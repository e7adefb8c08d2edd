//! The strict APNs simulator on a host of the network.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use messages::{Clock, DeviceToken, Drain};
use simulators::apple::{self, Control, Notification, Verdict};
use simulators::{Authority, Kind, SigningKey};

use crate::net::Host;

/// Its name in the network's DNS, and its port.
pub(crate) const NAME: &str = "apns.test";
pub(crate) const PORT: u16 = 443;

/// The one app that it knows.
pub(crate) const TOPIC: &str = "im.example.app";
pub(crate) const TEAM_ID: &str = "TEAM012345";
pub(crate) const KEY_ID: &str = "KEY0123456";

/// A running simulator.
pub(crate) struct Apple {
    control: Control,
    notifications: RefCell<tokio::sync::mpsc::Receiver<Notification>>,
    /// The app's signing key as Apple gives it out.
    pub(crate) key_file: PathBuf,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    system: Option<thread::JoinHandle<()>>,
}

impl Apple {
    pub(crate) fn start(
        host: &Host,
        authority: &Authority,
        directory: &Path,
        token_updates_limited: bool,
    ) -> Self {
        let key = SigningKey::new(TEAM_ID, KEY_ID).expect("a key can be made");
        let key_file = key
            .write(directory)
            .expect("the directory of the test can be written");
        let config = apple::Config {
            address: (host.v4, PORT).into(),
            token_updates_limited,
            ..apple::Config::default()
        };
        let edges = apple::Edges {
            identity: authority
                .issue(&[NAME], Kind::ServerAndClient)
                .expect("a domain is a name"),
            keys: vec![apple::KnownKey {
                id: key.id().clone(),
                public_key: key.public_key().to_vec(),
                topics: vec![TOPIC.to_owned()],
            }],
            clock: Clock::system(),
        };
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, started) = mpsc::channel();
        let system = host.spawn(move || {
            actix_rt::System::new().block_on(async move {
                let handles = apple::start(&config, edges).expect("the address of a host is free");
                ready.send(handles.control).expect("the test waits");
                let _dropped = stopped.await;
                let deadline = std::time::Instant::now() + Duration::from_secs(2);
                let _late = handles
                    .drain
                    .send(Drain {
                        deadline,
                        farewell: Duration::from_secs(1),
                    })
                    .await;
            });
        });
        let control: Control = started.recv().expect("the simulator starts");
        let notifications = RefCell::new(control.watch(1024));
        Self {
            control,
            notifications,
            key_file,
            stop: Some(stop),
            system: Some(system),
        }
    }

    /// What came since the last call, in order.
    pub(crate) fn notifications(&self) -> Vec<Notification> {
        let mut new = self.notifications.borrow_mut();
        std::iter::from_fn(|| new.try_recv().ok()).collect()
    }

    /// How many requests came, whatever the answer.
    pub(crate) fn requests(&self) -> u64 {
        self.control.counters().requests
    }

    /// How many notifications of a device were accepted.
    pub(crate) fn accepted(&self, device_token: &DeviceToken) -> u64 {
        self.control.delivered(device_token)
    }

    /// Sets what is answered for a device.
    pub(crate) fn answer(&self, device_token: &DeviceToken, verdict: Verdict) {
        self.control.set_verdict(device_token, verdict);
    }
}

impl Drop for Apple {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(system) = self.system.take() {
            let _panicked = system.join();
        }
    }
}
