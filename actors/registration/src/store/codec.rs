//! Records as bytes. Hand-written, so that the layout on disk depends on nothing but this file; the first
//! byte is its version.

use std::num::NonZeroU32;

use messages::{Acceptance, AccountKey, ErrorReason, Touch, UnixSeconds};

use crate::Error;
use crate::keys::{Mask, Salt};

const RECORD_VERSION: u8 = 1;
/// With a mask behind the salt.
const MASKED_VERSION: u8 = 2;
/// With mask and acceptance behind the salt.
const ACCEPTED_VERSION: u8 = 3;
const TIMES_VERSION: u8 = 1;
/// No field is longer (a node has at most 1,024 bytes, a domain 1,023), and values stay far below the
/// size from which the engine would give them a file of their own.
const FIELD_BYTES_MAX: usize = 1024;
const HAS_SUCCESS: u8 = 1;
const HAS_ERROR: u8 = 2;

/// A registration as it is kept. Borrows from the store or from the request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) registered_at: UnixSeconds,
    pub(crate) renewed_at: UnixSeconds,
    pub(crate) account: AccountKey,
    pub(crate) salt: Salt,
    pub(crate) mask: Mask,
    pub(crate) acceptance: Option<Acceptance>,
    pub(crate) device_token: &'a str,
    pub(crate) node: &'a str,
    pub(crate) app: &'a str,
    pub(crate) service: &'a str,
    pub(crate) domain: &'a str,
}

impl<'a> Record<'a> {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, Error> {
        let texts = [
            self.device_token,
            self.node,
            self.app,
            self.service,
            self.domain,
        ];
        let bytes = texts.iter().map(|text| text.len() + 2).sum::<usize>() + 101;
        let mut to = Vec::with_capacity(bytes);
        let version = match self.acceptance {
            Some(_) => ACCEPTED_VERSION,
            None if self.mask == Mask::default() => RECORD_VERSION,
            None => MASKED_VERSION,
        };
        to.push(version);
        to.extend(self.registered_at.0.to_be_bytes());
        to.extend(self.renewed_at.0.to_be_bytes());
        to.extend(self.account.0);
        to.extend(self.salt);
        if version != RECORD_VERSION {
            to.extend(self.mask);
        }
        if let Some(Acceptance(at)) = self.acceptance {
            to.extend(at.get().to_be_bytes());
        }
        for text in texts {
            match u16::try_from(text.len()) {
                Ok(length) if text.len() <= FIELD_BYTES_MAX => to.extend(length.to_be_bytes()),
                _ => return Err(Error::FieldLength),
            }
            to.extend(text.as_bytes());
        }
        Ok(to)
    }

    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut from = Bytes(bytes);
        let [version @ RECORD_VERSION..=ACCEPTED_VERSION] = from.array()? else {
            return Err(Error::Record);
        };
        let record = Self {
            registered_at: from.seconds()?,
            renewed_at: from.seconds()?,
            account: AccountKey(from.array()?),
            salt: from.array()?,
            mask: match version {
                RECORD_VERSION => Mask::default(),
                _ => from.array()?,
            },
            acceptance: match version {
                ACCEPTED_VERSION => {
                    let at = NonZeroU32::new(u32::from_be_bytes(from.array()?));
                    Some(Acceptance(at.ok_or(Error::Record)?))
                }
                _ => None,
            },
            device_token: from.text()?,
            node: from.text()?,
            app: from.text()?,
            service: from.text()?,
            domain: from.text()?,
        };
        match from.0 {
            [] => Ok(record),
            _ => Err(Error::Record),
        }
    }
}

/// When pushes of a registration last succeeded and last failed, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PushTimes {
    pub(crate) last_success: Option<UnixSeconds>,
    pub(crate) last_error: Option<(UnixSeconds, ErrorReason)>,
    /// Where the last success was. It is kept with the record, not with the times.
    pub(crate) acceptance: Option<Acceptance>,
}

impl PushTimes {
    /// Adds one verdict. Lanes report independently, so the times decide what is last, not the order.
    pub(crate) fn fold(&mut self, touch: Touch) {
        match touch.verdict {
            Ok(acceptance) => self.fold_success(touch.at, Some(acceptance)),
            Err(reason) => self.fold_error(touch.at, reason),
        }
    }

    /// Adds what was folded elsewhere since.
    pub(crate) fn merge(&mut self, later: &Self) {
        if let Some(at) = later.last_success {
            self.fold_success(at, later.acceptance);
        }
        if let Some((at, reason)) = &later.last_error {
            self.fold_error(*at, reason.clone());
        }
    }

    fn fold_success(&mut self, at: UnixSeconds, acceptance: Option<Acceptance>) {
        if self.last_success.is_none_or(|last| last <= at) {
            self.last_success = Some(at);
            self.acceptance = acceptance;
        }
    }

