//! Simulators for trying, testing and benchmarking: a strict APNs and a small XMPP server.
