//! Token-invalidation feedback: rejected tokens end their registrations.
