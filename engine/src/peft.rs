//! Adapters as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Invariant: the same adapter gives the same bytes, and what is written loads in PEFT, vLLM and llama.cpp.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::lora::{Adapter, LinearName, LoraConfig, LoraLayout, LoraTargets};
use crate::safetensors::{Named, SafetensorsFile, serialize};
use crate::weights::TensorName;

/// File name of the settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File name of the tensors.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";
/// The release whose files these equal.
const PEFT_VERSION: &str = "0.21.2";

/// The two files of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFiles {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`.
    pub tensors: Vec<u8>,
}

/// Settings as PEFT spells them. What is not named here has no bearing on inference or is refused.
#[derive(Debug, Serialize, Deserialize)]
struct PeftConfig {
    base_model_name_or_path: Option<String>,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    inference_mode: bool,
    #[serde(serialize_with = "whole_if_possible")]
    lora_alpha: f32,
    #[serde(default)]
    lora_dropout: f32,
    #[serde(default)]
    modules_to_save: Option<Value>,
    peft_type: String,
    #[serde(default)]
    peft_version: Option<String>,
    r: usize,
    target_modules: Value,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default, skip_serializing)]
    rank_pattern: BTreeMap<String, Value>,
    #[serde(default, skip_serializing)]
    alpha_pattern: BTreeMap<String, Value>,
    #[serde(default, skip_serializing)]
    layers_to_transform: Option<Value>,
    #[serde(default, skip_serializing)]
    lora_bias: bool,
    #[serde(default, skip_serializing)]
    init_lora_weights: Option<Value>,
    #[serde(default, skip_serializing)]
    alora_invocation_tokens: Option<Value>,
    #[serde(default, skip_serializing)]
    trainable_token_indices: Option<Value>,
    #[serde(default, skip_serializing)]
    target_parameters: Option<Value>,
    #[serde(default, skip_serializing)]
    layer_replication: Option<Value>,
    #[serde(default, skip_serializing)]
    arrow_config: Option<Value>,
    #[serde(default, skip_serializing)]
    use_qalora: bool,
}

/// Ways to begin that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, ...) change it when an adapter
/// is loaded, so its tensors alone would give other numbers.
const PLAIN_STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// The files of an adapter trained on `base_model`, a name or a path.
pub fn to_files(adapter: &Adapter, base_model: &str) -> Result<AdapterFiles> {
    let lora = adapter.config();
    let mut modules: Vec<&str> = lora
        .targets
        .linears()
        .into_iter()
        .map(LinearName::module)
        .collect();
    modules.sort_unstable();
    let config = PeftConfig {
        base_model_name_or_path: Some(base_model.to_owned()),
        bias: Some("none".to_owned()),
        fan_in_fan_out: false,
        inference_mode: true,
        lora_alpha: lora.alpha,
        lora_dropout: lora.dropout,
        modules_to_save: None,
        peft_type: "LORA".to_owned(),
        peft_version: Some(PEFT_VERSION.to_owned()),
        r: lora.rank,
        target_modules: modules.into(),
        task_type: Some("CAUSAL_LM".to_owned()),
        use_dora: false,
        use_rslora: false,
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
        layers_to_transform: None,
        lora_bias: false,
        init_lora_weights: None,
        alora_invocation_tokens: None,
        trainable_token_indices: None,
        target_parameters: None,
        layer_replication: None,
        arrow_config: None,
        use_qalora: false,
    };
    let mut config = serde_json::to_vec_pretty(&config).map_err(|source| Error::Json {
        path: CONFIG_FILE.into(),
        source,
    })?;
    config.push(b'\n');

    let pairs: Vec<_> = tensors(adapter.layout()).collect();
    let named: Vec<Named<'_>> = pairs
        .iter()
        .map(|(name, shape, range)| Named {
            name,
            shape,
            values: &adapter.params()[range.clone()],
        })
        .collect();
    Ok(AdapterFiles {
        config,
        tensors: serialize(&named),
    })
}

