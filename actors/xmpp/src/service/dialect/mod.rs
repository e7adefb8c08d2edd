//! Registration dialects, one file each: a form in, a message to the registry out, a form back.

pub(super) mod v1;
