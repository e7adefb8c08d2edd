//! Campanile as a library.
