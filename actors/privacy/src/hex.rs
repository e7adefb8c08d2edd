//! Keys of registrations as text.

use messages::RegistrationKey;

/// 32 lower-case digits.
pub(crate) fn text(key: RegistrationKey) -> String {
    key.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What [`text`] made.
pub(crate) fn key(text: &str) -> Option<RegistrationKey> {
    bytes(text).map(RegistrationKey)
}

/// Bytes as digits, read back.
pub(crate) fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        let digits = text.get(2 * at..2 * at + 2)?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back() {
        let known = RegistrationKey(std::array::from_fn(|n| n as u8 * 17));
        assert_eq!(key(&text(known)), Some(known));
        for wrong in ["", "00", &"g".repeat(32), &"é".repeat(16)] {
            assert_eq!(key(wrong), None);
        }
    }
}
