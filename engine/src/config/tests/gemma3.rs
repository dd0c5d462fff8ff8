//! Tests of Gemma 3's description, whose layers differ.

use super::*;

/// The 1B model as it was published, shortened to 7 layers.
fn gemma3() -> Value {
    json!({
        "model_type": "gemma3_text", "vocab_size": 262_144, "hidden_size": 1152, "intermediate_size": 6912,
        "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
        "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256, "rope_theta": 1_000_000, "rope_local_base_freq": 10_000, "rope_scaling": null,
        "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16", "eos_token_id": [1, 106],
        "attn_logit_softcapping": null, "final_logit_softcapping": null,
    })
}

#[test]
fn its_layers_take_turns() {
    let config = read(&gemma3()).unwrap();
    assert_eq!(config.family, Family::Gemma3);
    assert!(config.qk_norm && config.post_norms && config.tied_head && !config.attention_bias);
    assert_eq!(
        (config.norm_weight_offset, config.activation),
        (1.0, GateActivation::GeluTanh)
    );
    let local = Some(512);
    assert_eq!(config.windows, [local, local, local, local, local, None, local]);
    assert_eq!(
        (config.rope_frequencies(0)[64], config.rope_frequencies(5)[64]),
        (0.01, 0.001)
    );
    assert_eq!(config.attention_scale, 1.0 / 16.0);
    assert_eq!(config.embedding_scale, 34.0, "sqrt(1152) in bfloat16");

    let typed = with(gemma3(), json!({ "layer_types": vec!["full_attention"; 7] }));
    assert_eq!(read(&typed).unwrap().windows, [None; 7]);
    let scaled = with(gemma3(), json!({ "query_pre_attn_scalar": 168 }));
    assert_eq!(read(&scaled).unwrap().attention_scale, 1.0 / 168f32.sqrt());
}

#[test]
fn only_layers_without_a_window_are_stretched() {
    let older = with(
        gemma3(),
        json!({ "rope_scaling": { "rope_type": "linear", "factor": 8.0 } }),
    );
    let mut newer = with(
        gemma3(),
        json!({ "rope_parameters": {
            "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6 },
            "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 },
        } }),
    );
    for key in ["rope_theta", "rope_local_base_freq", "rope_scaling"] {
        newer.as_object_mut().unwrap().remove(key);
    }
    let (older, newer) = (read(&older).unwrap(), read(&newer).unwrap());
    assert_eq!(older, newer);
    assert_eq!(newer.rope_frequencies(5)[0], 1.0 / 8.0);
    assert_eq!(newer.rope_frequencies(6)[0], 1.0);
}

/// The 4B model's file names only what differs from the defaults, inside a file about images too.
#[test]
fn the_text_part_of_a_model_that_sees_images_is_read() {
    let whole = json!({
        "model_type": "gemma3", "eos_token_id": [1, 106], "torch_dtype": "bfloat16", "vision_config": { "hidden_size": 1152 },
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10_240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024,
        },
    });
    let config = read(&whole).unwrap();
    assert_eq!((config.vocab_size, config.context_len), (262_208, 131_072));
    assert_eq!(
        (
            config.heads.n_heads,
            config.heads.n_kv_heads,
            config.heads.head_dim
        ),
        (8, 4, 256)
    );
    assert_eq!((config.rope.theta, config.eos), (1e6, vec![1, 106]));
    assert_eq!(
        config.embedding_scale,
        half::bf16::from_f32(2560f32.sqrt()).to_f32()
    );
    assert_eq!(config.windows.iter().filter(|window| window.is_none()).count(), 5);
}

#[test]
fn what_it_cannot_be_is_refused_by_name() {
    for (changes, expected) in [
        (
            json!({ "attn_logit_softcapping": 50.0 }),
            "attn_logit_softcapping",
        ),
        (
            json!({ "final_logit_softcapping": 30.0 }),
            "final_logit_softcapping",
        ),
        (
            json!({ "use_bidirectional_attention": true }),
            "use_bidirectional_attention",
        ),
        (json!({ "layer_types": ["full_attention"] }), "one for each layer"),
        (
            json!({ "layer_types": vec!["chunked_attention"; 7] }),
            "found chunked_attention",
        ),
        (json!({ "sliding_window_pattern": 0 }), "sliding_window_pattern"),
        (json!({ "query_pre_attn_scalar": 0 }), "attention scale"),
        (json!({ "rope_local_base_freq": -1.0 }), "rope parameters"),
    ] {
        let error = read(&with(gemma3(), changes.clone())).unwrap_err().to_string();
        assert!(error.contains(expected), "{changes}: {error}");
    }
}

/// Metadata of Gemma 3 in GGUF.
fn gguf(n_layers: u32) -> Builder {
    Builder::default()
        .string("general.architecture", "gemma3")
        .u32("gemma3.block_count", n_layers)
        .u32("gemma3.context_length", 64)
        .u32("gemma3.embedding_length", 8)
        .u32("gemma3.feed_forward_length", 16)
        .u32("gemma3.attention.head_count", 4)
        .u32("gemma3.attention.head_count_kv", 1)
        .u32("gemma3.attention.key_length", 16)
        .u32("gemma3.attention.sliding_window", 5)
        .f32("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
        .f32_tensor("token_embd.weight", &[5, 8], &[0.0; 40])
}

#[test]
fn gguf_leaves_the_pattern_to_the_reader() {
    let config = |builder: Builder| ModelConfig::from_gguf(&builder.open().unwrap());
    let plain = config(gguf(7)).unwrap();
    let local = Some(5);
    assert_eq!(plain.windows, [local, local, local, local, local, None, local]);
    assert_eq!((plain.norm_weight_offset, plain.attention_scale), (0.0, 0.25));
    assert_eq!(
        (plain.rope_frequencies(0)[4], plain.rope_frequencies(5)[4]),
        (0.01, 0.001)
    );
    let pattern = gguf(3).u32("gemma3.attention.sliding_window_pattern", 2);
    assert_eq!(config(pattern).unwrap().windows, [local, None, local]);
    let theta = gguf(7).f32("gemma3.rope.freq_base_swa", 1e6);
    let theta = config(theta).unwrap();
    assert_eq!(theta.rope_frequencies(0), theta.rope_frequencies(5));
    let largest = config(gguf(62)).unwrap();
    assert_eq!(
        largest.attention_scale,
        1.0 / 2f32.sqrt(),
        "the 27B divides by the root of 8 / 4"
    );

    let cap = config(gguf(1).f32("gemma3.final_logit_softcapping", 30.0)).unwrap_err();
    assert!(cap.to_string().contains("final_logit_softcapping"), "{cap}");
    let none = config(gguf(1).u32("gemma3.attention.sliding_window_pattern", 0)).unwrap_err();
    assert!(none.to_string().contains("at least 1"), "{none}");
}
