//! XMPP ingress: server-to-server streams, the services of the domain, replies.
