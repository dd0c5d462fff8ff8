//! SmolLM2-135M-Instruct against transformers, on the GGUF that the demo uses.
//!
//! Invariant: runs where `LLAMADUO_SMOLLM2_GGUF` names that file and says so where it does not.

use serde::Deserialize;

use super::{assert_close, plain_step};
use crate::chat_template::Message;
use crate::eval::{evaluate_rows, logits};
use crate::files::ModelFiles;
use crate::generate::{BatchOptions, GenerateOptions, GenerateRequest, Sampling, generate};
use crate::local_model::{BaseQuant, LoadOptions, LocalModel};
use crate::lora::{Adapter, LoraConfig, LoraLayout};
use crate::model::Keep;
use crate::testing::golden;
use crate::train::{OptimizerState, Row, Trainer, micro_batches};

const LOGITS_TOLERANCE: f64 = 2e-4;
const LOSS_TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Reference {
    texts: Vec<Text>,
    chats: Vec<Chat>,
    greedy: Vec<Greedy>,
    train: Train,
}

#[derive(Deserialize)]
struct Text {
    ids: Vec<u32>,
    mean_loss: f32,
    top_ids: Vec<usize>,
    top_logits: Vec<f32>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Greedy {
    ids: Vec<u32>,
    text: String,
}

#[derive(Deserialize)]
struct Train {
    ids: Vec<Vec<u32>>,
    losses: Vec<f32>,
}

fn open() -> Option<(LocalModel, Reference)> {
    let Some(path) = std::env::var_os("LLAMADUO_SMOLLM2_GGUF") else {
        println!("skipped: LLAMADUO_SMOLLM2_GGUF does not name the GGUF of SmolLM2-135M-Instruct");
        return None;
    };
    let files = ModelFiles::open(path.as_ref()).unwrap();
    let model = LocalModel::open(
        files,
        &LoadOptions {
            quant: BaseQuant::None,
            threads: None,
        },
    )
    .unwrap();
    let json = std::fs::read(golden("smollm2.json")).unwrap();
    Some((model, serde_json::from_slice(&json).unwrap()))
}

#[test]
fn losses_and_logits_of_texts() {
    let Some((model, reference)) = open() else { return };
    for (text, index) in reference.texts.iter().zip(0..) {
        let row = Row::new(text.ids.clone(), usize::MAX, |_| true);
        let loss = evaluate_rows(&model, None, &[row]).unwrap().loss as f32;
        assert_close(
            &format!("text {index} loss"),
            &[loss],
            &[text.mean_loss],
            LOSS_TOLERANCE,
        );
        let all = logits(&model, None, &text.ids).unwrap();
        let last = &all[all.len() - model.config().vocab_size..];
        let ours: Vec<f32> = text.top_ids.iter().map(|&id| last[id]).collect();
        assert_close(
            &format!("text {index} logits"),
            &ours,
            &text.top_logits,
            LOGITS_TOLERANCE,
        );
    }
}

#[test]
fn greedy_answers_to_chats() {
    let Some((model, reference)) = open() else { return };
    let options = GenerateOptions {
        max_tokens: 48,
        sampling: Sampling::GREEDY,
        ..GenerateOptions::default()
    };
    let requests: Vec<GenerateRequest> = reference
        .chats
        .iter()
        .zip(0..)
        .map(|(chat, id)| GenerateRequest {
            id,
            messages: chat.messages.clone(),
            n: 1,
            options: options.clone(),
        })
        .collect();
    let observe = &mut |_: crate::generate::GenerateEvent<'_>| std::ops::ControlFlow::Continue(());
    let ours = generate(&model, None, &requests, &BatchOptions::default(), observe).unwrap();
    for (ours, theirs) in ours.iter().zip(&reference.greedy) {
        let n = ours.ids.len();
        assert_eq!(ours.ids, theirs.ids[..n]);
        assert!(theirs.ids.len() - n <= 1, "only the end of turn may be left out");
        assert_eq!(ours.text, theirs.text);
    }
}

#[test]
fn losses_of_training() {
    let Some((model, reference)) = open() else { return };
    let lora = LoraConfig {
        rank: 8,
        alpha: 16.0,
        dropout: 0.0,
        ..LoraConfig::default()
    };
    let layout = LoraLayout::new(model.config(), &lora);
    let mut params = vec![0.0; layout.len()];
    for (layer, _, slot) in layout.slots() {
        let layer = layer as f64;
        for (i, value) in params[slot.a_offset..slot.b_offset].iter_mut().enumerate() {
            *value = (0.02 * (0.37 * i as f64 + layer).sin()) as f32;
        }
        let b = &mut params[slot.b_offset..slot.b_offset + slot.n_out * slot.rank];
        for (i, value) in b.iter_mut().enumerate() {
            *value = (0.01 * (0.53 * i as f64 + layer).cos()) as f32;
        }
    }
    let adapter = Adapter::from_params(model.config(), lora, params).unwrap();
    let rows: Vec<Row> = reference
        .train
        .ids
        .iter()
        .map(|ids| Row::new(ids.clone(), usize::MAX, |_| true))
        .collect();
    let batches = micro_batches(&rows, 512);
    let state = OptimizerState::start(adapter.params().to_vec());
    let mut trainer = Trainer::new(model.inner(), layout, &state, 512, Keep::All).unwrap();
    let losses: Vec<f32> = (1..=10)
        .map(|number| plain_step(&mut trainer, &batches, number, 5e-4))
        .collect();
    assert_close(
        "training losses",
        &losses,
        &reference.train.losses,
        LOSS_TOLERANCE,
    );
}