    fn fold_error(&mut self, at: UnixSeconds, reason: ErrorReason) {
        if self.last_error.as_ref().is_none_or(|(last, _)| *last <= at) {
            self.last_error = Some((at, reason));
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let (error_at, reason) = match &self.last_error {
            Some((at, reason)) => (*at, reason.as_str()),
            None => (UnixSeconds(0), ""),
        };
        let mut present = 0;
        if self.last_success.is_some() {
            present |= HAS_SUCCESS;
        }
        if self.last_error.is_some() {
            present |= HAS_ERROR;
        }
        let mut to = Vec::with_capacity(18 + reason.len());
        to.extend([TIMES_VERSION, present]);
        to.extend(self.last_success.unwrap_or_default().0.to_be_bytes());
        to.extend(error_at.0.to_be_bytes());
        to.extend(reason.as_bytes());
        to
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut from = Bytes(bytes);
        let [TIMES_VERSION, present] = from.array()? else {
            return Err(Error::Record);
        };
        let success = from.seconds()?;
        let error = from.seconds()?;
        let reason = std::str::from_utf8(from.0).map_err(|_| Error::Record)?;
        Ok(Self {
            last_success: (present & HAS_SUCCESS != 0).then_some(success),
            last_error: (present & HAS_ERROR != 0).then(|| (error, ErrorReason::foreign(reason))),
            acceptance: None,
        })
    }
}

/// What is left to read of a value.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Error::Record)?;
        self.0 = rest;
        Ok(*array)
    }

    fn seconds(&mut self) -> Result<UnixSeconds, Error> {
        self.array().map(u64::from_be_bytes).map(UnixSeconds)
    }

    fn text(&mut self) -> Result<&'a str, Error> {
        let length = usize::from(u16::from_be_bytes(self.array()?));
        let (text, rest) = self.0.split_at_checked(length).ok_or(Error::Record)?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| Error::Record)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option::of;
    use proptest::prelude::*;

    use super::*;

    fn times() -> impl Strategy<Value = PushTimes> {
        (of(any::<u64>()), of((any::<u64>(), ".{0,80}"))).prop_map(|(success, error)| PushTimes {
            last_success: success.map(UnixSeconds),
            last_error: error.map(|(at, reason)| (UnixSeconds(at), ErrorReason::foreign(&reason))),
            acceptance: None,
        })
    }

    proptest! {
        #[test]
        fn records_come_back(
            registered_at: u64,
            renewed_at: u64,
            account: [u8; 16],
            salt: [u8; 32],
            mask in of(any::<[u8; 32]>()),
            acceptance: u32,
            texts in vec(".{0,300}", 5),
        ) {
            let record = Record {
                registered_at: UnixSeconds(registered_at),
                renewed_at: UnixSeconds(renewed_at),
                account: AccountKey(account),
                salt,
                mask: mask.unwrap_or_default(),
                acceptance: NonZeroU32::new(acceptance / 2).map(Acceptance),
                device_token: &texts[0],
                node: &texts[1],
                app: &texts[2],
                service: &texts[3],
                domain: &texts[4],
            };
            match record.encode() {
                Ok(bytes) => {
                    prop_assert!(Record::decode(&bytes).unwrap() == record);
                    prop_assert!(Record::decode(&bytes[..bytes.len() - 1]).is_err());
                }
                Err(_) => prop_assert!(texts.iter().any(|text| text.len() > FIELD_BYTES_MAX)),
            }
        }

        #[test]
        fn times_come_back(times in times()) {
            prop_assert_eq!(PushTimes::decode(&times.encode()).unwrap(), times);
        }

        #[test]
        fn merging_is_as_good_as_folding(
            touches in vec((0_u64..4, prop_oneof![Just(Ok(NonZeroU32::MIN)), Just(Ok(NonZeroU32::MAX)), "[a-z]".prop_map(Err)]), 0..12),
            cut in 0_usize..12,
        ) {
            let touch = |(at, verdict): &(u64, Result<NonZeroU32, String>)| Touch {
                registration: messages::RegistrationKey([0; 16]),
                at: UnixSeconds(*at),
                verdict: match verdict {
                    Ok(at) => Ok(Acceptance(*at)),
                    Err(reason) => Err(ErrorReason::foreign(reason)),
                },
            };
            let fold = |touches: &[(u64, Result<NonZeroU32, String>)]| {
                let mut times = PushTimes::default();
                touches.iter().for_each(|item| times.fold(touch(item)));
                times
            };
            let (before, after) = touches.split_at(cut.min(touches.len()));
            let mut merged = fold(before);
            merged.merge(&fold(after));
            prop_assert_eq!(merged, fold(&touches));
        }

        #[test]
        fn random_bytes_do_no_harm(mut bytes in vec(any::<u8>(), 0..400), version: bool) {
            if let (true, Some(first)) = (version, bytes.first_mut()) {
                *first = RECORD_VERSION;
            }
            let _ = Record::decode(&bytes);
            let _ = PushTimes::decode(&bytes);
        }
    }

    #[test]
    fn the_layout_on_disk_stays() {
        let record = Record {
            registered_at: UnixSeconds(1),
            renewed_at: UnixSeconds(0x0102),
            account: AccountKey([0xaa; 16]),
            salt: [0xbb; 32],
            mask: [0; 32],
            acceptance: None,
            device_token: "t",
            node: "no",
            app: "",
            service: "s",
            domain: "d",
        };
        let mut bytes = vec![1];
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0, 0, 0, 0, 0, 0, 1, 2]);
        bytes.extend([0xaa; 16]);
        bytes.extend([0xbb; 32]);
        bytes.extend(b"\0\x01t\0\x02no\0\0\0\x01s\0\x01d");
        assert_eq!(record.encode().unwrap(), bytes);
        let masked = Record {
            mask: [0xcc; 32],
            ..record
        };
        let mut expected = bytes.clone();
        expected[0] = 2;
        expected.splice(65..65, [0xcc; 32]);
        assert_eq!(masked.encode().unwrap(), expected);
        let accepted = Record {
            acceptance: NonZeroU32::new(0x0102_0304).map(Acceptance),
            ..masked
        };
        expected[0] = 3;
        expected.splice(97..97, [1, 2, 3, 4]);
        assert_eq!(accepted.encode().unwrap(), expected);
        expected[97..101].fill(0);
        assert!(matches!(Record::decode(&expected), Err(Error::Record)));
        bytes[0] = 4;
        assert!(matches!(Record::decode(&bytes), Err(Error::Record)));
    }
}
