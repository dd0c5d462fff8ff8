//! The name of every tensor of a model, and how the two kinds of files spell it.
//!
//! Invariant: one name, one shape: [`TensorName::shape`] is what a file is held to.

use crate::config::ModelConfig;

/// A tensor of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorName {
    /// `[V, C]`.
    Embedding,
    /// `[C]`, before the head.
    FinalNorm,
    /// `[V, C]`.
    Head,
    /// A tensor of the block with this number, from 0.
    Layer(usize, LayerTensor),
}

/// A tensor of one transformer block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    /// `[C]`, before attention.
    AttentionNorm,
    /// `[H * D, C]`.
    Query,
    /// `[KV * D, C]`.
    Key,
    /// `[KV * D, C]`.
    Value,
    /// `[C, H * D]`.
    Output,
    /// `[H * D]`.
    QueryBias,
    /// `[KV * D]`.
    KeyBias,
    /// `[KV * D]`.
    ValueBias,
    /// `[D]`, over each query head.
    QueryNorm,
    /// `[D]`, over each key head.
    KeyNorm,
    /// `[C]`, over what attention adds to the residual stream; only with post-norms.
    AttentionPostNorm,
    /// `[C]`, before the feed-forward block.
    FeedForwardNorm,
    /// The same with post-norms, whose files of transformers spell it otherwise.
    FeedForwardPreNorm,
    /// `[C]`, over what the feed-forward block adds; only with post-norms.
    FeedForwardPostNorm,
    /// `[F, C]`.
    Gate,
    /// `[F, C]`.
    Up,
    /// `[C, F]`.
    Down,
}

/// Where a checkpoint of transformers keeps the text model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is all there is.
    Alone,
    /// Inside a model that also sees images, by the names of its modules.
    Inside,
    /// The same, by the names that published files have.
    InsidePublished,
}

impl Place {
    pub(super) const ALL: [Self; 3] = [Self::Alone, Self::Inside, Self::InsidePublished];

    /// A tensor's name there.
    pub(super) fn spell(self, name: TensorName) -> String {
        let name = name.hugging_face();
        match (self, name.strip_prefix("model.")) {
            (Self::Inside, Some(rest)) => format!("model.language_model.{rest}"),
            (Self::InsidePublished, _) => format!("language_model.{name}"),
            (Self::Alone, _) | (Self::Inside, None) => name,
        }
    }
}

impl TensorName {
    /// Every tensor of a model of this description, in the order of its computation.
    pub fn all(config: &ModelConfig) -> Vec<Self> {
        let biases = [
            LayerTensor::QueryBias,
            LayerTensor::KeyBias,
            LayerTensor::ValueBias,
        ];
        let layer_tensors: Vec<LayerTensor> = [
            LayerTensor::AttentionNorm,
            LayerTensor::Query,
            LayerTensor::Key,
            LayerTensor::Value,
            LayerTensor::Output,
        ]
        .into_iter()
        .chain(biases.into_iter().filter(|_| config.attention_bias))
        .chain(
            [LayerTensor::QueryNorm, LayerTensor::KeyNorm]
                .into_iter()
                .filter(|_| config.qk_norm),
        )
        .chain(match config.post_norms {
            true => vec![
                LayerTensor::AttentionPostNorm,
                LayerTensor::FeedForwardPreNorm,
                LayerTensor::FeedForwardPostNorm,
            ],
            false => vec![LayerTensor::FeedForwardNorm],
        })
        .chain([LayerTensor::Gate, LayerTensor::Up, LayerTensor::Down])
        .collect();
        let layers = (0..config.n_layers).flat_map(|layer| {
            layer_tensors
                .iter()
                .map(move |&tensor| Self::Layer(layer, tensor))
        });
        std::iter::once(Self::Embedding)
            .chain(layers)
            .chain([Self::FinalNorm])
            .chain((!config.tied_head).then_some(Self::Head))
            .collect()
    }

