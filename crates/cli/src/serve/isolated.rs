//! An embedding model of candle whose engine runs in a child process: this program once more.
//!
//! The child is told by its environment which model to load, and gets token ids.

use std::path::Path;

use anyhow::Context;
use onelane::{BatchItem, Engine, EngineError};
use onelane_engines::{
    DeviceName, EmbeddingConfig, EmbeddingEngine, EmbeddingModel, TokenisedText,
};
use onelane_isolate::{
    Isolated, IsolationConfig, Reader, Supervisor, Wire, WireError, Writer, this_program,
};
use onelane_server::{Embedder, ModelInfo, TextError, Token, Tokenised, Tokens};

use super::embedding;

/// The environment of a child: its model's directory and device.
const MODEL: &str = "ONELANE_CHILD_MODEL";
const DEVICE: &str = "ONELANE_CHILD_DEVICE";

/// An embedding model whose engine runs in a child process.
pub struct IsolatedEmbedding {
    model: EmbeddingModel,
    factory: Box<dyn Fn() -> Result<Isolated<ChildEngine>, EngineError> + Send + Sync>,
}

impl IsolatedEmbedding {
    /// # Errors
    /// When the directory has no absolute path, or no supervisor can be made.
    pub fn new(model: EmbeddingModel, dir: &Path, device: DeviceName) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir).with_context(|| dir.display().to_string())?;
        let command = move || {
            let mut command = this_program();
            command.env(MODEL, &dir).env(DEVICE, device.to_string());
            command
        };
        let supervisor = Supervisor::new(command, IsolationConfig::default())?;
        let factory = Box::new(Isolated::<ChildEngine>::factory(&supervisor));
        Ok(Self { model, factory })
    }
}

impl Tokens for IsolatedEmbedding {
    fn tokens(&self, text: &str, special: bool) -> Result<Vec<Token>, TextError> {
        embedding::tokens(&self.model, text, special)
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let decoded = self.model.tokeniser().decode(ids, skip_special);
        decoded.map_err(|error| TextError(error.to_string()))
    }
}

impl Embedder for IsolatedEmbedding {
    type Engine = Isolated<ChildEngine>;

    fn load(&self) -> Result<Self::Engine, EngineError> {
        (self.factory)()
    }

    fn encode(&self, text: &str) -> Result<Tokenised<ChildText>, TextError> {
        embedding::encode(&self.model, text).map(sent)
    }

    fn encode_ids(&self, ids: &[u32]) -> Result<Tokenised<ChildText>, TextError> {
        embedding::encode_ids(&self.model, ids).map(sent)
    }

    fn info(&self) -> ModelInfo {
        embedding::info(&self.model)
    }
}

fn sent(text: Tokenised<TokenisedText>) -> Tokenised<ChildText> {
    let item = ChildText { ids: text.item.ids().to_vec(), bucket: text.item.bucket() };
    Tokenised { item, tokens: text.tokens, truncated: text.truncated }
}

/// A text on its way to the child.
pub struct ChildText {
    ids: Vec<u32>,
    bucket: usize,
}

/// As in the parent: a text's bucket, and its real tokens.
impl BatchItem for ChildText {
    type Key = usize;

    fn key(&self) -> usize {
        self.bucket
    }

    fn cost(&self) -> usize {
        self.ids.len()
    }
}

impl Wire for ChildText {
    fn write(&self, to: &mut Writer<'_>) {
        self.ids.write(to);
        (self.bucket as u64).write(to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let ids = Vec::read(from)?;
        let bucket = usize::try_from(u64::read(from)?).unwrap_or(usize::MAX);
        Ok(Self { ids, bucket })
    }
}

/// The engine as it is in the child.
pub struct ChildEngine {
    engine: EmbeddingEngine,
    model: EmbeddingModel,
}

impl ChildEngine {
    fn texts(&self, batch: &[ChildText]) -> Result<Vec<TokenisedText>, EngineError> {
        let text = |text: &ChildText| self.model.tokeniser().encode_ids(&text.ids);
        batch.iter().map(text).collect::<Result<_, _>>().map_err(EngineError::failed)
    }
}

impl Engine for ChildEngine {
    type Item = ChildText;
    type Output = Vec<f32>;

    fn infer(&mut self, batch: &[ChildText]) -> Result<Vec<Vec<f32>>, EngineError> {
        let texts = self.texts(batch)?;
        self.engine.infer(&texts)
    }

    fn warmup(&mut self) -> Result<(), EngineError> {
        self.engine.warmup()
    }

    fn padded_cost(&self, batch: &[ChildText]) -> usize {
        match self.texts(batch) {
            Ok(texts) => self.engine.padded_cost(&texts),
            Err(_) => batch.iter().map(BatchItem::cost).sum(),
        }
    }
}

/// If this process is a child of a server, serves its model to the end and does not return.
pub fn run_if_child() {
    let (Some(model), Ok(device)) = (std::env::var_os(MODEL), std::env::var(DEVICE)) else {
        return;
    };
    onelane_isolate::serve(|| {
        let device: DeviceName = device.parse().map_err(EngineError::failed)?;
        let model = EmbeddingModel::open(&model, device, EmbeddingConfig::default())?;
        let engine = model.load()?;
        Ok(ChildEngine { engine, model })
    });
}
