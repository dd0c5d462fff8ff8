//! Tests of what loading leaves in memory.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::lora::LinearName;
use crate::safetensors::{Named, serialize};
use crate::weights::{LayerTensor, TensorName};

/// Bytes of a mapped file that are in memory, as Linux counts them.
fn resident(path: &Path) -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = maps
        .lines()
        .skip_while(|line| !line.ends_with(path.to_str().unwrap()));
    let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
    let kib: usize = rss.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

/// Writes a model of one layer, nearly all of which are its linears; gives back the bytes of those.
fn write_model(directory: &Path) -> usize {
    let config = json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1,
        "num_attention_heads": 8, "max_position_embeddings": 16, "tie_word_embeddings": true,
    });
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let config = ModelConfig::from_json_file(&directory.join("config.json")).unwrap();
    let linears = LinearName::ALL.map(|name| TensorName::Layer(0, name.tensor()));
    let norms =
        [LayerTensor::AttentionNorm, LayerTensor::FeedForwardNorm].map(|norm| TensorName::Layer(0, norm));
    let others = [TensorName::Embedding, TensorName::FinalNorm];
    let tensors: Vec<_> = linears
        .into_iter()
        .chain(norms)
        .chain(others)
        .map(|name| (name.hugging_face(), name.shape(&config)))
        .collect();
    let values: Vec<f32> = (0..512 * 1024).map(|i| (i as f32).sin()).collect();
    let named: Vec<Named<'_>> = tensors
        .iter()
        .map(|(name, shape)| Named {
            name,
            shape,
            values: &values[..shape.iter().product()],
        })
        .collect();
    std::fs::write(directory.join("model.safetensors"), serialize(&named)).unwrap();
    let lengths = linears.map(|name| name.shape(&config).iter().product::<usize>());
    4 * lengths.iter().sum::<usize>()
}

#[test]
fn what_was_quantized_gives_its_memory_back() {
    let directory = tempfile::tempdir().unwrap();
    let linear_bytes = write_model(directory.path());
    let path = directory.path().join("model.safetensors");
    let open = |quant| {
        let files = ModelFiles::open(directory.path()).unwrap();
        let model = LocalModel::open(
            files,
            &LoadOptions {
                quant,
                ..LoadOptions::default()
            },
        )
        .unwrap();
        let logits = crate::eval::logits(&model, None, &[1, 2, 3]).unwrap();
        assert!(logits.iter().all(|logit| logit.is_finite()));
        model
    };
    let whole = open(BaseQuant::None);
    assert!(resident(&path) > linear_bytes);
    drop(whole);
    let _quantized = open(BaseQuant::default());
    // What lies beside a norm is read along with it.
    assert!(
        resident(&path) < linear_bytes / 4,
        "{} of {linear_bytes}",
        resident(&path)
    );
}
