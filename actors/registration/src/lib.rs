//! Registration state: the resolver on the hot path and the registry, the single writer.
