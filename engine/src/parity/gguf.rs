//! The same models from GGUF files, whose names, order of rows and norms are llama.cpp's.
//!
//! Invariant: held to the references of transformers, so that nothing of the conversion can cancel out.

use super::*;
use crate::files::ModelFiles;
use crate::local_model::LoadOptions;

const KEPT: [&str; 6] = ["gemma", "gemma3", "llama_bf16_sharded", LONG, "qwen2", "qwen3"];

#[test]
fn models_in_gguf_equal_transformers() {
    for family in KEPT {
        let path = golden("gguf").join(format!("{family}.gguf"));
        let files = ModelFiles::open(&path).unwrap();
        let theirs = ModelFiles::open(&golden(family)).unwrap().config;
        assert_eq!(files.config.family, theirs.family);
        assert_eq!(files.config.heads, theirs.heads, "{family}");
        assert_eq!(files.config.windows, theirs.windows, "{family}");
        let options = LoadOptions {
            quant: BaseQuant::None,
            ..LoadOptions::default()
        };
        let model = LocalModel::open(files, &options).unwrap();
        let file = reference(family, "reference.safetensors");
        check_logits("logits from GGUF", &model, None, family, &values(&file, "logits"));
        check_greedy(family, &model);
    }
}