    /// As checkpoints of transformers spell it.
    pub fn hugging_face(self) -> String {
        match self {
            Self::Embedding => "model.embed_tokens.weight".to_owned(),
            Self::FinalNorm => "model.norm.weight".to_owned(),
            Self::Head => "lm_head.weight".to_owned(),
            Self::Layer(layer, tensor) => {
                format!("model.layers.{layer}.{}.{}", tensor.module(), tensor.kind())
            }
        }
    }

    /// As GGUF files spell it.
    pub fn gguf(self) -> String {
        match self {
            Self::Embedding => "token_embd.weight".to_owned(),
            Self::FinalNorm => "output_norm.weight".to_owned(),
            Self::Head => "output.weight".to_owned(),
            Self::Layer(layer, tensor) => format!("blk.{layer}.{}.{}", tensor.gguf_module(), tensor.kind()),
        }
    }

    /// Shape in a model of this description, outermost first.
    pub fn shape(self, config: &ModelConfig) -> Vec<usize> {
        match self {
            Self::Embedding | Self::Head => vec![config.vocab_size, config.hidden],
            Self::FinalNorm => vec![config.hidden],
            Self::Layer(_, tensor) => tensor.shape(config),
        }
    }
}

impl LayerTensor {
    /// Shape in a model of this description, outermost first.
    pub fn shape(self, config: &ModelConfig) -> Vec<usize> {
        let (hidden, ffn, heads) = (config.hidden, config.ffn, config.heads);
        let (queries, keys) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
        match self {
            Self::AttentionNorm
            | Self::AttentionPostNorm
            | Self::FeedForwardNorm
            | Self::FeedForwardPreNorm
            | Self::FeedForwardPostNorm => vec![hidden],
            Self::Query => vec![queries, hidden],
            Self::Key | Self::Value => vec![keys, hidden],
            Self::Output => vec![hidden, queries],
            Self::QueryBias => vec![queries],
            Self::KeyBias | Self::ValueBias => vec![keys],
            Self::QueryNorm | Self::KeyNorm => vec![heads.head_dim],
            Self::Gate | Self::Up => vec![ffn, hidden],
            Self::Down => vec![hidden, ffn],
        }
    }

    /// The module within a block as transformers and PEFT spell it.
    pub const fn module(self) -> &'static str {
        match self {
            Self::AttentionNorm => "input_layernorm",
            Self::Query | Self::QueryBias => "self_attn.q_proj",
            Self::Key | Self::KeyBias => "self_attn.k_proj",
            Self::Value | Self::ValueBias => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::QueryNorm => "self_attn.q_norm",
            Self::KeyNorm => "self_attn.k_norm",
            Self::FeedForwardNorm | Self::AttentionPostNorm => "post_attention_layernorm",
            Self::FeedForwardPreNorm => "pre_feedforward_layernorm",
            Self::FeedForwardPostNorm => "post_feedforward_layernorm",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    const fn gguf_module(self) -> &'static str {
        match self {
            Self::AttentionNorm => "attn_norm",
            Self::Query | Self::QueryBias => "attn_q",
            Self::Key | Self::KeyBias => "attn_k",
            Self::Value | Self::ValueBias => "attn_v",
            Self::Output => "attn_output",
            Self::QueryNorm => "attn_q_norm",
            Self::KeyNorm => "attn_k_norm",
            Self::AttentionPostNorm => "post_attention_norm",
            Self::FeedForwardNorm | Self::FeedForwardPreNorm => "ffn_norm",
            Self::FeedForwardPostNorm => "post_ffw_norm",
            Self::Gate => "ffn_gate",
            Self::Up => "ffn_up",
            Self::Down => "ffn_down",
        }
    }

    const fn kind(self) -> &'static str {
        match self {
            Self::QueryBias | Self::KeyBias | Self::ValueBias => "bias",
            _ => "weight",
        }
    }
}
