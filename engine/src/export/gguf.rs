//! A model with its adapter merged in, as one GGUF file.
//!
//! Invariant: names, shapes, metadata keys and the order of rows are those of llama.cpp's `convert_hf_to_gguf.py`; what
//! llama.cpp could not say is refused.

use std::path::Path;

use super::encode::{StoredType, encode};
use super::merge::{HeadOrder, Merge};
use super::place::Sink;
use super::vocabulary;
use crate::config::{Family, ModelConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::gguf::write::{Header, padding};
use crate::weights::TensorName;

/// Divisors of the rotary frequencies, where there are any.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// Layers by which llama.cpp tells the largest Gemma 3.
const GEMMA3_27B_LAYERS: usize = 62;

/// Metadata of a GGUF file that says how that file is stored, and so nothing of a new one.
const NOT_COPIED: [&str; 5] = [
    "general.alignment",
    "general.file_type",
    "general.quantization_version",
    "quantize.",
    "split.",
];

/// llama.cpp's name of a family.
pub(crate) fn architecture(family: Family) -> &'static str {
    match family {
        // The two differ by a window alone.
        Family::Llama | Family::Mistral => "llama",
        other => other.name(),
    }
}

/// Writes the model to `path`; `observe` hears how many tensors are done, of how many. Gives the file's size.
pub(crate) fn write(
    merge: &Merge<'_>,
    stored: StoredType,
    name: &str,
    path: &Path,
    observe: &mut dyn FnMut(usize, usize),
) -> Result<u64> {
    let config = merge.config();
    let mut header = metadata(merge.files, stored, name)?;
    let tensors = TensorName::all(config);
    let divisors = config.rope.divisors(config.heads.head_dim);
    let mut sizes = Vec::new();
    if let Some(divisors) = &divisors {
        let shape = [divisors.len()];
        let size = header.tensor(ROPE_FREQS, &shape, llamaduo_kernels::Format::F32);
        sizes.extend(size);
    }
    for &tensor in &tensors {
        let shape = tensor.shape(config);
        let format = match shape[..] {
            [_, k] => stored.format_of_rows(k),
            _ => llamaduo_kernels::Format::F32,
        };
        let size = header.tensor(&tensor.gguf(), &shape, format);
        sizes.push(size.ok_or_else(|| too_large(tensor))?);
    }

    let mut sink = Sink::create(path)?;
    sink.write(&header.to_bytes())?;
    let mut sizes = sizes.into_iter();
    if let Some(divisors) = &divisors {
        write_vector(ROPE_FREQS, divisors, &mut sink)?;
        end_tensor(sizes.next(), &mut sink)?;
    }
    let order = HeadOrder::of_gguf(config.family);
    for (n_done, &tensor) in tensors.iter().enumerate() {
        observe(n_done, tensors.len());
        match tensor.shape(config)[..] {
            [_, k] => merge.write_matrix(tensor, order, stored.format_of_rows(k), &mut sink)?,
            // Norms of GGUF files hold all of the factor, whatever the family.
            _ => write_vector(&tensor.gguf(), &merge.vector(tensor, order, 0.0)?, &mut sink)?,
        }
        end_tensor(sizes.next(), &mut sink)?;
    }
    observe(tensors.len(), tensors.len());
    sink.finish()
}

fn write_vector(what: &str, values: &[f32], sink: &mut Sink) -> Result<()> {
    let mut bytes = Vec::new();
    encode(what, llamaduo_kernels::Format::F32, values, &mut bytes)?;
    sink.write(&bytes)
}

fn end_tensor(size: Option<u64>, sink: &mut Sink) -> Result<()> {
    sink.write(&vec![0; padding(size.unwrap_or(0))])
}

fn too_large(tensor: TensorName) -> Error {
    Error::Export {
        what: format!("tensor `{}`", tensor.gguf()),
        reason: "its size is beyond what can be counted".to_owned(),
    }
}

