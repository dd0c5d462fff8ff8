//! Tests of named tensors.

use llamaduo_kernels::HeadDims;

use super::*;
use crate::config::{Rope, RopeScaling};
use crate::gguf::tests::Builder;
use crate::safetensors::{Named, serialize};

const HEADS: HeadDims = HeadDims {
    n_heads: 3,
    n_kv_heads: 1,
    head_dim: 8,
};
/// Width of a row: one block of Q8_0.
const HIDDEN: usize = 32;

fn config() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        vocab_size: 2,
        hidden: HIDDEN,
        n_layers: 1,
        heads: HEADS,
        ffn: 4,
        rms_norm_epsilon: 1e-5,
        norm_weight_offset: 0.0,
        rope: Rope {
            theta: 1e4,
            scaling: RopeScaling::Unscaled,
        },
        local_rope: None,
        context_len: 16,
        tied_head: true,
        activation: llamaduo_kernels::GateActivation::Silu,
        embedding_scale: 1.0,
        attention_bias: false,
        qk_norm: false,
        post_norms: false,
        windows: vec![None],
        attention_scale: 1.0,
        bos: None,
        eos: Vec::new(),
        pad: None,
    }
}

const QUERY: TensorName = TensorName::Layer(0, LayerTensor::Query);

/// Rows as llama.cpp's converter permutes them: `reshape(heads, 2, D/2, …).swapaxes(1, 2)`.
fn permuted<T: Clone>(rows: &[T], n_heads: usize, head_dim: usize) -> Vec<T> {
    let mut permuted = Vec::new();
    for head in 0..n_heads {
        for pair in 0..head_dim / 2 {
            for half in 0..2 {
                permuted.push(rows[head * head_dim + half * (head_dim / 2) + pair].clone());
            }
        }
    }
    permuted
}

/// The bytes of a matrix.
fn bytes_of(weight: &HostWeight) -> Vec<u8> {
    let HostWeight::Blocks(matrix) = weight else {
        panic!("{weight:?}")
    };
    matrix.data().to_vec()
}

fn gguf(builder: Builder) -> Weights {
    Weights::from_gguf(builder.open().unwrap(), config())
}

#[test]
fn interleaved_rows_are_put_back_whole() {
    let rows: Vec<[u8; 34]> = (0..24).map(|row| [row; 34]).collect();
    let file_rows = permuted(&rows, HEADS.n_heads, HEADS.head_dim);
    assert_ne!(rows, file_rows);
    let weights =
        gguf(Builder::default().tensor("blk.0.attn_q.weight", &[24, HIDDEN], 8, &file_rows.concat()));
    assert_eq!(bytes_of(&weights.matrix(QUERY).unwrap()), rows.concat());

    let keys: Vec<f32> = (0..8).map(|row| row as f32).collect();
    let weights = gguf(Builder::default().f32_tensor("blk.0.attn_k.bias", &[8], &permuted(&keys, 1, 8)));
    assert_eq!(
        weights
            .vector(TensorName::Layer(0, LayerTensor::KeyBias))
            .unwrap(),
        keys
    );
}

#[test]
fn other_tensors_stay_where_they_are() {
    let rows: Vec<u8> = (0..24 * 34).map(|byte| byte as u8).collect();
    let weights = gguf(Builder::default().tensor("blk.0.attn_q.weight", &[24, HIDDEN], 8, &rows));
    let unpermuted = Weights {
        config: ModelConfig {
            family: Family::Qwen2,
            ..config()
        },
        ..weights
    };
    assert_eq!(bytes_of(&unpermuted.matrix(QUERY).unwrap()), rows);
}

#[test]
fn a_tied_head_is_the_embedding() {
    let values: Vec<f32> = (0..2 * HIDDEN).map(|i| i as f32).collect();
    let weights = gguf(Builder::default().f32_tensor("token_embd.weight", &[2, HIDDEN], &values));
    let head = weights.matrix(TensorName::Head).unwrap();
    assert_eq!(head.shape(), (2, HIDDEN));
    assert_eq!(
        bytes_of(&head),
        bytes_of(&weights.matrix(TensorName::Embedding).unwrap())
    );
}

