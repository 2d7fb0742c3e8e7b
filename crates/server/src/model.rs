//! A model as the server is given it: a name, what it does, and how its queue is made.

use std::sync::{Arc, OnceLock};

use onelane::{BatchConfig, BatchQueue, BuildError, DeviceExecutor, Engine, EngineError};

use crate::call::Call;
use crate::classifier::Classifier;
use crate::embedder::Embedder;
use crate::failure::Failure;
use crate::inputs::{Input, Inputs};
use crate::lane::Lane;
use crate::model_counters::ModelCounters;
use crate::model_info::ModelInfo;
use crate::predictor::Predictor;
use crate::rate::{Busy, Rate};
use crate::reranker::Reranker;
use crate::signature::Signature;
use crate::tensor::Tensor;
use crate::tensor_lane::{Check, TensorLane};
use crate::text::{TextError, Tokenised, Tokens};
use crate::text_lane::{Encode, TextLane};
use crate::timed::Timed;
use crate::work::{Answers, Queue, Tensors, Work};

/// What a model does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Embed,
    Rerank,
    /// With its labels.
    Classify(Vec<String>),
    /// Tensors, as they are declared.
    Predict(Arc<Signature>),
}

type Build = Box<dyn Fn(&Model, Busy) -> Result<Arc<dyn Work>, BuildError> + Send + Sync>;

/// A model to be served. Its queue is made, and its engine loaded, when the server starts.
pub struct Model {
    pub(crate) name: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) device: String,
    pub(crate) task: Task,
    pub(crate) info: ModelInfo,
    /// `None` for a model that takes no texts.
    pub(crate) tokens: Option<Arc<dyn Tokens>>,
    pub(crate) counters: Arc<ModelCounters>,
    build: Build,
    work: OnceLock<Arc<dyn Work>>,
}

impl Model {
    /// A model that embeds, on a device, with these settings of its queue. Their unit of cost is the
    /// engine's: tokens.
    pub fn embedder<M: Embedder>(
        name: impl Into<String>,
        model: M,
        device: &DeviceExecutor,
        config: BatchConfig,
    ) -> Self {
        let (model, name) = (Arc::new(model), name.into());
        let info = model.info();
        let encoder = Arc::clone(&model);
        let single = move |input: &Input| match input {
            Input::Text(text) => encoder.encode(text),
            Input::Ids(ids) => encoder.encode_ids(ids),
            _ => Err(TextError("this model takes single texts".to_owned())),
        };
        let encoder = Arc::clone(&model);
        let encode: Encode<_> = Arc::new(move |input: &Input| match input {
            Input::EachToken(input) => {
                let Tokenised { item, tokens, truncated } = single(input)?;
                Ok(Tokenised { item: encoder.each_token(item)?, tokens, truncated })
            }
            input => single(input),
        });
        let loader = Arc::clone(&model);
        let parts = Parts::<M::Engine> {
            encode,
            load: Arc::new(move || loader.load()),
            vector: |vector| vector,
            probe: Input::Text,
        };
        Self::new(name, Task::Embed, info, Some(model), parts.build(device, config))
            .on(device.device())
    }

    /// A model that scores texts against a query.
    pub fn reranker<M: Reranker>(
        name: impl Into<String>,
        model: M,
        device: &DeviceExecutor,
        config: BatchConfig,
    ) -> Self {
        let (model, name) = (Arc::new(model), name.into());
        let info = model.info();
        let encoder = Arc::clone(&model);
        let encode: Encode<_> = Arc::new(move |input: &Input| match input {
            Input::Pair(query, text) => encoder.encode(query, text),
            _ => Err(TextError("this model takes a query and a text".to_owned())),
        });
        let loader = Arc::clone(&model);
        let parts = Parts::<M::Engine> {
            encode,
            load: Arc::new(move || loader.load()),
            vector: |score| vec![score],
            probe: |text| Input::Pair("a query".to_owned(), text),
        };
        Self::new(name, Task::Rerank, info, Some(model), parts.build(device, config))
            .on(device.device())
    }

    /// A model that classifies texts.
    pub fn classifier<M: Classifier>(
        name: impl Into<String>,
        model: M,
        device: &DeviceExecutor,
        config: BatchConfig,
    ) -> Self {
        let (model, name) = (Arc::new(model), name.into());
        let (info, labels) = (model.info(), model.labels());
        let encoder = Arc::clone(&model);
        let encode: Encode<_> = Arc::new(move |input: &Input| match input {
            Input::Text(text) => encoder.encode(text, None),
            Input::Pair(text, pair) => encoder.encode(text, Some(pair)),
            _ => Err(TextError::unsupported("take token ids")),
        });
        let loader = Arc::clone(&model);
        let parts = Parts::<M::Engine> {
            encode,
            load: Arc::new(move || loader.load()),
            vector: |scores| scores,
            probe: Input::Text,
        };
        Self::new(name, Task::Classify(labels), info, Some(model), parts.build(device, config))
            .on(device.device())
    }

