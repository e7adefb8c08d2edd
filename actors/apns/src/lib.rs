//! APNs client: connection pools over h2, provider tokens, verdicts.
