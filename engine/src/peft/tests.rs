//! PEFT's own adapters load, and what is written is what PEFT writes.

use super::*;
use crate::testing::{golden, golden_model};

#[test]
fn an_adapter_of_peft_round_trips() {
    let model = golden_model("llama_tied").config;
    let adapter = load(&golden("llama_tied").join("adapter"), &model).unwrap();
    assert_eq!(adapter.config().rank, 4);
    assert_eq!(adapter.config().targets, LoraTargets::AllLinear);
    let files = to_files(&adapter, "org/base").unwrap();
    assert_eq!(from_files(files.clone(), &model).unwrap(), adapter);
    assert_eq!(to_files(&adapter, "org/base").unwrap(), files);

    let theirs = SafetensorsFile::open(&golden("llama_tied").join("adapter").join(TENSORS_FILE)).unwrap();
    let ours = SafetensorsFile::from_bytes(Path::new(TENSORS_FILE), Arc::new(files.tensors)).unwrap();
    assert_eq!(
        ours.names().collect::<Vec<_>>(),
        theirs.names().collect::<Vec<_>>()
    );
    for name in theirs.names() {
        assert_eq!(ours.f32_values(name).unwrap(), theirs.f32_values(name).unwrap());
    }
}

#[test]
fn the_settings_hold_what_loaders_ask_for_with_sorted_modules() {
    let model = golden_model("llama_tied").config;
    let adapter = Adapter::init(&model, &LoraConfig::default(), 1).unwrap();
    let files = to_files(&adapter, "org/base").unwrap();
    let config: Value = serde_json::from_slice(&files.config).unwrap();
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(config["r"], 8);
    assert_eq!(config["lora_alpha"], serde_json::json!(16));
    assert_eq!(config["task_type"], "CAUSAL_LM");
    assert_eq!(config["base_model_name_or_path"], "org/base");
    let modules = [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ];
    assert_eq!(config["target_modules"], serde_json::json!(modules));
}

#[test]
fn six_keys_are_enough_and_rank_stabilised_scales_are_taken_over() {
    let minimal = r#"{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["v_proj","q_proj"],
        "task_type":"CAUSAL_LM","base_model_name_or_path":null}"#;
    let lora = parse_config(minimal.as_bytes()).unwrap();
    assert_eq!(
        lora,
        LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            targets: LoraTargets::Qv
        }
    );
    let stabilised = minimal.replace("\"r\":4", "\"r\":4,\"use_rslora\":true");
    assert_eq!(parse_config(stabilised.as_bytes()).unwrap().alpha, 16.0);
}

#[test]
fn what_is_no_plain_lora_is_refused_by_name() {
    let base = r#"{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["q_proj"]}"#;
    for (extra, named) in [
        (r#""use_dora":true,"#, "use_dora"),
        (r#""modules_to_save":["lm_head"],"#, "modules_to_save"),
        (r#""rank_pattern":{"q_proj":2},"#, "rank_pattern"),
        (
            r#""init_lora_weights":"pissa_niter_4","#,
            "init_lora_weights` pissa_niter_4",
        ),
        (r#""init_lora_weights":"olora","#, "olora"),
        (r#""alora_invocation_tokens":[5],"#, "alora_invocation_tokens"),
        (r#""trainable_token_indices":[5],"#, "trainable_token_indices"),
        (r#""target_parameters":["w"],"#, "target_parameters"),
    ] {
        let config = format!("{{{extra}{}", &base[1..]);
        let error = parse_config(config.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
    for plain in ["true", "false", "null", r#""gaussian""#] {
        let config = format!(
            r#"{{"init_lora_weights":{plain},"target_parameters":[],{}"#,
            &base[1..]
        );
        assert!(parse_config(config.as_bytes()).is_ok(), "{config}");
    }
    let pattern = base.replace(r#"["q_proj"]"#, r#"".*\\.(q|v)_proj""#);
    let error = parse_config(pattern.as_bytes()).unwrap_err().to_string();
    assert!(error.contains(r"pattern `.*\.(q|v)_proj`"), "{error}");
    let head = base.replace("q_proj", "lm_head");
    assert!(
        parse_config(head.as_bytes())
            .unwrap_err()
            .to_string()
            .contains("lm_head")
    );
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let adapter = load(
        &golden("llama_tied").join("adapter"),
        &golden_model("llama_tied").config,
    )
    .unwrap();
    let files = to_files(&adapter, "org/base").unwrap();
    let other = golden_model("llama3").config;
    let error = from_files(files.clone(), &other).unwrap_err();
    assert!(error.to_string().contains("trained on \"org/base\""), "{error}");
    let Error::AdapterOfOtherModel { source, .. } = error else {
        panic!("{error}")
    };
    assert!(matches!(*source, Error::AdapterMismatch { .. }), "{source}");
    let nameless = String::from_utf8(files.config.clone()).unwrap();
    let nameless = AdapterFiles {
        config: nameless.replace("\"org/base\"", "null").into_bytes(),
        ..files.clone()
    };
    let error = from_files(nameless, &other).unwrap_err();
    assert!(matches!(error, Error::AdapterMismatch { .. }), "{error}");
    let cut = AdapterFiles {
        tensors: files.tensors[..1000].to_vec(),
        ..files
    };
    assert!(from_files(cut, &golden_model("llama_tied").config).is_err());
}

#[test]
fn tensors_that_hold_no_numbers_are_refused() {
    let model = golden_model("llama_tied").config;
    let adapter = load(&golden("llama_tied").join("adapter"), &model).unwrap();
    let mut params = adapter.params().to_vec();
    let last = params.len() - 1;
    params[last] = f32::NAN;
    let error = Adapter::from_params(&model, adapter.config().clone(), params).unwrap_err();
    assert!(
        error.to_string().contains("NaN in layer 1's down_proj"),
        "{error}"
    );
    let mut files = to_files(&adapter, "org/base").unwrap();
    let end = files.tensors.len();
    files.tensors[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let error = from_files(files, &model).unwrap_err();
    assert!(matches!(error, Error::AdapterNotFinite { .. }), "{error}");
}
