//! The models of a server, by name and by task.

use std::sync::Arc;

use crate::failure::{Failure, Kind};
use crate::model::{Model, Task};

/// The models of a server, in the order that they were given; the first of a task is what calls
/// without a name get.
pub(crate) struct Registry {
    models: Vec<Arc<Model>>,
}

/// What a call wants of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Embed,
    Rerank,
    Classify,
}

impl Wanted {
    fn is(self, task: &Task) -> bool {
        matches!(
            (self, task),
            (Self::Embed, Task::Embed)
                | (Self::Rerank, Task::Rerank)
                | (Self::Classify, Task::Classify(_))
        )
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Rerank => "rerank",
            Self::Classify => "classify",
        }
    }
}

impl Registry {
    /// # Errors
    /// No model, or two of one name.
    pub(crate) fn new(models: Vec<Model>) -> Result<Self, String> {
        let mut names: Vec<&str> = models.iter().flat_map(names).collect();
        if names.is_empty() {
            return Err("a server needs a model".to_owned());
        }
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("two models are called {:?}", twice[0]));
        }
        Ok(Self { models: models.into_iter().map(Arc::new).collect() })
    }

    pub(crate) fn all(&self) -> &[Arc<Model>] {
        &self.models
    }

    /// The model that the server is known by.
    pub(crate) fn first(&self) -> &Arc<Model> {
        &self.models[0]
    }

    /// The model that calls of texts without a name mean, whatever it does with them.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn first_of_texts(&self) -> Result<&Arc<Model>, Failure> {
        self.models
            .iter()
            .find(|model| model.takes_texts())
            .ok_or_else(|| Failure::new(Kind::NotFound, "no model of this server takes texts"))
    }

    /// The model of this name or alias. Ollama's clients add a tag to it.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn named(&self, name: &str) -> Result<&Arc<Model>, Failure> {
        let plain = name.strip_suffix(":latest").unwrap_or(name);
        let found = |wanted: &str| self.models.iter().find(|m| names(m).any(|n| n == wanted));
        found(name).or_else(|| found(plain)).ok_or_else(|| {
            let known: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
            let message = format!("no model is called {name:?}; there is {}", known.join(", "));
            Failure::new(Kind::NotFound, message)
        })
    }

    /// The model of this name, or the first that does what is wanted.
    ///
    /// # Errors
    /// There is none, or it does something else.
    pub(crate) fn find(&self, name: Option<&str>, wanted: Wanted) -> Result<&Arc<Model>, Failure> {
        match name.filter(|name| !name.is_empty()) {
            Some(name) => {
                let model = self.named(name)?;
                if wanted.is(&model.task) {
                    return Ok(model);
                }
                let message = format!("the model {name:?} does not {}", wanted.verb());
                Err(Failure::new(Kind::NotFound, message).at("model"))
            }
            None => self.models.iter().find(|model| wanted.is(&model.task)).ok_or_else(|| {
                let message = format!("no model of this server can {}", wanted.verb());
                Failure::new(Kind::NotFound, message)
            }),
        }
    }
}

fn names(model: &Model) -> impl Iterator<Item = &str> {
    std::iter::once(model.name.as_str()).chain(model.aliases.iter().map(String::as_str))
}
