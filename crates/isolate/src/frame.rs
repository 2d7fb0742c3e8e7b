//! The frames on the socket between parent and child: 64 bytes each, all numbers little-endian.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..4 | magic | `1LN1`; the last character is the version of the protocol |
//! | 4..8 | kind | [`Kind`] |
//! | 8..16 | sequence | the number of the batch; a reply repeats it |
//! | 16..20 | count | requests or outputs in the payload |
//! | 20..24 | flags | bit 0: the engine is idempotent |
//! | 24..32 | offset | where the payload starts in the arena |
//! | 32..40 | length | the bytes of the payload |
//! | 40..48 | cost | `Outputs`: of the batch, with padding; `Start`: most bytes of a payload |
//! | 48..56 | footprint | memory of the child in bytes, as it knows it; 0: it does not |
//! | 56..64 | | zero |
//!
//! The conversation: the parent sends `Start` (with the arena's descriptor as `SCM_RIGHTS`, and the
//! start's payload in the arena); the child answers `Building`, `WarmingUp`, then `Ready` or
//! `NotBuilt`. Then, again and again: `Batch`, answered by `Outputs`, `OutOfMemory`, `Failed`,
//! `Panicked` or `Lost`; a child that has to build its engine again before it answers says
//! `Building` and `WarmingUp` meanwhile. `Exit` or the end of the socket ends the child. The arena
//! belongs to who was sent the last frame; whoever needs a larger one makes the file longer, and
//! never shorter. The payload of an error is its text, then its detail: each a `u64` length and the
//! bytes.

/// The length of a frame in bytes.
pub const FRAME_LEN: usize = 64;

const MAGIC: [u8; 4] = *b"1LN1";
const IDEMPOTENT: u32 = 1;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum Kind {
    /// Parent: here is the arena; build the engine.
    Start = 1,
    /// Parent: run this batch.
    Batch = 2,
    /// Parent: drop the engine and end.
    Exit = 3,
    /// Child: it builds its engine.
    Building = 16,
    /// Child: it warms its engine up.
    WarmingUp = 17,
    /// Child: it waits for a batch.
    Ready = 18,
    /// Child: the engine could not be built; it ends.
    NotBuilt = 19,
    /// Child: the outputs of the batch.
    Outputs = 20,
    /// Child: the batch did not fit in the device's memory.
    OutOfMemory = 21,
    /// Child: the batch failed.
    Failed = 22,
    /// Child: the engine panicked; it has been built again.
    Panicked = 23,
    /// Child: the engine cannot go on; it ends.
    Lost = 24,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Start,
        Self::Batch,
        Self::Exit,
        Self::Building,
        Self::WarmingUp,
        Self::Ready,
        Self::NotBuilt,
        Self::Outputs,
        Self::OutOfMemory,
        Self::Failed,
        Self::Panicked,
        Self::Lost,
    ];
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Frame {
    /// What it says.
    pub kind: Kind,
    /// The number of the batch.
    pub sequence: u64,
    /// Requests or outputs in the payload.
    pub count: u32,
    /// Whether a lost batch may be run again.
    pub idempotent: bool,
    /// Where the payload starts in the arena.
    pub offset: u64,
    /// The bytes of the payload.
    pub length: u64,
    /// The cost of the batch as computed; of a start, the most bytes of a payload.
    pub cost: u64,
    /// Memory of the child in bytes; 0: unknown.
    pub footprint: u64,
}

impl Frame {
    /// A frame that says `kind` and nothing else.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            sequence: 0,
            count: 0,
            idempotent: true,
            offset: 0,
            length: 0,
            cost: 0,
            footprint: 0,
        }
    }

    /// The bytes of the frame.
    pub fn encode(&self) -> [u8; FRAME_LEN] {
        let mut bytes = [0; FRAME_LEN];
        let flags = if self.idempotent { IDEMPOTENT } else { 0 };
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.count.to_le_bytes());
        bytes[20..24].copy_from_slice(&flags.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.offset.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.length.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.cost.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.footprint.to_le_bytes());
        bytes
    }

    /// The frame that these bytes are.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8; FRAME_LEN]) -> Result<Self, String> {
        let u32_at = |at: usize| u32::from_le_bytes(array(bytes, at));
        let u64_at = |at: usize| u64::from_le_bytes(array(bytes, at));
        if bytes[0..4] != MAGIC {
            return Err(format!("a frame starts with {:02x?}, not with 1LN1", &bytes[0..4]));
        }
        let number = u32_at(4);
        let kind = Kind::ALL.into_iter().find(|&kind| kind as u32 == number);
        let kind = kind.ok_or_else(|| format!("there is no frame of kind {number}"))?;
        Ok(Self {
            kind,
            sequence: u64_at(8),
            count: u32_at(16),
            idempotent: u32_at(20) & IDEMPOTENT != 0,
            offset: u64_at(24),
            length: u64_at(32),
            cost: u64_at(40),
            footprint: u64_at(48),
        })
    }
}

fn array<const N: usize>(bytes: &[u8; FRAME_LEN], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        for kind in Kind::ALL {
            let frame = Frame {
                kind,
                sequence: 1 << 40,
                count: 3,
                idempotent: false,
                offset: 64,
                length: u64::MAX,
                cost: 7,
                footprint: 1 << 33,
            };
            assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }
    }

    #[test]
    fn garbage_is_named() {
        assert!(Frame::decode(&[0xab; FRAME_LEN]).unwrap_err().contains("1LN1"));
        let mut bytes = Frame::new(Kind::Ready).encode();
        bytes[4] = 99;
        assert!(Frame::decode(&bytes).unwrap_err().contains("kind 99"));
    }
}