/// Reads an adapter for a model. Fails when the files are damaged, hold what is no plain LoRA of the blocks'
/// linears, or belong to a model of other sizes; then it names the model that they say they were trained on.
pub fn from_files(files: AdapterFiles, model: &ModelConfig) -> Result<Adapter> {
    let AdapterFiles { config, tensors } = files;
    let lora = parse_config(&config)?;
    lora.validate()?;
    let file = SafetensorsFile::from_bytes(Path::new(TENSORS_FILE), Arc::new(tensors))?;
    fitted(lora, &file, model).map_err(|error| match (error, trained_on(&config)) {
        (source @ (Error::AdapterMismatch { .. } | Error::TensorMissing { .. }), Some(base)) => {
            Error::AdapterOfOtherModel {
                base,
                source: Box::new(source),
            }
        }
        (error, _) => error,
    })
}

/// What the settings call the model that they were trained on.
fn trained_on(config: &[u8]) -> Option<String> {
    let config: PeftConfig = serde_json::from_slice(config).ok()?;
    config
        .base_model_name_or_path
        .filter(|base| !base.trim().is_empty())
}

/// The tensors as an adapter of `model`; all of them, and no other.
fn fitted(lora: LoraConfig, file: &SafetensorsFile, model: &ModelConfig) -> Result<Adapter> {
    let layout = LoraLayout::new(model, &lora);
    let mut params = vec![0.0; layout.len()];
    let mut n_tensors = 0;
    for (name, expected, range) in tensors(&layout) {
        let (shape, values) = file.f32_values(&name)?;
        if shape != expected {
            return Err(Error::AdapterMismatch {
                expected: format!("`{name}` {expected:?}"),
                found: format!("{shape:?}"),
            });
        }
        params[range].copy_from_slice(&values);
        n_tensors += 1;
    }
    if file.names().count() != n_tensors {
        let known: std::collections::BTreeSet<String> = tensors(&layout).map(|(name, ..)| name).collect();
        let other = file
            .names()
            .find(|name| !known.contains(*name))
            .unwrap_or_default();
        return Err(Error::AdapterMismatch {
            expected: format!(
                "{n_tensors} LoRA tensors of this model's {} layers",
                model.n_layers
            ),
            found: format!("also `{other}`"),
        });
    }
    Adapter::from_params(model, lora, params)
}

/// Writes both files into a directory, which is made where it is missing.
pub fn save(adapter: &Adapter, directory: &Path, base_model: &str) -> Result<()> {
    let files = to_files(adapter, base_model)?;
    let write = |path: &Path, bytes: &[u8]| {
        std::fs::write(path, bytes).map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })
    };
    std::fs::create_dir_all(directory).map_err(|source| Error::Write {
        path: directory.to_owned(),
        source,
    })?;
    write(&directory.join(TENSORS_FILE), &files.tensors)?;
    write(&directory.join(CONFIG_FILE), &files.config)
}

/// Reads both files of a directory.
pub fn load(directory: &Path, model: &ModelConfig) -> Result<Adapter> {
    let read = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|source| Error::Read { path, source })
    };
    from_files(
        AdapterFiles {
            config: read(CONFIG_FILE)?,
            tensors: read(TENSORS_FILE)?,
        },
        model,
    )
}

/// PEFT's own files hold whole numbers, and some readers expect them.
fn whole_if_possible<S: serde::Serializer>(
    value: &f32,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    if value.fract() == 0.0 {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f32(*value)
    }
}

