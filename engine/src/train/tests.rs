//! What must hold of training whatever the numbers: resuming, accumulation, packing, recomputation, refusals.

use std::ops::ControlFlow;

use llamaduo_kernels::{Documents, random};

use super::*;
use crate::chat_template::{Message, Role};
use crate::local_model::BaseQuant;
use crate::lora::{LoraConfig, LoraTargets};
use crate::model::MicroBatch;
use crate::testing::{open, open_with_text};

/// `n` rows of random tokens, of different lengths.
fn random_rows(n: usize) -> Vec<Row> {
    let row = |index: usize| {
        let len = 8 + 3 * index;
        let ids = (0..len as u64)
            .map(|token| 3 + random::word(index as u64, token) % 300)
            .collect();
        Row::new(ids, usize::MAX, |_| true)
    };
    (0..n).map(row).collect()
}

fn small_config() -> TrainConfig {
    TrainConfig {
        lora: LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.1,
            targets: LoraTargets::AllLinear,
        },
        epochs: 2.0,
        learning_rate: 5e-3,
        batch_rows: 2,
        accumulation: 1,
        checkpoint_every_steps: 1,
        micro_batch_tokens: 48,
        ..TrainConfig::default()
    }
}

fn finish(model: &LocalModel, rows: &[Row], config: &TrainConfig, resume: Option<&Checkpoint>) -> Trained {
    match train_rows(model, rows, config, None, resume, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap()
    {
        TrainOutcome::Finished(trained) => trained,
        TrainOutcome::Stopped(_) => panic!("nobody stopped it"),
    }
}

fn bits(adapter: &Adapter) -> Vec<u32> {
    adapter.params().iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_run_resumed_after_any_step_ends_with_the_same_bytes() {
    let model = open("llama_tied", BaseQuant::Nf4 { double: true });
    let (rows, config) = (random_rows(6), small_config());
    let mut checkpoints = Vec::new();
    let outcome = train_rows(&model, &rows, &config, None, None, &mut |event| {
        if let TrainEvent::Checkpoint(checkpoint) = event {
            checkpoints.push(checkpoint.to_bytes().unwrap());
        }
        ControlFlow::Continue(())
    });
    let Ok(TrainOutcome::Finished(straight)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(checkpoints.len(), 5);
    for bytes in &checkpoints {
        let checkpoint = Checkpoint::from_bytes(bytes).unwrap();
        assert_eq!(&checkpoint.to_bytes().unwrap(), bytes);
        let resumed = finish(&model, &rows, &config, Some(&checkpoint));
        assert_eq!(
            bits(&resumed.adapter),
            bits(&straight.adapter),
            "from step {}",
            checkpoint.step()
        );
        assert_eq!(resumed.log, straight.log);
    }
}

#[test]
fn a_run_that_its_observer_stops_can_go_on() {
    let model = open("llama_tied", BaseQuant::None);
    let (rows, config) = (random_rows(4), small_config());
    let straight = finish(&model, &rows, &config, None);
    let outcome = train_rows(&model, &rows, &config, None, None, &mut |event| match event {
        TrainEvent::Step { log, .. } if log.step == 2 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    let Ok(TrainOutcome::Stopped(checkpoint)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(checkpoint.step(), 2);
    assert_eq!(
        bits(&finish(&model, &rows, &config, Some(&checkpoint)).adapter),
        bits(&straight.adapter)
    );
}

#[test]
fn recomputation_and_the_number_of_threads_change_no_bit() {
    let rows = random_rows(5);
    let config = small_config();
    let model = open("llama_tied", BaseQuant::None);
    let kept = finish(&model, &rows, &config, None);
    let recomputed = finish(
        &model,
        &rows,
        &TrainConfig {
            recompute: true,
            ..config.clone()
        },
        None,
    );
    assert_eq!(bits(&kept.adapter), bits(&recomputed.adapter));
    let options = crate::LoadOptions {
        quant: BaseQuant::None,
        threads: Some(1),
    };
    let one_thread = LocalModel::open(crate::testing::golden_model("llama_tied"), &options).unwrap();
    assert_eq!(
        bits(&kept.adapter),
        bits(&finish(&one_thread, &rows, &config, None).adapter)
    );
}

/// Gradients of the mean loss over `batches`.
fn gradients(model: &LocalModel, batches: &[MicroBatch]) -> (f64, Vec<f32>) {
    let adapter = adapter_that_matters(model);
    let state = OptimizerState::start(adapter.params().to_vec());
    let mut trainer = Trainer::new(model.inner(), adapter.layout().clone(), &state, 256, Keep::All).unwrap();
    let loss = trainer.gradients(batches, None).unwrap();
    (loss, trainer.read_gradients().unwrap())
}

fn adapter_that_matters(model: &LocalModel) -> Adapter {
    let lora = small_config().lora;
    let len = LoraLayout::new(model.config(), &lora).len();
    let params = (0..len as u64)
        .map(|i| 0.1 * (random::uniform(9, i) - 0.5))
        .collect();
    Adapter::from_params(model.config(), lora, params).unwrap()
}

fn assert_same_gradients(one: &(f64, Vec<f32>), other: &(f64, Vec<f32>)) {
    assert!((one.0 - other.0).abs() < 1e-6, "{} {}", one.0, other.0);
    let largest = one.1.iter().fold(0.0, |max: f32, value| max.max(value.abs()));
    for (a, b) in one.1.iter().zip(&other.1) {
        assert!((a - b).abs() <= 5e-6 * largest, "{a} {b} of {largest}");
    }
}

#[test]
fn accumulation_equals_the_big_batch_and_packing_equals_one_row_at_a_time() {
    for family in ["llama_tied", "mistral"] {
        let model = open(family, BaseQuant::None);
        let rows = random_rows(5);
        let together = gradients(&model, &micro_batches(&rows, 256));
        assert_same_gradients(&together, &gradients(&model, &micro_batches(&rows, 40)));
        assert_same_gradients(&together, &gradients(&model, &micro_batches(&rows, 1)));
    }
}

#[test]
fn packed_documents_do_not_see_each_other() {
    let model = open("llama_tied", BaseQuant::None);
    let rows = random_rows(2);
    let packed = gradients(&model, &micro_batches(&rows, 256)).0;
    let mut joined = micro_batches(&rows, 256);
    joined[0].documents = Documents::of_lengths([joined[0].ids.len()]);
    assert!(
        (packed - gradients(&model, &joined).0).abs() > 1e-4,
        "the masks must matter for this test to mean anything"
    );
}

#[test]
fn eight_rows_are_learnt_by_heart() {
    let model = open("llama3", BaseQuant::Nf4 { double: true });
    let config = TrainConfig {
        lora: LoraConfig {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            targets: LoraTargets::AllLinear,
        },
        epochs: 120.0,
        learning_rate: 1e-2,
        batch_rows: 8,
        accumulation: 1,
        ..TrainConfig::default()
    };
    let rows: Vec<Row> = random_rows(8);
    let trained = finish(&model, &rows, &config, None);
    let (first, last) = (trained.log[0].loss, trained.log[trained.log.len() - 1].loss);
    assert!(first > 5.0 && last < 0.3, "{first} -> {last}");
}

#[test]
fn the_first_loss_does_not_depend_on_a_fresh_adapter_but_the_bytes_depend_on_the_seed() {
    let model = open("llama_tied", BaseQuant::None);
    let (rows, config) = (
        random_rows(4),
        TrainConfig {
            batch_rows: 4,
            ..small_config()
        },
    );
    let one = finish(&model, &rows, &config, None);
    let other = finish(&model, &rows, &TrainConfig { seed: 1, ..config }, None);
    assert!((one.log[0].loss - other.log[0].loss).abs() < 1e-6);
    assert_ne!(bits(&one.adapter), bits(&other.adapter));
}

#[test]
fn a_checkpoint_of_another_run_is_refused_by_what_differs() {
    let model = open("llama_tied", BaseQuant::None);
    let (rows, config) = (random_rows(4), small_config());
    let outcome = train_rows(
        &model,
        &rows,
        &config,
        None,
        None,
        &mut |_| ControlFlow::Break(()),
    );
    let Ok(TrainOutcome::Stopped(checkpoint)) = outcome else {
        panic!("{outcome:?}")
    };
    let resume = |model: &LocalModel, rows: &[Row], config: &TrainConfig| {
        let outcome = train_rows(model, rows, config, None, Some(&checkpoint), &mut |_| {
            ControlFlow::Continue(())
        });
        outcome.unwrap_err().to_string()
    };
    let other_base = open("llama_tied", BaseQuant::Nf4 { double: true });
    assert!(resume(&other_base, &rows, &config).contains("base model"));
    assert!(resume(&model, &rows[1..], &config).contains("training rows"));
    let slower = TrainConfig {
        learning_rate: 1e-4,
        ..config.clone()
    };
    assert!(resume(&model, &rows, &slower).contains("training settings"));
    let bytes = checkpoint.to_bytes().unwrap();
    for end in [0, 7, 100, bytes.len() - 1] {
        assert!(Checkpoint::from_bytes(&bytes[..end]).is_err());
    }
}

#[test]
fn a_loss_that_is_no_number_names_its_step_and_leaves_the_checkpoint_good() {
    let model = open("llama_tied", BaseQuant::None);
    let rows = random_rows(4);
    let config = TrainConfig {
        learning_rate: 1e30,
        warmup_ratio: 0.0,
        max_grad_norm: None,
        ..small_config()
    };
    let mut last = None;
    let outcome = train_rows(&model, &rows, &config, None, None, &mut |event| {
        if let TrainEvent::Checkpoint(checkpoint) = event {
            last = Some(checkpoint.clone());
        }
        ControlFlow::Continue(())
    });
    let Err(Error::Diverged { step, .. }) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(last.unwrap().step(), step - 1);
}

#[test]
fn learning_rates_are_those_of_transformers() {
    let config = TrainConfig {
        learning_rate: 1.0,
        warmup_ratio: 0.1,
        ..TrainConfig::default()
    };
    let rates: Vec<f64> = (0..20)
        .map(|step| schedule::learning_rate(&config, step, 20))
        .collect();
    assert_eq!(rates[..3], [0.0, 0.5, 1.0]);
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * 9.0 / 18.0).cos());
    assert!((rates[11] - cosine).abs() < 1e-12);
    assert!(rates[19] > 0.0 && rates[19] < 0.01);
    let all_warmup = TrainConfig {
        warmup_ratio: 1.0,
        ..config
    };
    assert!((0..20).all(|step| schedule::learning_rate(&all_warmup, step, 20).is_finite()));
}

#[test]
fn settings_without_a_meaning_and_empty_rows_are_refused() {
    for config in [
        TrainConfig {
            epochs: 0.0,
            ..TrainConfig::default()
        },
        TrainConfig {
            learning_rate: f64::NAN,
            ..TrainConfig::default()
        },
        TrainConfig {
            warmup_ratio: 1.5,
            ..TrainConfig::default()
        },
        TrainConfig {
            max_steps: Some(0),
            ..TrainConfig::default()
        },
        TrainConfig {
            batch_rows: 0,
            ..TrainConfig::default()
        },
        TrainConfig {
            max_seq_len: 1,
            ..TrainConfig::default()
        },
    ] {
        assert!(config.validate().is_err(), "{config:?}");
    }
    let model = open("llama_tied", BaseQuant::None);
    let outcome = train_rows(&model, &[], &small_config(), None, None, &mut |_| {
        ControlFlow::Continue(())
    });
    assert!(matches!(outcome, Err(Error::NothingToLearn)));
}

fn conversation(question: &str, answer: &str) -> Conversation {
    let message = |role, content: &str| Message {
        role,
        content: content.to_owned(),
    };
    Conversation {
        messages: vec![message(Role::User, question), message(Role::Assistant, answer)],
    }
}

#[test]
fn the_loss_is_on_the_whole_sequence_or_on_what_the_assistant_says() {
    let model = open_with_text();
    let (tokenizer, template) = (model.tokenizer().unwrap(), model.chat_template().unwrap());
    let mut messages = conversation("hi", "yes").messages;
    messages.extend(conversation("sure?", "no").messages);
    let learnt = |loss_on| {
        let row = encode_row(tokenizer, template, &messages, loss_on, usize::MAX).unwrap();
        let labels: Vec<u32> = row
            .labels
            .iter()
            .copied()
            .filter(|&label| label != llamaduo_kernels::NO_LABEL)
            .collect();
        (row.ids.len(), labels.len(), tokenizer.decode(&labels).unwrap())
    };
    let (n_tokens, n_labels, _) = learnt(LossOn::WholeSequence);
    assert_eq!(n_labels, n_tokens - 1);
    let (_, n_labels, text) = learnt(LossOn::ResponseOnly);
    // Each answer, its end-of-turn token and the newline after it.
    assert_eq!(
        (n_labels, text.as_str()),
        ("yes".len() + "no".len() + 4, "yes\nno\n")
    );
}

#[test]
fn conversations_train_and_measure_better_afterwards() {
    let model = open_with_text();
    let rows: Vec<Conversation> = (0..4)
        .map(|i| conversation(&format!("question {i}"), "always the same"))
        .collect();
    let config = TrainConfig {
        lora: LoraConfig {
            dropout: 0.0,
            ..LoraConfig::default()
        },
        epochs: 20.0,
        learning_rate: 1e-2,
        max_seq_len: 64,
        packing: true,
        ..small_config()
    };
    let outcome = train(&model, &rows, &config, None, None, &mut |_| {
        ControlFlow::Continue(())
    });
    let Ok(TrainOutcome::Finished(trained)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(trained.samples, 4);
    assert_eq!(
        trained.tokens,
        trained.log.iter().map(|log| log.tokens).sum::<u64>()
    );
    let before = crate::evaluate(&model, None, &rows).unwrap();
    let after = crate::evaluate(&model, Some(&trained.adapter), &rows).unwrap();
    assert_eq!(before.tokens, after.tokens);
    assert!(after.loss < before.loss - 1.0, "{before:?} {after:?}");
    let more = train(&model, &rows, &config, Some(&trained.adapter), None, &mut |_| {
        ControlFlow::Continue(())
    });
    let Ok(TrainOutcome::Finished(more)) = more else {
        panic!("{more:?}")
    };
    assert!(
        more.log[0].loss < trained.log[0].loss - 1.0,
        "goes on from the adapter"
    );
}

#[test]
fn rows_beyond_the_context_cannot_be_measured_and_an_unfit_adapter_cannot_be_used() {
    let model = open_with_text();
    let long = conversation(&"x".repeat(600), "y");
    let error = crate::evaluate(&model, None, &[conversation("a", "b"), long]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::RowTooLong {
                row: 1,
                context_len: 512,
                ..
            }
        ),
        "{error}"
    );
    assert!(matches!(
        crate::evaluate(&model, None, &[]),
        Err(Error::NothingToLearn)
    ));
    let other = Adapter::init(
        &crate::testing::golden_model("llama3").config,
        &LoraConfig::default(),
        1,
    )
    .unwrap();
    let error = crate::evaluate(&model, Some(&other), &[conversation("a", "b")]).unwrap_err();
    assert!(matches!(error, Error::AdapterMismatch { .. }), "{error}");
}
