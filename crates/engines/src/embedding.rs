//! A sentence-embedding model as its users see it: opened once, shared by all threads, and loaded
//! into an engine on the worker.

use std::path::Path;
use std::sync::Arc;

use onelane_tokeniser::{BucketConfig, FILE_BYTES, Shape, Tokeniser, TokeniserError, Vocabulary};

use crate::bert::Bert;
use crate::config::BertConfig;
use crate::device_name::DeviceName;
use crate::embedding_engine::EmbeddingEngine;
use crate::error::LoadError;
use crate::model_dir::ModelDir;
use crate::nonlinearity::Nonlinearity;
use crate::projection::Projection;
use crate::sentence_settings::{ProjectionSettings, SentenceSettings};
use crate::shape_log::ShapeLog;
use crate::weights::Weights;

/// Name of the tokeniser's file in a model directory.
const TOKENIZER: &str = "tokenizer.json";

/// What becomes of the empty places in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Padding {
    /// [`Skip`](Self::Skip) on the CPU, [`Pad`](Self::Pad) elsewhere.
    #[default]
    ByDevice,
    /// Rows are filled up to their bucket's length and computed as a whole.
    Pad,
    /// Kernels for ragged rows compute the real tokens only. CPU only.
    Skip,
}

/// Settings of an embedding model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmbeddingConfig {
    /// Length buckets and row counts; `None` means [`BucketConfig::coarse`] where padding is
    /// skipped and [`BucketConfig::fine`] where it is computed. A fast GPU without CUDA graphs may do
    /// better with coarse ones.
    pub buckets: Option<BucketConfig>,
    /// What becomes of the empty places in a run.
    pub padding: Padding,
    /// On CUDA, whether what is done for a shape is recorded, and replayed from then on: faster from
    /// the second batch of a shape on, and takes memory for each.
    pub cuda_graphs: bool,
}

impl Default for EmbeddingConfig {
    fn default() -> Self {
        Self { buckets: None, padding: Padding::default(), cuda_graphs: true }
    }
}

impl EmbeddingConfig {
    /// Sets the length buckets and row counts.
    #[must_use]
    pub fn buckets(mut self, buckets: BucketConfig) -> Self {
        self.buckets = Some(buckets);
        self
    }

    /// Sets what becomes of the empty places in a run.
    #[must_use]
    pub fn padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// Sets whether what is done for a shape is recorded.
    #[must_use]
    pub fn cuda_graphs(mut self, cuda_graphs: bool) -> Self {
        self.cuda_graphs = cuda_graphs;
        self
    }
}

/// A sentence-embedding model of BERT or of an encoder like it: its tokeniser, settings and statistics, without the weights.
///
/// Cheap to clone; every clone sees the same statistics.
///
/// ```no_run
/// use onelane::{BatchConfig, BatchQueue, DeviceExecutor};
/// use onelane_engines::{DeviceName, EmbeddingConfig, EmbeddingModel};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let name = DeviceName::Cpu;
/// let model = EmbeddingModel::open("all-MiniLM-L6-v2", name, EmbeddingConfig::default())?;
/// let device = DeviceExecutor::shared(&name.to_string())?;
/// let factory = model.clone();
/// let queue = BatchQueue::new(&device, BatchConfig::default(), move || Ok(factory.load()?))?;
///
/// let embedding: Vec<f32> = queue.submit(model.tokeniser().encode("a text")?)?.wait()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EmbeddingModel {
    dir: ModelDir,
    config: BertConfig,
    settings: SentenceSettings,
    device: DeviceName,
    skip_padding: bool,
    cuda_graphs: bool,
    tokeniser: Arc<Tokeniser>,
    shapes: ShapeLog,
}

impl EmbeddingModel {
    /// Opens a model directory: reads its settings and tokeniser, not yet its weights.
    ///
    /// # Errors
    /// [`LoadError`] names the file that is missing, damaged or unsupported.
    pub fn open(
        path: impl AsRef<Path>,
        device: DeviceName,
        config: EmbeddingConfig,
    ) -> Result<Self, LoadError> {
        let dir = ModelDir::open(path)?;
        let settings = SentenceSettings::read(&dir)?;
        Self::with_settings(dir, device, config, settings)
    }

