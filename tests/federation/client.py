"""An XMPP client that does what it is told: one JSON object a line in, one answer a line out."""

import asyncio
import json
import logging
import ssl
import sys
from xml.etree import ElementTree

from slixmpp import ClientXMPP, ComponentXMPP
from slixmpp.exceptions import IqError

COMMANDS = "{http://jabber.org/protocol/commands}"
DATA = "{jabber:x:data}"
STANZAS = "{urn:ietf:params:xml:ns:xmpp-stanzas}"
PUSH = "{urn:xmpp:push:0}"
PUBLISH_OPTIONS = "http://jabber.org/protocol/pubsub#publish-options"
TIMEOUT = 25

sessions = {}


def form(parent, fields):
    x = ElementTree.SubElement(parent, DATA + "x", type="submit")
    for var, value in fields.items():
        field = ElementTree.SubElement(x, DATA + "field", var=var)
        if var == "FORM_TYPE":
            field.set("type", "hidden")
        ElementTree.SubElement(field, DATA + "value").text = value


def describe(iq):
    """Says what an answer holds, and gives all of it with attributes in a fixed order."""
    answer = {
        "type": iq["type"],
        "fields": {},
        "lines": {},
        "xml": ElementTree.canonicalize(ElementTree.tostring(iq.xml, encoding="unicode")),
    }
    command = iq.xml.find(COMMANDS + "command")
    if command is not None:
        answer["status"] = command.get("status")
        answer["session"] = command.get("sessionid")
        actions = command.find(COMMANDS + "actions")
        answer["actions"] = [] if actions is None else [child.tag.split("}")[1] for child in actions]
    for field in iq.xml.iter(DATA + "field"):
        values = [value.text or "" for value in field.findall(DATA + "value")]
        answer["fields"][field.get("var")] = values[0] if values else ""
        answer["lines"][field.get("var")] = values
    error = iq.xml.find("{*}error")
    if error is not None:
        conditions = [child.tag for child in error if child.tag.startswith(STANZAS)]
        conditions = [tag.removeprefix(STANZAS) for tag in conditions if tag != STANZAS + "text"]
        answer["error"] = "/".join([error.get("type")] + conditions)
    return answer


async def ask(session, to, content, sender=None):
    iq = session.make_iq_set(ito=to, ifrom=sender)
    iq.xml.append(content)
    try:
        return describe(await iq.send(timeout=TIMEOUT))
    except IqError as refused:
        return describe(refused.iq)


async def login(name, jid, password, host, port, ca_file, resumable):
    session = ClientXMPP(jid, password)
    if resumable:
        session.register_plugin("xep_0198")
    session.bodies = []
    session.presences = []
    session.add_event_handler("message", lambda message: session.bodies.append(message["body"]))
    for kind in ("unsubscribed", "subscribed"):
        session.add_event_handler("presence_" + kind, session.presences.append)
    session.ca_certs = ca_file
    if ca_file is None:
        session.ssl_context.check_hostname = False
        session.ssl_context.verify_mode = ssl.CERT_NONE
    ended = session.ended = asyncio.Event()
    session.add_event_handler("disconnected", lambda _: ended.set())
    started = session.wait_until("session_start", TIMEOUT)
    # The address is not what the certificate is for.
    session.connect((host, port))
    session.default_domain = session.boundjid.domain
    await started
    session.send_presence()
    sessions[name] = session
    return {}


async def lose(name):
    """Ends a connection without a word, as a device does that goes through a tunnel."""
    session = sessions[name]
    session.transport.abort()
    await asyncio.wait_for(session.ended.wait(), TIMEOUT)
    return {}


async def resume(name, host, port):
    session = sessions[name]
    session.ended.clear()
    resumed = session.wait_until("session_resumed", TIMEOUT)
    domain = session.default_domain
    session.connect((host, port))
    session.default_domain = domain
    await resumed
    return {}


