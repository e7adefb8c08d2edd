//! Retention sweeping: what has outlived its purpose goes.
