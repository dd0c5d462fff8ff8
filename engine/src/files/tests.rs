//! Tests of whole models on disk.

use super::*;
use crate::weights::{LayerTensor, TensorName};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(name)
}

/// Copies a golden model; the copy may be spoilt.
fn copied(name: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(golden(name).join(file), directory.path().join(file)).unwrap();
    }
    directory
}

#[test]
fn golden_models_open_whole() {
    for name in ["llama_tied", "llama3", "mistral"] {
        let files = ModelFiles::open(&golden(name)).unwrap();
        assert!(files.tokenizer.is_none() && files.chat_template.is_none());
        for layer in 0..files.config.n_layers {
            use LayerTensor::{AttentionNorm, Down, FeedForwardNorm, Gate, Key, Output, Query, Up, Value};
            for tensor in [Query, Key, Value, Output, Gate, Up, Down] {
                let tensor = TensorName::Layer(layer, tensor);
                let (n, k) = files.weights.matrix(tensor).unwrap().shape();
                assert_eq!(vec![n, k], tensor.shape(&files.config));
            }
            for norm in [AttentionNorm, FeedForwardNorm] {
                let norm = files.weights.vector(TensorName::Layer(layer, norm)).unwrap();
                assert_eq!(norm.len(), files.config.hidden);
            }
        }
        assert!(files.weights.matrix(TensorName::Head).is_ok());
        let error = files.tokenizer().unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
        let error = files.chat_template().unwrap_err().to_string();
        assert!(error.contains("chat_template.jinja"), "{error}");
    }
}

#[test]
fn the_identity_names_the_weights_and_not_the_place() {
    let original = ModelFiles::open(&golden("llama_tied")).unwrap().identity;
    let copy = copied("llama_tied");
    assert_eq!(ModelFiles::open(copy.path()).unwrap().identity, original);
    let path = copy.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 40_000;
    bytes[last..].iter_mut().for_each(|byte| *byte ^= 1);
    std::fs::write(&path, bytes).unwrap();
    assert_ne!(ModelFiles::open(copy.path()).unwrap().identity, original);
    assert_ne!(ModelFiles::open(&golden("mistral")).unwrap().identity, original);
}

#[test]
fn what_is_no_model_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let error = |path: &Path| ModelFiles::open(path).unwrap_err().to_string();
    assert!(error(&at.join("absent")).contains("cannot read"));
    assert!(error(at).contains("neither config.json nor a .gguf file"));
    std::fs::write(at.join("notes.txt"), "x").unwrap();
    assert!(error(&at.join("notes.txt")).contains("another kind"));
    std::fs::write(at.join("config.json"), "{}").unwrap();
    assert!(error(at).contains("without weights"));
    std::fs::write(at.join("one.gguf"), "GGUF").unwrap();
    assert!(error(at).contains("one.gguf is damaged or truncated"));
    std::fs::write(at.join("two.gguf"), "").unwrap();
    assert!(error(at).contains("2 .gguf files"));
    assert!(ModelFiles::open(&at.join("two.gguf")).is_err());
}

#[test]
fn a_truncated_checkpoint_is_refused() {
    let copy = copied("llama_tied");
    let path = copy.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = ModelFiles::open(copy.path()).unwrap_err().to_string();
    assert!(
        error.contains("model.safetensors is damaged or truncated"),
        "{error}"
    );
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let copy = copied("llama_tied");
    let definition = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": { "type": "BPE", "vocab": { "a": 0, "b": 384 }, "merges": [] },
    });
    std::fs::write(copy.path().join("tokenizer.json"), definition.to_string()).unwrap();
    let error = ModelFiles::open(copy.path()).unwrap_err().to_string();
    assert!(error.contains("token 384, the embedding has 384 rows"), "{error}");
}

#[test]
fn made_up_weights_have_the_shapes_of_the_description_alone() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(
        golden("llama3").join("config.json"),
        directory.path().join("config.json"),
    )
    .unwrap();
    let open = || ModelFiles::with_random_weights(directory.path()).unwrap();
    let (files, again) = (open(), open());
    for name in TensorName::all(&files.config) {
        let shape = name.shape(&files.config);
        if let [n, k] = shape[..] {
            let matrix = files.weights.matrix(name).unwrap();
            assert_eq!(matrix.shape(), (n, k));
            let values = matrix.to_f32();
            assert_eq!(values, again.weights.matrix(name).unwrap().to_f32());
            assert!(values.iter().all(|value| value.abs() <= 0.035));
        } else {
            // what is normed keeps its size
            assert_eq!(files.weights.vector(name).unwrap(), vec![1.0; shape[0]]);
        }
    }
    let layer = |layer| {
        files
            .weights
            .matrix(TensorName::Layer(layer, LayerTensor::Gate))
            .unwrap()
            .to_f32()
    };
    assert_ne!(layer(0), layer(1));
    let nothing = tempfile::tempdir().unwrap();
    let error = ModelFiles::with_random_weights(nothing.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("config.json"), "{error}");
}
