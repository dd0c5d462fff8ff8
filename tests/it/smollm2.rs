//! SmolLM2-135M-Instruct, the demo's model, against transformers and PEFT, by the engine's API and by the binary.
//!
//! Invariant: the references in `tests/golden/smollm2.json` were made by other programs; nothing here is compared
//! with what this program has made.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;

use llamaduo_engine::lora::LoraLayout;
use llamaduo_engine::{
    Adapter, BaseQuant, BatchOptions, Conversation, GenerateOptions, GenerateRequest, LoadOptions,
    LocalModel, LoraConfig, Message, ModelFiles, Role, Sampling, Schedule, TrainConfig, TrainOutcome,
    encode_chat, evaluate, generate, logits, peft, train,
};
use llamaduo_tests::model::{self, SMOLLM2};
use llamaduo_tests::process::{self, llamaduo};
use serde::Deserialize;
use serde_json::{Value, json};

const LOGITS_TOLERANCE: f64 = 2e-4;
const LOSS_TOLERANCE: f64 = 1e-4;
/// What the reference put before each training text.
const ANSWER_START: &str = "A short answer, please: ";

#[derive(Deserialize)]
struct Reference {
    texts: Vec<Text>,
    chats: Vec<Chat>,
    greedy: Vec<Greedy>,
    train: Train,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    mean_loss: f64,
    top_ids: Vec<usize>,
    top_logits: Vec<f64>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    rendered: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Greedy {
    ids: Vec<u32>,
    text: String,
}

#[derive(Deserialize)]
struct Train {
    rows: Vec<String>,
    ids: Vec<Vec<u32>>,
    losses: Vec<f64>,
}

fn reference() -> Reference {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/smollm2.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The model with its file's own values, which is what the references compare with.
fn smollm2() -> &'static LocalModel {
    static MODEL: OnceLock<LocalModel> = OnceLock::new();
    MODEL.get_or_init(|| {
        let files = ModelFiles::open(model::smollm2()).unwrap();
        let options = LoadOptions {
            quant: BaseQuant::None,
            ..LoadOptions::default()
        };
        LocalModel::open(files, &options).unwrap()
    })
}

fn assert_close(what: &str, ours: f64, theirs: f64, tolerance: f64) {
    let difference = (ours - theirs).abs();
    assert!(
        difference <= tolerance,
        "{what}: {ours} is not {theirs} within {tolerance:e}"
    );
}

/// Mean of -log softmax(logits[t])[ids[t + 1]].
fn mean_loss(logits: &[f32], ids: &[u32], vocab_size: usize) -> f64 {
    let losses = logits.chunks(vocab_size).zip(&ids[1..]).map(|(row, &next)| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        sum.ln() - f64::from(row[next as usize] - max)
    });
    losses.sum::<f64>() / (ids.len() - 1) as f64
}

/// The rows that the reference trained on.
fn conversations(reference: &Reference) -> Vec<Conversation> {
    let pairs = reference.chats.iter().zip(&reference.texts);
    let row = |(chat, text): (&Chat, &Text)| {
        let content = format!("{ANSWER_START}{}", text.text);
        let answer = Message {
            role: Role::Assistant,
            content,
        };
        Conversation {
            messages: chat.messages.iter().cloned().chain([answer]).collect(),
        }
    };
    pairs.map(row).collect()
}

/// The adapter that the reference starts from, set by formula.
fn adapter(model: &LocalModel) -> Adapter {
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
    Adapter::from_params(model.config(), lora, params).unwrap()
}

#[test]
fn token_ids_and_chats_are_identical() {
    let (model, reference) = (smollm2(), reference());
    let (tokenizer, template) = (model.tokenizer().unwrap(), model.chat_template().unwrap());
    for text in &reference.texts {
        assert_eq!(tokenizer.encode(&text.text).unwrap(), text.ids, "{:?}", text.text);
        assert_eq!(tokenizer.decode(&text.ids).unwrap(), text.text);
    }
    for chat in &reference.chats {
        assert_eq!(template.render(&chat.messages, true).unwrap(), chat.rendered);
        assert_eq!(
            encode_chat(tokenizer, template, &chat.messages, true).unwrap(),
            chat.ids
        );
    }
    for (row, (text, ids)) in conversations(&reference)
        .iter()
        .zip(reference.train.rows.iter().zip(&reference.train.ids))
    {
        assert_eq!(&template.render(&row.messages, false).unwrap(), text);
        assert_eq!(
            &encode_chat(tokenizer, template, &row.messages, false).unwrap(),
            ids
        );
    }
}

