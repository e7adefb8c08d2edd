//! The port where the push service connects as a component of this server (XEP-0114).

use std::cell::Cell;
use std::fmt::Write as _;
use std::rc::Rc;

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::ReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::MutexGuard;
use tokio::time::{Duration, timeout};

use super::hub::{Hub, domain_of};
use super::outbound::Link;
use super::stream::{self, COMPONENT, Received, STREAMS, StreamReader};
use super::xml::{Element, escaped};
use crate::SimulatorError;

/// Takes components until the server stops.
pub(super) async fn listen(hub: Rc<Hub>, listener: TcpListener) {
    let mut stop = hub.stop.subscribe();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    actix_rt::spawn(serve(Rc::clone(&hub), socket));
                }
                // Out of descriptors, most likely: they come back as connections close.
                Err(_) => tokio::time::sleep(crate::ACCEPT_PAUSE).await,
            },
            _ = stop.wait_for(|stopping| *stopping) => return,
        }
    }
}

/// Writes on the component's stream, and waits for a component first if there is none.
pub(super) async fn send(hub: &Hub, xml: &[u8]) -> Result<(), SimulatorError> {
    let limit = Duration::from_millis(hub.config.connect_timeout_millis);
    let mut link = timeout(limit, connected(hub))
        .await
        .map_err(|_| SimulatorError::TimedOut)?;
    match link.as_mut() {
        Some(link) => link.write(xml).await,
        None => Err(SimulatorError::Stopping),
    }
}

/// The stream of the component that is there, or comes.
async fn connected(hub: &Hub) -> MutexGuard<'_, Option<Link>> {
    let mut newest = hub.component.subscribe();
    loop {
        let link = hub.link.lock().await;
        if link.as_ref().is_some_and(Link::is_alive) {
            return link;
        }
        drop(link);
        // The hub has the sender, so this is never its end.
        let _sender_lives = newest.changed().await;
    }
}

async fn serve(hub: Rc<Hub>, socket: TcpStream) {
    let limit = Duration::from_millis(hub.config.connect_timeout_millis);
    let ended = match timeout(limit, admit(&hub, socket)).await {
        Ok(Ok(stream)) => converse(&hub, stream).await,
        Ok(Err(error)) => Err(error),
        Err(_) => Err(SimulatorError::TimedOut),
    };
    // Connections may break and components may leave as they like.
    if let Err(SimulatorError::Protocol(explanation)) = ended {
        hub.violation(explanation);
    }
}

/// Checks the header and the handshake (XEP-0114 §3).
async fn admit(hub: &Hub, socket: TcpStream) -> Result<StreamReader<TcpStream>, SimulatorError> {
    socket.set_nodelay(true)?;
    let mut stream = StreamReader::of_component(socket);
    let header = stream.header().await?;
    let id = format!("{:032x}", fastrand::u128(..));
    let service = &hub.config.service;
    stream
        .write(&format!(
            "<?xml version='1.0'?><stream:stream xmlns='{COMPONENT}' xmlns:stream='{STREAMS}' \
             from='{}' id='{id}'>",
            escaped(service)
        ))
        .await?;
    if header.attribute("to") != Some(service) {
        stream.write(&stream::error("host-unknown")).await?;
        return Err(SimulatorError::Protocol("the component has another domain"));
    }
    let proof = stream.element().await?;
    let secret = hub
        .config
        .component
        .as_ref()
        .map_or("", |config| &config.secret);
    if !proof.is("handshake", COMPONENT) || proof.text != handshake(&id, secret) {
        stream.write(&stream::error("not-authorized")).await?;
        return Err(SimulatorError::Protocol(
            "the component's handshake is wrong",
        ));
    }
    stream.write("<handshake/>").await?;
    hub.counters.borrow_mut().streams_in += 1;
    Ok(stream)
}

/// The proof that a component knows the secret: SHA-1, because the protocol knows no other.
fn handshake(stream_id: &str, secret: &str) -> String {
    let text = [stream_id, secret].concat();
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    hash.as_ref().iter().fold(String::new(), |mut hex, byte| {
        // Writing into a string does not fail.
        let _infallible = write!(hex, "{byte:02x}");
        hex
    })
}

/// Puts the component into the place of the one before and serves it until it ends, the server stops or
/// a newer one comes.
async fn converse(hub: &Rc<Hub>, stream: StreamReader<TcpStream>) -> Result<(), SimulatorError> {
    let (mut reader, writer) = stream.split();
    let alive = Rc::new(Cell::new(true));
    let mut link = hub.link.lock().await;
    let older = link.replace(Link::new(writer, Rc::clone(&alive)));
    hub.component.send_modify(|newest| *newest += 1);
    let own = *hub.component.borrow();
    drop(link);
    if let Some(mut older) = older {
        // It may be gone, which is why there is a newer one.
        let _gone = older.write(stream::error("conflict").as_bytes()).await;
    }
    let ended = read(hub, &mut reader, own).await;
    alive.set(false);
    hub.drop_dead_link().await;
    ended
}

/// Takes what the component says.
async fn read(
    hub: &Rc<Hub>,
    reader: &mut StreamReader<ReadHalf<TcpStream>>,
    own: u64,
) -> Result<(), SimulatorError> {
    let mut stop = hub.stop.subscribe();
    let mut newest = hub.component.subscribe();
    let service = &hub.config.service;
    loop {
        let received = tokio::select! {
            received = reader.next() => received?,
            _ = stop.wait_for(|stopping| *stopping) => return Ok(()),
            _ = newest.wait_for(|newest| *newest != own) => return Ok(()),
        };
        let stanza = match received {
            Received::Stanza(stanza) => stanza,
            Received::Header(_) => return Err(SimulatorError::Protocol("a second header")),
            Received::End => return Ok(()),
        };
        if let Some(flood) = hub.flood.borrow_mut().as_mut()
            && flood.take(&stanza, COMPONENT)
        {
            continue;
        }
        let element = reader.parse(&stanza)?;
        if element.is("error", STREAMS) {
            return Err(stream::stream_error(&element));
        }
        if is_to_itself(&element, service) {
            send(hub, &stanza).await?;
            continue;
        }
        let may_send = |domain: &str| domain == service;
        if let Err(condition) = hub.deliver(element, &stanza, COMPONENT, may_send).await {
            return send(hub, stream::error(condition).as_bytes()).await;
        }
    }
}

/// Whether a component asks itself, to see whether its server is there: the server takes it back to it.
fn is_to_itself(stanza: &Element, service: &str) -> bool {
    let is_of_it = |name| stanza.attribute(name).map(domain_of) == Some(service);
    stanza.namespace == COMPONENT && is_of_it("from") && is_of_it("to")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_that_of_the_specification() {
        // XEP-0114 §3, example 2, whose secret is this.
        assert_eq!(
            handshake("3BF96D32", "test"),
            "aaee83c26aeeafcbabeabfcbcd50df997e0a2a1e"
        );
    }
}
