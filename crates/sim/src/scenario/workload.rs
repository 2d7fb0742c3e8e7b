//! What the threads of a scenario compute: the rows of the hazard table.

use std::fmt;

use super::data::{Seeded, WEIGHTS};
use crate::device::SimDevice;
use crate::error::SimResult;
use crate::host::HostTensor;
use crate::models::{Mlp, MultiheadAttention, PackedProjection, Packing, TransformerBlock};
use crate::tensor::Tensor;

/// Sizes of the attention rows: 4 sequences of 128 tokens, 4 heads.
const BATCH: usize = 4;
const LENGTH: usize = 128;
const HEADS: usize = 4;
const WIDTH: usize = 256;

/// A row of the hazard table: what each thread computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Row {
    /// Linear, matmul, bmm, layer norm, softmax, conv2d and gelu, each in a run of its own.
    SingleOps,
    /// Linear, relu, linear: 256-512-128 on 4 rows.
    Mlp,
    /// The minimal race without `.contiguous()`.
    RaceWithoutContiguous,
    /// The minimal race with `.contiguous()`.
    RaceWithContiguous,
    /// `nn.MultiheadAttention`, width 256, 4 heads, on (4, 128, 256).
    Attention,
    /// `nn.TransformerEncoderLayer`, post-norm, feed-forward 1024, on (4, 128, 256).
    TransformerBlock,
}

impl Row {
    /// All rows, in the order of the table.
    pub const ALL: [Row; 6] = [
        Row::SingleOps,
        Row::Mlp,
        Row::RaceWithoutContiguous,
        Row::RaceWithContiguous,
        Row::Attention,
        Row::TransformerBlock,
    ];

    /// Whether patch 035 changes what this row runs.
    pub fn has_packed_projection(self) -> bool {
        matches!(self, Row::Attention | Row::TransformerBlock)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Row::SingleOps => "single ops",
            Row::Mlp => "MLP",
            Row::RaceWithoutContiguous => "race, without contiguous",
            Row::RaceWithContiguous => "race, with contiguous",
            Row::Attention => "MultiheadAttention",
            Row::TransformerBlock => "TransformerBlock",
        })
    }
}

/// A row with its variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Workload {
    /// The row.
    pub row: Row,
    /// How a packed projection is taken apart.
    pub packing: Packing,
    /// The width of the attention rows.
    pub width: usize,
    /// Whether the minimal race keeps its projection alive until after the attention.
    pub keep_projection: bool,
    /// Which of the single operations.
    pub(super) operation: usize,
}

impl Workload {
    /// The row as released.
    pub fn new(row: Row) -> Self {
        Self { row, packing: Packing::Packed, width: WIDTH, keep_projection: false, operation: 0 }
    }

    /// The runs that the row consists of.
    pub(super) fn runs(self) -> Vec<Workload> {
        let runs = match self.row {
            Row::SingleOps => SingleOp::COUNT,
            _ => 1,
        };
        (0..runs).map(|operation| Workload { operation, ..self }).collect()
    }

    /// The same with another packing.
    #[must_use]
    pub fn packing(mut self, packing: Packing) -> Self {
        self.packing = packing;
        self
    }

    /// The same with another width of the attention rows.
    #[must_use]
    pub fn width(mut self, width: usize) -> Self {
        self.width = width;
        self
    }

    /// The same, where the minimal race keeps its projection alive until after the attention.
    #[must_use]
    pub fn keep_projection(mut self) -> Self {
        self.keep_projection = true;
        self
    }

    /// The host weights, drawn with seed 42.
    pub(super) fn weights(&self) -> Vec<HostTensor> {
        let mut seeded = Seeded::new(WEIGHTS);
        let width = self.width;
        let attention = |seeded: &mut Seeded| {
            let mut weights = Vec::from(seeded.linear(width, 3 * width));
            weights.extend(seeded.linear(width, width));
            weights
        };
        match self.row {
            Row::SingleOps => SingleOp(self.operation).weights(&mut seeded),
            Row::Mlp => {
                let mut weights = Vec::from(seeded.linear(256, 512));
                weights.extend(seeded.linear(512, 128));
                weights
            }
            Row::RaceWithoutContiguous | Row::RaceWithContiguous => {
                vec![seeded.normal(&[3 * width, width]), seeded.normal(&[3 * width])]
            }
            Row::Attention => attention(&mut seeded),
            Row::TransformerBlock => {
                let mut weights = attention(&mut seeded);
                weights.extend(seeded.linear(width, 4 * width));
                weights.extend(seeded.linear(4 * width, width));
                weights.extend(seeded.norm(width));
                weights.extend(seeded.norm(width));
                weights
            }
        }
    }

