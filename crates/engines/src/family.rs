//! The kinds of encoders: what `config.json` calls them, and what their tensors are called.

use crate::nonlinearity::Nonlinearity;

/// A kind of encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// BERT itself.
    Bert,
    /// RoBERTa, XLM-RoBERTa and CamemBERT: positions begin after that of the padding.
    Roberta,
    /// DistilBERT: no segment kinds.
    DistilBert,
    /// MPNet: as RoBERTa, and attention knows how far apart two tokens are.
    Mpnet,
    /// ModernBERT: rotary positions, and layers of its own.
    ModernBert,
}

/// What the tensors of a family are called.
pub(crate) struct Names {
    /// Before every name, if the model was saved with a head on top.
    pub prefix: &'static str,
    /// The vectors of tokens.
    pub words: &'static str,
    /// Before the number of a layer.
    pub layers: &'static str,
    /// Of a layer, as are those that follow; a ModernBERT's have others.
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub attention: &'static str,
    pub attention_norm: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub output_norm: &'static str,
}

const MODERN_BERT: Names = Names {
    prefix: "model.",
    words: "embeddings.tok_embeddings.weight",
    layers: "layers.",
    ..BERT
};

/// What the layers of a classifier's head are called, and how the first one ends.
pub(crate) struct HeadNames {
    pub dense: &'static str,
    /// A normalisation after the first.
    pub norm: Option<&'static str>,
    pub output: &'static str,
    pub nonlinearity: Nonlinearity,
}

const BERT: Names = Names {
    prefix: "bert.",
    words: "embeddings.word_embeddings.weight",
    layers: "encoder.layer.",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    output_norm: "output.LayerNorm",
};

const DISTILBERT: Names = Names {
    prefix: "distilbert.",
    words: "embeddings.word_embeddings.weight",
    layers: "transformer.layer.",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    output_norm: "output_layer_norm",
};

const MPNET: Names = Names {
    prefix: "mpnet.",
    query: "attention.attn.q",
    key: "attention.attn.k",
    value: "attention.attn.v",
    attention: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..BERT
};

impl Family {
    /// The values of `model_type` that there are.
    pub(crate) const KNOWN: &str =
        "bert, roberta, xlm-roberta, camembert, distilbert, mpnet, modernbert";

    /// By the `model_type` of `config.json`.
    pub(crate) fn named(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "bert" => Self::Bert,
            "roberta" | "xlm-roberta" | "camembert" => Self::Roberta,
            "distilbert" => Self::DistilBert,
            "mpnet" => Self::Mpnet,
            "modernbert" => Self::ModernBert,
            _ => return None,
        })
    }

    /// The padding token of a `config.json` that does not say.
    pub(crate) fn padding(self) -> u32 {
        match self {
            Self::Bert | Self::DistilBert => 0,
            Self::Roberta | Self::Mpnet => 1,
            Self::ModernBert => 50_283,
        }
    }

    /// What is added to a variance, of a `config.json` that does not say.
    pub(crate) fn norm_eps(self) -> f64 {
        match self {
            Self::ModernBert => 1e-5,
            _ => 1e-12,
        }
    }

    /// The position of the first token, where `padding` is that of the padding.
    pub(crate) fn first_position(self, padding: u32) -> usize {
        match self {
            Self::Bert | Self::DistilBert | Self::ModernBert => 0,
            Self::Roberta | Self::Mpnet => padding as usize + 1,
        }
    }

    /// Whether tokens have a segment kind.
    pub(crate) fn has_kinds(self) -> bool {
        matches!(self, Self::Bert | Self::Roberta)
    }

    pub(crate) fn names(self) -> Names {
        match self {
            Self::Bert => BERT,
            Self::Roberta => Names { prefix: "roberta.", ..BERT },
            Self::DistilBert => DISTILBERT,
            Self::Mpnet => MPNET,
            Self::ModernBert => MODERN_BERT,
        }
    }

    /// The head of a classifier. A ModernBERT's `config.json` names its non-linearity.
    pub(crate) fn head(self) -> HeadNames {
        match self {
            Self::Bert => HeadNames {
                dense: "bert.pooler.dense",
                norm: None,
                output: "classifier",
                nonlinearity: Nonlinearity::Tanh,
            },
            Self::Roberta | Self::Mpnet => HeadNames {
                dense: "classifier.dense",
                norm: None,
                output: "classifier.out_proj",
                nonlinearity: Nonlinearity::Tanh,
            },
            Self::DistilBert => HeadNames {
                dense: "pre_classifier",
                norm: None,
                output: "classifier",
                nonlinearity: Nonlinearity::Relu,
            },
            Self::ModernBert => HeadNames {
                dense: "head.dense",
                norm: Some("head.norm"),
                output: "classifier",
                nonlinearity: Nonlinearity::GeluErf,
            },
        }
    }
}
