//! The device's memory: blocks with real bytes.
//!
//! A block's bytes are shared, copy-on-write, with uploads and with the memo of pure kernels, so that
//! many equal buffers cost the memory of one. Invariant: `data` holds at most `size` bytes; what lies
//! beyond it reads as zero, as in fresh memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

/// Contents of device memory. Words of `f32`, because most of what is stored are floats; kernels see
/// bytes.
pub(crate) type Words = Arc<Vec<f32>>;

/// Words needed for a number of bytes.
pub(crate) fn words(bytes: usize) -> usize {
    bytes.div_ceil(4)
}

/// Who wrote to a block last.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// The block's generation for the writer.
    pub(crate) generation: u32,
    /// The stream that the write came from.
    pub(crate) stream: u32,
}

/// A block of device memory.
#[derive(Debug)]
pub(crate) struct Block {
    /// Its size in bytes.
    pub(crate) size: usize,
    pub(crate) data: Words,
    /// A hash of the first so many bytes. Equal hashes mean equal bytes; different ones mean nothing.
    pub(crate) hash: Option<(usize, u128)>,
    /// How often it was allocated.
    pub(crate) generation: u32,
    /// The stream that it was allocated on.
    pub(crate) stream: u32,
    /// The streams whose uncommitted commands refer to it, once per reference.
    pub(crate) pending: Vec<u32>,
    pub(crate) written: Option<Written>,
}

/// All blocks.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) blocks: Vec<Block>,
    /// Vectors that nobody uses, by length: page faults cost more than arithmetic here.
    spares: BTreeMap<usize, Vec<Vec<f32>>>,
    spare_bytes: usize,
}

const SPARE_BYTES: usize = 256 << 20;

impl Memory {
    /// A new block; its number.
    pub(crate) fn grow(&mut self, size: usize, stream: u32) -> u32 {
        let block = u32::try_from(self.blocks.len()).expect("fewer than 2^32 blocks");
        self.blocks.push(Block {
            size,
            data: Arc::new(Vec::new()),
            hash: None,
            generation: 0,
            stream,
            pending: Vec::new(),
            written: None,
        });
        block
    }

    pub(crate) fn block(&self, block: u32) -> &Block {
        &self.blocks[block as usize]
    }

    pub(crate) fn block_mut(&mut self, block: u32) -> &mut Block {
        &mut self.blocks[block as usize]
    }

    /// The first `bytes` bytes of a block, to read.
    pub(crate) fn read(&mut self, block: u32, bytes: usize) -> Words {
        let block = self.block_mut(block);
        if block.data.len() < words(bytes) {
            Arc::make_mut(&mut block.data).resize(words(bytes), 0.0);
        }
        Arc::clone(&block.data)
    }

    /// The hash of the first `bytes` bytes.
    pub(crate) fn hash(&mut self, block: u32, bytes: usize) -> u128 {
        if let Some((length, hash)) = self.block(block).hash
            && length == bytes
        {
            return hash;
        }
        let data = self.read(block, bytes);
        let hash = xxh3_128(&bytemuck::cast_slice::<f32, u8>(&data)[..bytes]);
        self.block_mut(block).hash = Some((bytes, hash));
        hash
    }

    /// Takes a block's contents out, at least `bytes` long, to write to them. With `overwrite` the
    /// first `bytes` bytes may hold anything.
    pub(crate) fn take(&mut self, block: u32, bytes: usize, overwrite: bool) -> Vec<f32> {
        let need = words(bytes);
        let data = std::mem::take(&mut self.block_mut(block).data);
        match Arc::try_unwrap(data) {
            Ok(mut own) => {
                if own.len() < need {
                    own.resize(need, 0.0);
                }
                own
            }
            Err(shared) if overwrite && shared.len() <= need => self.spare(need),
            Err(shared) => {
                let mut own = self.spare(need.max(shared.len()));
                own[..shared.len()].copy_from_slice(&shared);
                own[shared.len()..].fill(0.0);
                own
            }
        }
    }

    /// Puts contents into a block.
    pub(crate) fn put(&mut self, block: u32, data: Words, hash: Option<(usize, u128)>) {
        let old = std::mem::replace(&mut self.block_mut(block).data, data);
        self.block_mut(block).hash = hash;
        if let Ok(old) = Arc::try_unwrap(old)
            && !old.is_empty()
            && self.spare_bytes + old.len() * 4 <= SPARE_BYTES
        {
            self.spare_bytes += old.len() * 4;
            self.spares.entry(old.len()).or_default().push(old);
        }
    }

    /// Overwrites the first `bytes` bytes by `data`, which is exactly that long.
    pub(crate) fn overwrite(&mut self, block: u32, data: &Words, hash: (usize, u128)) {
        if self.block(block).data.len() <= data.len() {
            self.put(block, Arc::clone(data), Some(hash));
        } else {
            let mut own = self.take(block, hash.0, false);
            own[..data.len()].copy_from_slice(data);
            self.put(block, Arc::new(own), Some(hash));
        }
    }

    fn spare(&mut self, length: usize) -> Vec<f32> {
        match self.spares.get_mut(&length).and_then(Vec::pop) {
            Some(spare) => {
                self.spare_bytes -= length * 4;
                spare
            }
            None => vec![0.0; length],
        }
    }
}