    /// The host input that `thread` uses in `iteration`. The minimal race draws new ones in every
    /// iteration, the other rows per thread.
    pub(super) fn input(&self, iteration: usize, thread: usize) -> HostTensor {
        let per_thread = Seeded::new((thread * 1000) as u64 + WEIGHTS);
        match self.row {
            Row::SingleOps => { per_thread }.normal(SingleOp(self.operation).shape()),
            Row::Mlp => { per_thread }.normal(&[4, 256]),
            Row::RaceWithoutContiguous | Row::RaceWithContiguous => {
                let mut seeded = Seeded::new((iteration * 1000 + thread) as u64);
                seeded.normal(&[BATCH, LENGTH, self.width])
            }
            Row::Attention | Row::TransformerBlock => {
                { per_thread }.normal(&[BATCH, LENGTH, self.width])
            }
        }
    }

    /// Whether each iteration has inputs of its own.
    pub(super) fn has_new_inputs(&self) -> bool {
        matches!(self.row, Row::RaceWithoutContiguous | Row::RaceWithContiguous)
    }

    /// Uploads the weights: the model of the calling thread, or of all.
    pub(super) fn build(&self, device: &SimDevice, weights: &[HostTensor]) -> SimResult<Model> {
        if self.row == Row::SingleOps {
            return Ok(Model::SingleOp(SingleOp(self.operation), weights.to_vec()));
        }
        let uploaded: SimResult<Vec<Tensor>> = weights.iter().map(|w| device.upload(w)).collect();
        let mut uploaded = uploaded?.into_iter();
        let mut pair = || {
            [0, 1].map(|_| uploaded.next().expect("every row has the weights that its model takes"))
        };
        Ok(match self.row {
            Row::SingleOps | Row::Mlp => Model::Mlp(Mlp { up: pair(), down: pair() }),
            Row::RaceWithoutContiguous | Row::RaceWithContiguous => {
                Model::PackedProjection(PackedProjection {
                    projection: pair(),
                    heads: HEADS,
                    contiguous: self.row == Row::RaceWithContiguous,
                    keep: self.keep_projection,
                })
            }
            Row::Attention => Model::Attention(self.attention(&mut pair)),
            Row::TransformerBlock => Model::TransformerBlock(Box::new(TransformerBlock {
                attention: self.attention(&mut pair),
                up: pair(),
                down: pair(),
                norm1: pair(),
                norm2: pair(),
            })),
        })
    }

    fn attention(&self, pair: &mut impl FnMut() -> [Tensor; 2]) -> MultiheadAttention {
        MultiheadAttention {
            projection: pair(),
            output: pair(),
            heads: HEADS,
            packing: self.packing,
        }
    }
}

/// A row's model with its weights.
#[derive(Debug)]
pub(super) enum Model {
    SingleOp(SingleOp, Vec<HostTensor>),
    Mlp(Mlp),
    PackedProjection(PackedProjection),
    Attention(MultiheadAttention),
    TransformerBlock(Box<TransformerBlock>),
}

impl Model {
    pub(super) fn forward(&self, x: &Tensor) -> SimResult<Tensor> {
        match self {
            Model::SingleOp(operation, weights) => operation.forward(x, weights),
            Model::Mlp(mlp) => mlp.forward(x),
            Model::PackedProjection(race) => race.forward(x),
            Model::Attention(attention) => attention.forward(x),
            Model::TransformerBlock(block) => block.forward(x),
        }
    }
}

/// An operation of the ten tests, the largest made smaller. As there, the operation's weights are
/// uploaded by the thread within the call, and die when it returns.
#[derive(Clone, Copy, Debug)]
pub(super) struct SingleOp(usize);

impl SingleOp {
    const COUNT: usize = 7;

    fn weights(self, seeded: &mut Seeded) -> Vec<HostTensor> {
        match self.0 {
            0 => seeded.linear(512, 256).into(),
            1 => vec![seeded.normal(&[512, 256])],
            2 => vec![seeded.normal(&[8, 64, 64])],
            3 => seeded.norm(768).into(),
            4 => vec![
                seeded.uniform(&[64, 3, 3, 3], (-0.2, 0.2)),
                seeded.uniform(&[64], (-0.2, 0.2)),
            ],
            _ => Vec::new(),
        }
    }

    fn shape(self) -> &'static [usize] {
        match self.0 {
            0 => &[16, 512],
            1 => &[256, 512],
            2 => &[8, 64, 64],
            3 => &[4, 128, 768],
            4 => &[4, 3, 28, 28],
            5 => &[4, 32, 4000],
            _ => &[4, 128, 768],
        }
    }

    fn forward(self, x: &Tensor, weights: &[HostTensor]) -> SimResult<Tensor> {
        let weight = |at: usize| x.device().upload(&weights[at]);
        match self.0 {
            0 => x.linear(&weight(0)?, &weight(1)?),
            1 => x.matmul(&weight(0)?),
            2 => x.bmm(&weight(0)?),
            3 => x.layer_norm(&weight(0)?, &weight(1)?),
            4 => x.conv2d(&weight(0)?, &weight(1)?, 1),
            5 => x.softmax(),
            _ => x.gelu(),
        }
    }
}
