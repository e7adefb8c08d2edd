//! A name server on loopback that says what a test tells it to.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use tokio::net::UdpSocket;

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

/// What is known of a name, without its final dot.
#[derive(Clone, Debug)]
enum Data {
    Address(IpAddr),
    Alias(String),
    Service {
        priority: u16,
        weight: u16,
        port: u16,
        target: String,
    },
}

impl Data {
    const fn kind(&self) -> u16 {
        match self {
            Self::Address(IpAddr::V4(_)) => A,
            Self::Address(IpAddr::V6(_)) => AAAA,
            Self::Alias(_) => CNAME,
            Self::Service { .. } => SRV,
        }
    }
}

#[derive(Default)]
struct Zone {
    records: HashMap<String, Vec<Data>>,
    /// Names that are answered SERVFAIL.
    failing: Vec<String>,
    /// Names that are not answered.
    silent: Vec<String>,
    asked: Vec<String>,
}

/// The server. It ends with the arbiter it was started on.
pub struct NameServer {
    address: SocketAddr,
    zone: Rc<RefCell<Zone>>,
}

impl NameServer {
    /// Starts on the current arbiter, knowing nothing.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Rc::new(RefCell::new(Zone::default()));
        actix_rt::spawn(serve(socket, Rc::clone(&zone)));
        Self { address, zone }
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    fn add(&self, name: &str, data: Data) {
        let mut zone = self.zone.borrow_mut();
        zone.records.entry(name.to_owned()).or_default().push(data);
    }

    /// Adds an A or AAAA record.
    pub fn host(&self, name: &str, address: IpAddr) {
        self.add(name, Data::Address(address));
    }

    /// Adds a CNAME record.
    pub fn alias(&self, name: &str, target: &str) {
        self.add(name, Data::Alias(target.to_owned()));
    }

    /// Adds an SRV record of priority, weight, port and target; the target `.` is written as nothing.
    pub fn service(&self, name: &str, (priority, weight, port, target): (u16, u16, u16, &str)) {
        let target = target.to_owned();
        self.add(
            name,
            Data::Service {
                priority,
                weight,
                port,
                target,
            },
        );
    }

    /// Answers SERVFAIL for a name from now on.
    pub fn fail(&self, name: &str) {
        self.zone.borrow_mut().failing.push(name.to_owned());
    }

    /// Does not answer for a name from now on.
    pub fn silence(&self, name: &str) {
        self.zone.borrow_mut().silent.push(name.to_owned());
    }

    /// All names that were asked for by now, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.zone.borrow().asked.clone()
    }
}

async fn serve(socket: UdpSocket, zone: Rc<RefCell<Zone>>) {
    let mut query = [0; 1500];
    loop {
        let (len, from) = socket.recv_from(&mut query).await.unwrap();
        let answer = zone.borrow_mut().answer(query.get(..len).unwrap());
        if let Some(answer) = answer {
            socket.send_to(&answer, from).await.unwrap();
        }
    }
}

impl Zone {
    fn answer(&mut self, query: &[u8]) -> Option<Vec<u8>> {
        let (id, question) = (query.get(..2).unwrap(), query.get(12..).unwrap());
        let (name, rest) = read_name(question);
        let kind = u16::from_be_bytes([*rest.first().unwrap(), *rest.get(1).unwrap()]);
        self.asked.push(name.clone());
        if self.silent.contains(&name) {
            return None;
        }
        let records = self.find(&name, kind);
        let code = match self.failing.contains(&name) {
            true => SERVFAIL,
            false if self.records.contains_key(&name) => 0,
            false => NXDOMAIN,
        };
        let mut answer = Vec::from(id);
        // A response, recursion asked for and available.
        answer.extend([0x81, 0x80 | code, 0, 1]);
        answer.extend(u16::try_from(records.len()).unwrap().to_be_bytes());
        answer.extend([0; 4]);
        write_name(&mut answer, &name);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1]);
        for (name, data) in records {
            write_record(&mut answer, &name, &data);
        }
        Some(answer)
    }

    fn find(&self, name: &str, kind: u16) -> Vec<(String, Data)> {
        let mut found = Vec::new();
        for data in self.records.get(name).into_iter().flatten() {
            if data.kind() == kind {
                found.push((name.to_owned(), data.clone()));
            } else if let Data::Alias(target) = data {
                found.push((name.to_owned(), data.clone()));
                found.extend(self.find(target, kind));
            }
        }
        found
    }
}

fn read_name(mut bytes: &[u8]) -> (String, &[u8]) {
    let mut labels = Vec::new();
    loop {
        let (len, rest) = bytes.split_first().unwrap();
        let (label, rest) = rest.split_at(usize::from(*len));
        bytes = rest;
        if label.is_empty() {
            return (labels.join("."), bytes);
        }
        labels.push(std::str::from_utf8(label).unwrap().to_lowercase());
    }
}

fn write_name(out: &mut Vec<u8>, name: &str) {
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(u8::try_from(label.len()).unwrap());
        out.extend(label.bytes());
    }
    out.push(0);
}

fn write_record(out: &mut Vec<u8>, name: &str, data: &Data) {
    write_name(out, name);
    out.extend(data.kind().to_be_bytes());
    // Class IN, a minute to live.
    out.extend([0, 1, 0, 0, 0, 60]);
    let mut content = Vec::new();
    match data {
        Data::Address(IpAddr::V4(address)) => content.extend(address.octets()),
        Data::Address(IpAddr::V6(address)) => content.extend(address.octets()),
        Data::Alias(target) => write_name(&mut content, target),
        Data::Service {
            priority,
            weight,
            port,
            target,
        } => {
            for number in [priority, weight, port] {
                content.extend(number.to_be_bytes());
            }
            write_name(&mut content, target);
        }
    }
    out.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
    out.extend(content);
}