async def bodies(name):
    return {"bodies": sessions[name].bodies}


async def logout(name):
    session = sessions.pop(name)
    session.disconnect()
    await asyncio.wait_for(session.ended.wait(), TIMEOUT)
    return {}


async def attach(name, jid, secret, host, port):
    """Logs a component in (XEP-0114), unless it is; it may speak for all of its domain."""
    if name in sessions and not sessions[name].ended.is_set():
        return {}
    session = ComponentXMPP(jid, secret, host, port)
    session.add_event_handler("disconnected", lambda _: ended.set())
    ended = session.ended = asyncio.Event()
    started = session.wait_until("session_start", TIMEOUT)
    session.connect()
    await started
    sessions[name] = session
    return {}


async def command(name, to, node, fields, sender=None):
    content = ElementTree.Element(COMMANDS + "command", node=node, action="execute")
    form(content, fields)
    return await ask(sessions[name], to, content, sender)


async def stage(name, to, node, action, session):
    """Goes on with an ad-hoc command (XEP-0050)."""
    content = ElementTree.Element(COMMANDS + "command", node=node, action=action)
    if session is not None:
        content.set("sessionid", session)
    return await ask(sessions[name], to, content)


async def info(name, to):
    iq = sessions[name].make_iq_get(ito=to)
    iq.xml.append(ElementTree.Element("{http://jabber.org/protocol/disco#info}query"))
    try:
        return describe(await iq.send(timeout=TIMEOUT))
    except IqError as refused:
        return describe(refused.iq)


async def raw(name, stanza):
    """Sends a stanza that no library would make."""
    sessions[name].send_raw(stanza)
    return {}


async def subscribe(name, to):
    # Servers tell of subscriptions only those who have asked for the roster.
    await sessions[name].get_roster(timeout=TIMEOUT)
    sessions[name].send_presence(pto=to, ptype="subscribe")
    return {}


async def presences(name):
    received = sessions[name].presences
    return {"presences": [[presence["type"], presence["from"].full] for presence in received]}


async def enable(name, service, node, secret):
    content = ElementTree.Element(PUSH + "enable", jid=service, node=node)
    form(content, {"FORM_TYPE": PUBLISH_OPTIONS, "secret": secret})
    return await ask(sessions[name], None, content)


async def disable(name, service):
    content = ElementTree.Element(PUSH + "disable", jid=service)
    return await ask(sessions[name], None, content)


async def publish(name, service, node, secret, sender):
    """Does what a server's push module does (XEP-0357 §7), for servers that have none."""
    pubsub = "{http://jabber.org/protocol/pubsub}"
    content = ElementTree.Element(pubsub + "pubsub")
    item = ElementTree.SubElement(content, pubsub + "publish", node=node)
    item = ElementTree.SubElement(item, pubsub + "item")
    notification = ElementTree.SubElement(item, PUSH + "notification")
    form(notification, {"FORM_TYPE": "urn:xmpp:push:summary", "last-message-body": "New message"})
    options = ElementTree.SubElement(content, pubsub + "publish-options")
    form(options, {"FORM_TYPE": PUBLISH_OPTIONS, "secret": secret})
    return await ask(sessions[name], service, content, sender)


async def message(name, to, body, sender=None):
    sessions[name].send_message(mto=to, mbody=body, mtype="chat", mfrom=sender)
    return {}


async def main():
    known = (login, attach, lose, resume, bodies, logout, command, enable)
    known += (disable, publish, message, stage, info, raw, subscribe, presences)
    actions = {act.__name__: act for act in known}
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while line := await lines.readline():
        request = json.loads(line)
        try:
            answer = await actions[request.pop("do")](**request)
        except Exception as failure:
            logging.exception("the request failed")
            answer = {"failure": f"{type(failure).__name__}: {failure}"}
        print(json.dumps(answer), flush=True)


logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
asyncio.get_event_loop_policy().get_event_loop().run_until_complete(main())