/// All metadata: copied where the model comes from a GGUF file, else worked out.
fn metadata(files: &ModelFiles, stored: StoredType, name: &str) -> Result<Header> {
    let mut header = Header::default();
    let source = files.weights.gguf();
    match source {
        Some(source) => {
            let is_copied = |key: &str| !NOT_COPIED.iter().any(|prefix| key.starts_with(prefix));
            for (key, value) in source.written_metadata().filter(|(key, _)| is_copied(key)) {
                header.written(key, value);
            }
        }
        None => describe(&files.config, name, &mut header)?,
    }
    header.u32("general.file_type", stored.gguf_file_type());
    header.u32("general.quantization_version", 2);
    let has_vocabulary = source.is_some_and(|source| {
        source
            .written_metadata()
            .any(|(key, _)| key == "tokenizer.ggml.tokens")
    });
    if !has_vocabulary {
        vocabulary::describe(files, &mut header)?;
    }
    if let Some(template) = &files.chat_template {
        header.string("tokenizer.chat_template", template.source());
    }
    // Also where the source says otherwise: the model was trained on what its template writes, and no more.
    if let Some(is_added) = vocabulary::begins_with_bos(files)? {
        header.flag("tokenizer.ggml.add_bos_token", is_added);
    }
    Ok(header)
}

/// What the model is.
fn describe(config: &ModelConfig, name: &str, header: &mut Header) -> Result<()> {
    let architecture = architecture(config.family);
    let key = |key: &str| format!("{architecture}.{key}");
    header.string("general.architecture", architecture);
    header.string("general.type", "model");
    header.string("general.name", name);
    let sizes = [
        ("block_count", config.n_layers),
        ("context_length", config.context_len),
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.ffn),
        ("attention.head_count", config.heads.n_heads),
        ("attention.head_count_kv", config.heads.n_kv_heads),
        ("attention.key_length", config.heads.head_dim),
        ("attention.value_length", config.heads.head_dim),
        ("rope.dimension_count", config.heads.head_dim),
        ("vocab_size", config.vocab_size),
    ];
    for (name, size) in sizes {
        let size = u32::try_from(size).map_err(|_| Error::Export {
            what: "to GGUF".to_owned(),
            reason: format!("its {name} of {size} is beyond what the format holds"),
        })?;
        header.u32(&key(name), size);
    }
    header.f32(&key("attention.layer_norm_rms_epsilon"), config.rms_norm_epsilon);
    header.f32(&key("rope.freq_base"), config.rope.theta as f32);
    if let RopeScaling::Linear { factor } = config.rope.scaling {
        header.string(&key("rope.scaling.type"), "linear");
        header.f32(&key("rope.scaling.factor"), factor);
    }
    describe_windows(config, header)?;
    let expected = 1.0 / (config.heads.head_dim as f32).sqrt();
    // llama.cpp tells Gemma 3 27B, which divides by another root, by its layers.
    let is_known_otherwise = config.family == Family::Gemma3 && config.n_layers == GEMMA3_27B_LAYERS;
    if (config.attention_scale / expected - 1.0).abs() > 1e-5 && !is_known_otherwise {
        return Err(Error::Export {
            what: "to GGUF".to_owned(),
            reason: format!(
                "its attention is scaled by {} instead of {expected}, and no metadata says so; export it to safetensors",
                config.attention_scale
            ),
        });
    }
    Ok(())
}

/// Which layers see how far.
fn describe_windows(config: &ModelConfig, header: &mut Header) -> Result<()> {
    let key = |key: &str| format!("{}.{key}", architecture(config.family));
    let windows = &config.windows;
    let window = windows.iter().flatten().next().copied();
    let refuse = |reason: &str| Error::Export {
        what: "to GGUF".to_owned(),
        reason: format!(
            "{reason}, which llama.cpp does not know of this architecture; export it to safetensors"
        ),
    };
    if windows.iter().flatten().any(|&other| Some(other) != window) {
        return Err(refuse("its layers have windows of several lengths"));
    }
    if config.family == Family::Gemma3 {
        let first_full = windows.iter().position(Option::is_none);
        let period = first_full.map_or(windows.len() + 1, |layer| layer + 1);
        let is_periodic = windows
            .iter()
            .zip(1usize..)
            .all(|(window, layer)| window.is_none() == layer.is_multiple_of(period));
        if !is_periodic {
            return Err(refuse("its layers with a window follow no period"));
        }
        header.u32(&key("attention.sliding_window_pattern"), period as u32); // at most the layers, few
        if let Some(local) = &config.local_rope {
            if local.scaling != RopeScaling::Unscaled {
                return Err(refuse("the rotation of its layers with a window is scaled"));
            }
            header.f32(&key("rope.freq_base_swa"), local.theta as f32);
        }
    } else if windows.contains(&None) && window.is_some() {
        return Err(refuse("only some of its layers have a window"));
    }
    if let Some(window) = window.and_then(|window| u32::try_from(window).ok()) {
        header.u32(&key("attention.sliding_window"), window);
    }
    Ok(())
}