#[test]
fn logits_and_losses_of_texts() {
    let (model, reference) = (smollm2(), reference());
    let vocab_size = model.config().vocab_size;
    for text in &reference.texts {
        let ours = logits(model, None, &text.ids).unwrap();
        assert_close(
            &text.text,
            mean_loss(&ours, &text.ids, vocab_size),
            text.mean_loss,
            LOSS_TOLERANCE,
        );
        let last = &ours[ours.len() - vocab_size..];
        for (&id, &theirs) in text.top_ids.iter().zip(&text.top_logits) {
            assert_close(&text.text, f64::from(last[id]), theirs, LOGITS_TOLERANCE);
        }
    }
}

#[test]
fn greedy_answers_are_identical_together_and_by_the_command() {
    let (model, reference) = (smollm2(), reference());
    let options = GenerateOptions {
        max_tokens: 48,
        sampling: Sampling::GREEDY,
        ..GenerateOptions::default()
    };
    let request = |(chat, id): (&Chat, u64)| GenerateRequest {
        id,
        adapter: None,
        messages: chat.messages.clone(),
        n: 1,
        options: options.clone(),
    };
    let requests: Vec<_> = reference.chats.iter().zip(0..).map(request).collect();
    let together = generate(model, &[], &requests, &BatchOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    for (ours, theirs) in together.iter().zip(&reference.greedy) {
        // The engine leaves the end of turn out.
        assert_eq!(ours.ids, theirs.ids[..ours.ids.len()]);
        assert!(theirs.ids.len() - ours.ids.len() <= 1);
        assert_eq!(ours.text, theirs.text);
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.json");
    for (chat, (theirs, ours)) in reference.chats.iter().zip(reference.greedy.iter().zip(&together)) {
        std::fs::write(&path, serde_json::to_string(&chat.messages).unwrap()).unwrap();
        let mut command = llamaduo();
        command.args([
            "generate",
            "--model",
            SMOLLM2,
            "--quant",
            "none",
            "--greedy",
            "--max-tokens",
            "48",
        ]);
        let output = process::run(command.args(["--output", "json", "--messages"]).arg(&path));
        assert_eq!(output.code(), 0, "{}", output.stderr);
        let said: Value = serde_json::from_str(&output.stdout).unwrap();
        let finish = if ours.tokens == 48 { "length" } else { "stop" };
        assert_eq!(
            said,
            json!({"text": theirs.text, "tokens": ours.tokens, "finish": finish})
        );
    }
}

#[test]
fn the_adapters_loss_equals_pefts_also_by_the_command() {
    let (model, reference) = (smollm2(), reference());
    let (rows, adapter) = (conversations(&reference), adapter(model));
    let theirs = reference.train.losses[0];
    let n_predicted: usize = reference.train.ids.iter().map(|ids| ids.len() - 1).sum();
    let ours = evaluate(model, Some(&adapter), &rows).unwrap();
    assert_close("loss with the adapter", ours.loss, theirs, LOSS_TOLERANCE);
    assert_eq!(ours.tokens, n_predicted as u64);

    let folder = tempfile::tempdir().unwrap();
    peft::save(&adapter, &folder.path().join("adapter"), SMOLLM2).unwrap();
    let lines = rows.iter().map(|row| serde_json::to_string(row).unwrap() + "\n");
    std::fs::write(folder.path().join("rows.jsonl"), lines.collect::<String>()).unwrap();
    let mut command = llamaduo();
    command.args([
        "eval",
        "--model",
        SMOLLM2,
        "--quant",
        "none",
        "--output",
        "json",
        "--adapter",
    ]);
    command
        .arg(folder.path().join("adapter"))
        .arg("--data")
        .arg(folder.path().join("rows.jsonl"));
    let output = process::run(&mut command);
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let said: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_close(
        "loss by the command",
        said["loss"].as_f64().unwrap(),
        theirs,
        LOSS_TOLERANCE,
    );
    assert_eq!(said["tokens"], n_predicted);
}

#[test]
fn training_losses_equal_pefts() {
    let (model, reference) = (smollm2(), reference());
    let start = adapter(model);
    // AdamW as the reference runs it: all rows in each step, no schedule, no decay, no clipping, no dropout.
    let config = TrainConfig {
        lora: start.config().clone(),
        epochs: reference.train.losses.len() as f64,
        learning_rate: 5e-4,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        weight_decay: 0.0,
        max_grad_norm: None,
        batch_rows: reference.train.ids.len(),
        accumulation: 1,
        ..TrainConfig::default()
    };
    let observe = &mut |_: llamaduo_engine::TrainEvent<'_>| ControlFlow::Continue(());
    let outcome = train(
        model,
        &conversations(&reference),
        &config,
        Some(&start),
        None,
        observe,
    )
    .unwrap();
    let TrainOutcome::Finished(trained) = outcome else {
        panic!("nobody broke off")
    };
    assert_eq!(trained.log.len(), reference.train.losses.len());
    for (step, &theirs) in trained.log.iter().zip(&reference.train.losses) {
        assert_close(&format!("step {}", step.step), step.loss, theirs, LOSS_TOLERANCE);
    }
}