/// Name, shape and place of each tensor of a layout.
pub(crate) fn tensors(
    layout: &LoraLayout,
) -> impl Iterator<Item = (String, Vec<usize>, std::ops::Range<usize>)> + '_ {
    layout.slots().flat_map(|(layer, name, slot)| {
        let weight = TensorName::Layer(layer, name.tensor()).hugging_face();
        let module = weight.trim_end_matches(".weight");
        let key = |side: &str| format!("base_model.model.{module}.lora_{side}.weight");
        let b_end = slot.b_offset + slot.n_out * slot.rank;
        [
            (key("A"), vec![slot.rank, slot.n_in], slot.a_offset..slot.b_offset),
            (key("B"), vec![slot.n_out, slot.rank], slot.b_offset..b_end),
        ]
    })
}

fn parse_config(bytes: &[u8]) -> Result<LoraConfig> {
    let config: PeftConfig = serde_json::from_slice(bytes).map_err(|source| Error::Json {
        path: CONFIG_FILE.into(),
        source,
    })?;
    let refuse = |what: &str| {
        Err(Error::AdapterKind {
            what: what.to_owned(),
        })
    };
    if config.peft_type != "LORA" {
        return refuse(&format!("`peft_type` {}", config.peft_type));
    }
    let present = |value: &Option<Value>| {
        value
            .as_ref()
            .is_some_and(|value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()))
    };
    if let Some(Value::String(start)) = &config.init_lora_weights
        && !PLAIN_STARTS.contains(&start.as_str())
    {
        return refuse(&format!(
            "`init_lora_weights` {start}, which changes the base model when it is loaded"
        ));
    }
    let refused = [
        (config.use_dora, "`use_dora`"),
        (config.fan_in_fan_out, "`fan_in_fan_out`"),
        (config.lora_bias, "`lora_bias`"),
        (
            config.bias.as_deref().is_some_and(|bias| bias != "none"),
            "`bias` other than none",
        ),
        (present(&config.modules_to_save), "`modules_to_save`"),
        (present(&config.layers_to_transform), "`layers_to_transform`"),
        (
            present(&config.alora_invocation_tokens),
            "`alora_invocation_tokens`",
        ),
        (
            present(&config.trainable_token_indices),
            "`trainable_token_indices`",
        ),
        (present(&config.target_parameters), "`target_parameters`"),
        (present(&config.layer_replication), "`layer_replication`"),
        (present(&config.arrow_config), "`arrow_config`"),
        (config.use_qalora, "`use_qalora`"),
        (!config.rank_pattern.is_empty(), "`rank_pattern`"),
        (!config.alpha_pattern.is_empty(), "`alpha_pattern`"),
    ];
    if let Some((_, what)) = refused.iter().find(|(is_set, _)| *is_set) {
        return refuse(what);
    }
    // The scale alpha/√R of rank-stabilised LoRA is the plain one of a larger alpha.
    let alpha = if config.use_rslora {
        config.lora_alpha * (config.r as f32).sqrt()
    } else {
        config.lora_alpha
    };
    let targets = parse_targets(&config.target_modules)?;
    Ok(LoraConfig {
        rank: config.r,
        alpha,
        dropout: config.lora_dropout,
        targets,
    })
}

fn parse_targets(value: &Value) -> Result<LoraTargets> {
    if value == "all-linear" {
        return Ok(LoraTargets::AllLinear);
    }
    let mut names = Vec::new();
    let modules = value.as_array().ok_or_else(|| Error::AdapterKind {
        what: match value.as_str() {
            Some(pattern) => {
                format!("the pattern `{pattern}` as `target_modules` instead of a list of names")
            }
            None => format!("`target_modules` {value} instead of a list of names"),
        },
    })?;
    for module in modules {
        let known = LinearName::ALL.into_iter().find(|name| module == name.module());
        names.push(known.ok_or_else(|| Error::AdapterKind {
            what: format!("the target module {module}"),
        })?);
    }
    let targets = LoraTargets::List(names);
    let linears = targets.linears();
    Ok(match &linears[..] {
        all if all == LinearName::ALL => LoraTargets::AllLinear,
        [LinearName::Query, LinearName::Value] => LoraTargets::Qv,
        _ => LoraTargets::List(linears),
    })
}

#[cfg(test)]
mod tests;
