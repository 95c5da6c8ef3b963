//! What the records hold: who appended them and as which, and bytes that follow from that. So a record
//! tells by itself whether anybody ever appended it.

use crate::random::Random;

const HEAD: usize = 24;

/// One record of the workload. Producers count their records from 0 in each life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Id {
    pub life: u32,
    pub producer: u32,
    pub index: u64,
}

impl Id {
    /// The bytes of the record, in the recording with this seed.
    pub fn bytes(self, seed: u64) -> Vec<u8> {
        let mut random = Random::new(&[seed, self.life.into(), self.producer.into(), self.index]);
        let len = match random.below(200) {
            0 => 20_000,
            1..=5 => random.below(9_000),
            _ => random.below(900),
        };
        let mut bytes = Vec::with_capacity(HEAD + len as usize + 8);
        bytes.extend(self.life.to_le_bytes());
        bytes.extend(self.producer.to_le_bytes());
        bytes.extend(self.index.to_le_bytes());
        bytes.extend(seed.to_le_bytes());
        while bytes.len() < HEAD + len as usize {
            bytes.extend(random.next().to_le_bytes());
        }
        bytes.truncate(HEAD + len as usize);
        bytes
    }

    /// Whose record this is; none where nobody appended such bytes.
    pub fn of(bytes: &[u8], seed: u64) -> Option<Id> {
        let id = Id {
            life: u32::from_le_bytes(bytes.get(0..4)?.try_into().ok()?),
            producer: u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?),
            index: u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?),
        };
        (id.bytes(seed) == bytes).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_known_by_its_bytes() {
        for index in 0..300 {
            let id = Id { life: 2, producer: 1, index };
            let mut bytes = id.bytes(7);
            assert_eq!(Id::of(&bytes, 7), Some(id));
            assert_eq!(Id::of(&bytes, 8), None);
            let at = bytes.len() - 1;
            bytes[at] ^= 1;
            assert_eq!(Id::of(&bytes, 7), None);
        }
    }
}
