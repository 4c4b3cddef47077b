//! The record that both sides exchange inside the handshake (`docs/wire.md`, section 2).

const VERSION: u8 = 1;
const LENGTH: usize = 25;
/// The smallest `max_payload` that a record may name: a payload fills at least one small datagram,
/// and the packet driver has room for its headers.
pub(crate) const MIN_PAYLOAD: u32 = 1_200;

/// What one side says about itself in the handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Params {
    /// Random number of this run. A new one says that everything before it is gone.
    pub(crate) instance: u64,
    /// The other side's instance as last known, 0 if none.
    pub(crate) other: u64,
    pub(crate) max_payload: u32,
    pub(crate) initial_credit: u32,
}

impl Params {
    pub(crate) fn emit(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.instance.to_be_bytes());
        out.extend_from_slice(&self.other.to_be_bytes());
        out.extend_from_slice(&self.max_payload.to_be_bytes());
        out.extend_from_slice(&self.initial_credit.to_be_bytes());
        out
    }

    /// `None` for a record of another version or length, of the instance 0, which means "none", or
    /// of payloads too small to work with.
    pub(crate) fn parse(record: &[u8]) -> Option<Params> {
        if record.len() != LENGTH || record[0] != VERSION {
            return None;
        }
        let eight = |at: usize| {
            u64::from_be_bytes(
                record[at..at + 8]
                    .try_into()
                    .expect("the length was compared"),
            )
        };
        let four = |at: usize| {
            u32::from_be_bytes(
                record[at..at + 4]
                    .try_into()
                    .expect("the length was compared"),
            )
        };
        let params = Params {
            instance: eight(1),
            other: eight(9),
            max_payload: four(17),
            initial_credit: four(21),
        };
        (params.instance != 0 && params.max_payload >= MIN_PAYLOAD).then_some(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_emitted_is_parsed_again() {
        let params = Params {
            instance: 1 << 60,
            other: 7,
            max_payload: 65_536,
            initial_credit: 1,
        };
        let record = params.emit();
        assert_eq!(Params::parse(&record), Some(params));
        assert_eq!(Params::parse(&record[1..]), None);
        assert_eq!(
            Params::parse(
                &Params {
                    instance: 0,
                    ..params
                }
                .emit()
            ),
            None
        );
        for (max_payload, good) in [
            (0, false),
            (127, false),
            (1_199, false),
            (1_200, true),
            (u32::MAX, true),
        ] {
            let params = Params {
                max_payload,
                ..params
            };
            assert_eq!(Params::parse(&params.emit()), good.then_some(params));
        }
        for at in 0..record.len() {
            let mut other = record.clone();
            other[at] ^= 1;
            assert_ne!(Params::parse(&other), Some(params));
        }
    }
}