#[test]
fn both_kinds_of_files_give_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..24 * HIDDEN).map(|i| (i as f32).sin()).collect();
    let norm: Vec<f32> = (0..HIDDEN).map(|i| i as f32).collect();
    let file = serialize(&[
        Named {
            name: "model.layers.0.self_attn.q_proj.weight",
            shape: &[24, HIDDEN],
            values: &values,
        },
        Named {
            name: "model.norm.weight",
            shape: &[HIDDEN],
            values: &norm,
        },
    ]);
    std::fs::write(directory.path().join("model.safetensors"), file).unwrap();
    let shards = Shards::open(directory.path()).unwrap().unwrap();
    let safetensors = Weights::from_safetensors(shards, config());

    let rows: Vec<&[f32]> = values.chunks(HIDDEN).collect();
    let file_rows = permuted(&rows, HEADS.n_heads, HEADS.head_dim).concat();
    let gguf = gguf(
        Builder::default()
            .f32_tensor("blk.0.attn_q.weight", &[24, HIDDEN], &file_rows)
            .f32_tensor("output_norm.weight", &[HIDDEN], &norm),
    );
    assert_eq!(
        bytes_of(&safetensors.matrix(QUERY).unwrap()),
        bytes_of(&gguf.matrix(QUERY).unwrap())
    );
    assert_eq!(safetensors.vector(TensorName::FinalNorm).unwrap(), norm);
    assert_eq!(gguf.vector(TensorName::FinalNorm).unwrap(), norm);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let weights = gguf(
        Builder::default()
            .f32_tensor("token_embd.weight", &[3, HIDDEN], &[0.0; 3 * HIDDEN])
            .f32_tensor("output_norm.weight", &[HIDDEN + 1], &[0.0; HIDDEN + 1])
            .tensor("blk.0.attn_norm.weight", &[HIDDEN], 8, &[0; 34])
            .tensor("blk.0.attn_q.weight", &[24, HIDDEN], 9, &[0; 24 * 36]),
    );
    let embedding = weights.matrix(TensorName::Embedding).unwrap_err().to_string();
    assert_eq!(
        embedding,
        "test.gguf: tensor `token_embd.weight` must be [2, 32], found [3, 32]"
    );
    let norm = weights.vector(TensorName::FinalNorm).unwrap_err().to_string();
    assert_eq!(
        norm,
        "test.gguf: tensor `output_norm.weight` must be [32], found [33]"
    );
    let missing = weights
        .matrix(TensorName::Layer(0, LayerTensor::Down))
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("`blk.0.ffn_down.weight` is missing"),
        "{missing}"
    );
    let quantized = weights
        .vector(TensorName::Layer(0, LayerTensor::AttentionNorm))
        .unwrap_err()
        .to_string();
    assert!(quantized.contains("stored as Q8_0"), "{quantized}");
    let unreadable = weights.matrix(QUERY).unwrap_err().to_string();
    assert!(unreadable.contains("stored as Q8_1"), "{unreadable}");
    assert!(weights.matrix(TensorName::FinalNorm).is_err());
}

/// Gemma 3 with images keeps its text model under another name.
#[test]
fn a_text_model_inside_another_is_found() {
    for prefix in ["model.", "model.language_model.", "language_model.model."] {
        let directory = tempfile::tempdir().unwrap();
        let (norm, embedding) = ([2.0; HIDDEN], [1.0; 2 * HIDDEN]);
        let names = ["norm.weight", "embed_tokens.weight"].map(|name| format!("{prefix}{name}"));
        let file = serialize(&[
            Named {
                name: &names[0],
                shape: &[HIDDEN],
                values: &norm,
            },
            Named {
                name: &names[1],
                shape: &[2, HIDDEN],
                values: &embedding,
            },
        ]);
        std::fs::write(directory.path().join("model.safetensors"), file).unwrap();
        let shards = Shards::open(directory.path()).unwrap().unwrap();
        let weights = Weights::from_safetensors(shards, config());
        assert_eq!(weights.vector(TensorName::FinalNorm).unwrap(), norm, "{prefix}");
        assert!(weights.matrix(TensorName::Embedding).is_ok(), "{prefix}");
    }
}

#[test]
fn names_are_spelled_as_in_real_checkpoints() {
    let up = TensorName::Layer(12, LayerTensor::Up);
    assert_eq!(up.hugging_face(), "model.layers.12.mlp.up_proj.weight");
    assert_eq!(up.gguf(), "blk.12.ffn_up.weight");
    let bias = TensorName::Layer(0, LayerTensor::ValueBias);
    assert_eq!(bias.hugging_face(), "model.layers.0.self_attn.v_proj.bias");
    assert_eq!(bias.gguf(), "blk.0.attn_v.bias");
    use LayerTensor::{AttentionPostNorm, FeedForwardNorm, FeedForwardPostNorm, FeedForwardPreNorm};
    for (tensor, hugging_face, gguf) in [
        (FeedForwardNorm, "post_attention_layernorm", "ffn_norm"),
        (FeedForwardPreNorm, "pre_feedforward_layernorm", "ffn_norm"),
        (
            AttentionPostNorm,
            "post_attention_layernorm",
            "post_attention_norm",
        ),
        (FeedForwardPostNorm, "post_feedforward_layernorm", "post_ffw_norm"),
    ] {
        let name = TensorName::Layer(3, tensor);
        assert_eq!(
            name.hugging_face(),
            format!("model.layers.3.{hugging_face}.weight")
        );
        assert_eq!(name.gguf(), format!("blk.3.{gguf}.weight"));
    }
}