    /// As [`open`](Self::open), with settings that somebody has read.
    pub(crate) fn with_settings(
        dir: ModelDir,
        device: DeviceName,
        config: EmbeddingConfig,
        settings: SentenceSettings,
    ) -> Result<Self, LoadError> {
        let skip_padding = match (config.padding, device) {
            (Padding::Pad, _) => false,
            (Padding::ByDevice, device) => device == DeviceName::Cpu,
            (Padding::Skip, DeviceName::Cpu) => true,
            (Padding::Skip, device) => {
                return Err(LoadError::Padding { device: device.to_string() });
            }
        };
        let by_device = if skip_padding { BucketConfig::coarse() } else { BucketConfig::fine() };
        let bert = BertConfig::read(&dir)?;
        let buckets = config.buckets.unwrap_or(by_device);
        let mut width = bert.hidden_size;
        for one in &settings.projections {
            if one.width_in != width {
                let reason = format!("it takes {} numbers of a text's {width}", one.width_in);
                let path = dir.file(&format!("{}/config.json", one.folder));
                return Err(LoadError::damaged(path, &reason));
            }
            width = one.width_out;
        }
        let tokeniser = read_tokeniser(&dir, &bert, &settings, &buckets)?;
        Ok(Self {
            dir,
            config: bert,
            settings,
            device,
            skip_padding,
            cuda_graphs: config.cuda_graphs,
            tokeniser: Arc::new(tokeniser),
            shapes: ShapeLog::default(),
        })
    }

    /// Loads the weights onto the device. Call it in a queue's factory, so that it runs on the
    /// worker.
    ///
    /// # Errors
    /// [`LoadError`] when the device cannot be opened, or the weights are damaged, of another model,
    /// or too large for it.
    pub fn load(&self) -> Result<EmbeddingEngine, LoadError> {
        let device = self.device.open_for_engine()?;
        let settings = &self.settings;
        let projections: Vec<Projection> = settings
            .projections
            .iter()
            .map(|one| self.projection(one))
            .collect::<Result<_, _>>()?;
        // With projections, what they give is scaled.
        let (pooling, normalise) = (settings.pooling, settings.normalise && projections.is_empty());
        let bert = Bert::load(&self.dir, self.config.clone(), &device)?.pooled(pooling, normalise);
        let bert = if self.cuda_graphs { bert } else { bert.without_graphs() };
        // Whatever thread calls first, the weights are there.
        device.synchronize()?;
        let buckets = self.tokeniser.buckets().clone();
        let engine = EmbeddingEngine::new(bert, buckets, self.skip_padding, self.shapes.clone());
        Ok(engine.projected(projections, settings.normalise))
    }

    fn projection(&self, settings: &ProjectionSettings) -> Result<Projection, LoadError> {
        let weights = Weights::open_in(&self.dir, &settings.folder)?;
        let widths = (settings.width_in, settings.width_out);
        let after = if settings.tanh { Nonlinearity::Tanh } else { Nonlinearity::Identity };
        if settings.bias {
            Projection::load(&weights, "linear", widths, after)
        } else {
            Projection::load_without_bias(&weights, "linear", widths, after)
        }
    }

    /// The tokeniser, for the submitting threads.
    pub fn tokeniser(&self) -> &Tokeniser {
        &self.tokeniser
    }

    /// The length limit, pooling and normalisation that the directory asks for.
    pub fn settings(&self) -> &SentenceSettings {
        &self.settings
    }

    pub(crate) fn dir(&self) -> &ModelDir {
        &self.dir
    }

    pub(crate) fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Width of an embedding.
    pub fn hidden_size(&self) -> usize {
        self.settings.projections.last().map_or(self.config.hidden_size, |last| last.width_out)
    }

    /// Whether padding is skipped rather than computed.
    pub fn skips_padding(&self) -> bool {
        self.skip_padding
    }

    /// The distinct shapes run so far; never more than `tokeniser().buckets().max_shapes()`.
    pub fn shapes(&self) -> Vec<Shape> {
        self.shapes.seen()
    }
}

/// Reads `tokenizer.json`. The limit is the one of `sentence_bert_config.json`, else of
/// `tokenizer_config.json`, else of the file itself, else the number of positions.
fn read_tokeniser(
    dir: &ModelDir,
    config: &BertConfig,
    settings: &SentenceSettings,
    buckets: &BucketConfig,
) -> Result<Tokeniser, LoadError> {
    let file = dir.read(TOKENIZER, FILE_BYTES)?;
    let vocabulary = Vocabulary {
        size: config.vocab_size,
        kinds: config.type_vocab_size,
        positions: config.max_position_embeddings,
        max_length: settings.max_length,
        lower_case: settings.lower_case,
    };
    Tokeniser::read(file, vocabulary, buckets).map_err(|error| match error {
        TokeniserError::Buckets(error) => LoadError::Buckets(error),
        error => LoadError::damaged(dir.file(TOKENIZER), &error),
    })
}