    /// A model of tensors. A row costs 1.
    pub fn predictor<M: Predictor>(
        name: impl Into<String>,
        model: M,
        device: &DeviceExecutor,
        config: BatchConfig,
    ) -> Self {
        let model = Arc::new(model);
        let signature = Arc::new(model.signature());
        let task = Task::Predict(Arc::clone(&signature));
        let checker = Arc::clone(&model);
        let check: Check = Arc::new(move |input: &Tensor| checker.check(input));
        let load = Arc::new(move || model.load());
        let lane = lane(load, device, config);
        let build: Build = Box::new(move |model, busy| {
            let (signature, check) = (Arc::clone(&signature), Arc::clone(&check));
            Ok(Arc::new(TensorLane { lane: lane(model, busy)?, signature, check }))
        });
        let info = ModelInfo { dtype: String::new(), ..ModelInfo::new(0) };
        Self::new(name.into(), task, info, None, build).on(device.device())
    }

    /// Adds another name that clients may call it by.
    #[must_use]
    pub fn alias(mut self, alias: impl Into<String>) -> Self {
        self.aliases.push(alias.into());
        self
    }

    fn new(
        name: String,
        task: Task,
        info: ModelInfo,
        tokens: Option<Arc<dyn Tokens>>,
        build: Build,
    ) -> Self {
        Self {
            name,
            aliases: Vec::new(),
            device: String::new(),
            task,
            info,
            tokens,
            counters: Arc::default(),
            build,
            work: OnceLock::new(),
        }
    }

    fn on(mut self, device: &str) -> Self {
        self.device = device.to_owned();
        self
    }

    /// Makes the queue and loads the engine.
    ///
    /// # Blocking
    /// Blocks until the engine is there.
    pub(crate) fn load(&self, busy: Busy) -> Result<Arc<dyn Work>, BuildError> {
        (self.build)(self, busy)
    }

    /// From now on calls are answered.
    pub(crate) fn open(&self, work: Arc<dyn Work>) {
        // A server loads each model once.
        let _ = self.work.set(work);
    }

    /// Whether its requests are texts.
    pub(crate) fn takes_texts(&self) -> bool {
        self.tokens.is_some()
    }

    /// Its queue; `None` until it is loaded and checked.
    pub(crate) fn queue(&self) -> Option<&dyn Queue> {
        self.work.get().map(|work| work.queue())
    }

    fn loaded(&self) -> Result<&dyn Work, Failure> {
        self.work.get().map(|work| &**work).ok_or_else(|| {
            Failure::unavailable(format!("the model {} is loading: try again soon", self.name))
        })
    }

    /// Runs a call's texts.
    ///
    /// # Errors
    /// It is loading, or what its queue or engine says.
    pub(crate) async fn run(
        &self,
        inputs: Inputs,
        call: Call,
        truncate: bool,
    ) -> Result<Answers, Failure> {
        let work = self.loaded()?;
        let inputs = inputs.prompted(self.info.default_prompt.as_deref());
        work.run(inputs, call, truncate).await
    }

    /// Runs a call's tensors.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(crate) async fn predict(
        &self,
        tensors: Tensors,
        call: Call,
    ) -> Result<Vec<Tensor>, Failure> {
        self.loaded()?.predict(tensors, call).await
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("name", &self.name)
            .field("device", &self.device)
            .field("task", &self.task)
            .finish_non_exhaustive()
    }
}

/// What differs between the kinds of models of texts.
struct Parts<E: Engine> {
    encode: Encode<E::Item>,
    load: Load<E>,
    vector: fn(E::Output) -> Vec<f32>,
    probe: fn(String) -> Input,
}

impl<E: Engine> Parts<E> {
    fn build(self, device: &DeviceExecutor, config: BatchConfig) -> Build {
        let Self { encode, load, vector, probe } = self;
        let lane = lane(load, device, config);
        Box::new(move |model, busy| {
            Ok(Arc::new(TextLane {
                lane: lane(model, busy)?,
                encode: Arc::clone(&encode),
                vector,
                probe,
                counters: Arc::clone(&model.counters),
            }))
        })
    }
}

type Load<E> = Arc<dyn Fn() -> Result<E, EngineError> + Send + Sync>;

/// Makes a model's lane: its queue, whose engine is loaded then.
fn lane<E: Engine>(
    load: Load<E>,
    device: &DeviceExecutor,
    config: BatchConfig,
) -> impl Fn(&Model, Busy) -> Result<Lane<E>, BuildError> + Send + Sync + use<E> {
    let device = device.clone();
    move |model, busy| {
        let load = Arc::clone(&load);
        let config = config.clone().name(model.name.clone());
        let queue = BatchQueue::new(&device, config, move || load().map(Timed))?;
        let place = (model.device.clone(), model.name.clone());
        Ok(Lane { queue, rate: Rate::default(), busy, place })
    }
}
