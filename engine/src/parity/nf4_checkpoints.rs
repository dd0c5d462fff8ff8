//! Checkpoints that bitsandbytes has quantized, read as they are.
//!
//! Invariant: codes and scales are compared bit for bit with the file's and with what bitsandbytes makes of them.

use llamaduo_kernels::{HostWeight, Nf4Scales};

use super::*;
use crate::files::ModelFiles;
use crate::local_model::LoadOptions;
use crate::lora::LinearName;
use crate::weights::TensorName;

const CHECKPOINTS: [(&str, bool); 2] = [("bnb_nf4", false), ("bnb_nf4_double", true)];

#[test]
fn codes_and_scales_are_those_of_the_file() {
    for (name, is_double) in CHECKPOINTS {
        let files = ModelFiles::open(&golden(name)).unwrap();
        let stored = SafetensorsFile::open(&golden(name).join("model.safetensors")).unwrap();
        let theirs = reference(name, "reference.safetensors");
        for (layer, linear) in (0..2).flat_map(|layer| LinearName::ALL.map(|linear| (layer, linear))) {
            let tensor = TensorName::Layer(layer, linear.tensor());
            let spelling = tensor.hugging_face();
            let HostWeight::Nf4(matrix) = files.weights.matrix(tensor).unwrap() else {
                panic!("{spelling} was not read as NF4");
            };
            assert_eq!(matrix.codes(), stored.data(stored.tensor(&spelling).unwrap()));
            assert_eq!(is_double, matches!(matrix.scales(), Nf4Scales::Nested { .. }));
            let scales = values(&theirs, &format!("absmax.{spelling}"));
            assert_eq!(*matrix.block_scales(), scales, "{spelling}");
        }
    }
}

#[test]
fn quantized_checkpoints_compute_what_their_weights_say() {
    for (name, _) in CHECKPOINTS {
        let theirs = values(&reference(name, "reference.safetensors"), "logits");
        for quant in [BaseQuant::default(), BaseQuant::None] {
            let files = ModelFiles::open(&golden(name)).unwrap();
            let model = LocalModel::open(
                files,
                &LoadOptions {
                    quant,
                    ..LoadOptions::default()
                },
            )
            .unwrap();
            check_logits("logits", &model, None, name, &theirs);
        }
    }
}

/// A copy of the doubly quantized checkpoint in which every `from` has become `to`.
fn spoilt(from: &[u8], to: &[u8]) -> tempfile::TempDir {
    assert_eq!(from.len(), to.len());
    let directory = tempfile::tempdir().unwrap();
    let golden = golden("bnb_nf4_double");
    std::fs::copy(golden.join("config.json"), directory.path().join("config.json")).unwrap();
    let mut bytes = std::fs::read(golden.join("model.safetensors")).unwrap();
    let places: Vec<usize> = (0..=bytes.len() - from.len())
        .filter(|&at| bytes[at..].starts_with(from))
        .collect();
    assert!(!places.is_empty(), "{from:?} is not in the file");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    std::fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
    directory
}

#[test]
fn what_is_quantized_in_another_way_is_refused_by_name() {
    let code = 0.725_f32.to_le_bytes();
    let table = llamaduo_kernels::nf4::CODE_VALUES[14].to_le_bytes();
    let scale = llamaduo_kernels::nf4::scale_values()[200].to_le_bytes();
    for (from, to, expected) in [
        (
            &b"bitsandbytes__nf4"[..],
            &b"bitsandbytes__fp4"[..],
            "stored as bitsandbytes FP4",
        ),
        (
            b"\"blocksize\": 64",
            b"\"blocksize\": 32",
            "stored as NF4 in blocks of 32",
        ),
        (
            b"\"nested_blocksize\": 256",
            b"\"nested_blocksize\": 128",
            "scales in blocks of 128",
        ),
        (
            b"\"shape\": [64, 64]",
            b"\"shape\": [32, 64]",
            "must be [64, 64], found [32, 64]",
        ),
        (
            b"\"shape\": [64, 64]",
            b"\"shape\": [64, -4]",
            "quantization state",
        ),
        (b".nested_absmax", b".nestet_absmax", "nested_absmax` is missing"),
        (
            b"\"U8\",\"shape\":[2048,1]",
            b"\"I8\",\"shape\":[2048,1]",
            "stored as NF4 packed into I8",
        ),
        (&table, &code, "another table of values"),
        (&scale, &code, "another table of scales"),
    ] {
        let files = ModelFiles::open(spoilt(from, to).path()).unwrap();
        let options = LoadOptions::default();
        let error = LocalModel::open(files, &options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
