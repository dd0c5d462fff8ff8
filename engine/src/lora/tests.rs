//! Layout, first values and spelling of adapters.

use super::*;
use crate::testing::golden_model;

#[test]
fn pairs_fill_the_flat_buffer_without_gap() {
    let config = golden_model("llama_tied").config;
    for targets in [
        LoraTargets::AllLinear,
        LoraTargets::Qv,
        LoraTargets::List(vec![LinearName::Down]),
    ] {
        let layout = LoraLayout::new(
            &config,
            &LoraConfig {
                rank: 4,
                targets,
                ..LoraConfig::default()
            },
        );
        let mut end = 0;
        for (_, _, slot) in layout.slots() {
            assert_eq!(slot.a_offset, end);
            assert_eq!(slot.b_offset, slot.a_offset + 4 * slot.n_in);
            end = slot.b_offset + 4 * slot.n_out;
        }
        assert_eq!(end, layout.len());
    }
}

#[test]
fn a_fresh_adapter_is_uniform_in_a_and_zero_in_b() {
    let config = golden_model("llama_tied").config;
    let lora = LoraConfig {
        rank: 64,
        ..LoraConfig::default()
    };
    let adapter = Adapter::init(&config, &lora, 5).unwrap();
    for (_, _, slot) in adapter.layout().slots() {
        let bound = 1.0 / (slot.n_in as f32).sqrt();
        let a = &adapter.params()[slot.a_offset..slot.b_offset];
        assert!(a.iter().all(|value| value.abs() <= bound));
        let variance = a.iter().map(|value| value * value).sum::<f32>() / a.len() as f32;
        assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.1, "{variance}");
        let b = &adapter.params()[slot.b_offset..slot.b_offset + slot.n_out * slot.rank];
        assert!(b.iter().all(|&value| value == 0.0));
    }
    assert_eq!(adapter, Adapter::init(&config, &lora, 5).unwrap());
    assert_ne!(adapter, Adapter::init(&config, &lora, 6).unwrap());
}

#[test]
fn targets_read_as_names_or_a_list() {
    let parse = |text: &str| serde_json::from_str::<LoraTargets>(text).unwrap();
    assert_eq!(parse("\"all-linear\""), LoraTargets::AllLinear);
    assert_eq!(parse("\"qv\"").linears(), [LinearName::Query, LinearName::Value]);
    assert_eq!(
        parse("[\"up_proj\", \"q_proj\"]").linears(),
        [LinearName::Query, LinearName::Up]
    );
    assert!(serde_json::from_str::<LoraTargets>("[\"lm_head\"]").is_err());
}

#[test]
fn settings_without_a_meaning_are_refused() {
    for lora in [
        LoraConfig {
            rank: 0,
            ..LoraConfig::default()
        },
        LoraConfig {
            alpha: f32::NAN,
            ..LoraConfig::default()
        },
        LoraConfig {
            dropout: 1.0,
            ..LoraConfig::default()
        },
        LoraConfig {
            targets: LoraTargets::List(vec![]),
            ..LoraConfig::default()
        },
    ] {
        assert!(lora.validate().is_err(), "{lora:?}");
    }
}
