#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xmpp::fuzzing::publish(data));
