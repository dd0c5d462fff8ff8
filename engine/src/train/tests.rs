//! What must hold of training whatever the numbers: resuming, accumulation, packing, recomputation, refusals.

mod text;

use std::ops::ControlFlow;

use llamaduo_kernels::{Documents, random};

use super::*;
use crate::local_model::BaseQuant;
use crate::lora::{LoraConfig, LoraTargets};
use crate::model::MicroBatch;
use crate::testing::open;

/// `n` rows of random tokens, of different lengths.
fn random_rows(n: usize) -> Vec<Row> {
    let row = |index: usize| {
        let len = 8 + 3 * index;
        let ids = (0..len as u64)
            .map(|token| 3 + random::word(index as u64, token) % 300)
            .collect();
        Row::new(ids, |_| true)
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

/// [`super::train_rows`] on rows of which none was cut or dropped.
fn train_rows(
    model: &LocalModel,
    rows: &[Row],
    config: &TrainConfig,
    init: Option<&Adapter>,
    resume: Option<&Checkpoint>,
    observe: &mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>,
) -> Result<TrainOutcome> {
    let rows = Rows {
        learnt: rows.to_vec(),
        ..Rows::default()
    };
    super::train_rows(model, &rows, config, init, resume, observe)
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
        let checkpoint = Checkpoint::from_bytes(bytes.clone()).unwrap();
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
        ..crate::LoadOptions::default()
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
fn steps_of_many_small_batches_learn_what_those_of_one_big_batch_learn() {
    let model = open("llama_tied", BaseQuant::Nf4 { double: true });
    let rows = random_rows(8);
    let mut config = TrainConfig {
        batch_rows: 4,
        micro_batch_tokens: 256,
        ..small_config()
    };
    config.lora.dropout = 0.0;
    let big = finish(&model, &rows, &config, None);
    let small = TrainConfig {
        batch_rows: 1,
        accumulation: 4,
        ..config.clone()
    };
    let cut = TrainConfig {
        micro_batch_tokens: 16,
        ..config
    };
    for other in [small, cut] {
        let other = finish(&model, &rows, &other, None);
        assert_eq!(other.log.len(), big.log.len());
        for (ours, theirs) in other.log.iter().zip(&big.log) {
            assert_eq!(
                (ours.tokens, ours.learning_rate),
                (theirs.tokens, theirs.learning_rate)
            );
            assert!((ours.loss - theirs.loss).abs() < 1e-5, "{ours:?} {theirs:?}");
        }
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
        assert!(Checkpoint::from_bytes(bytes[..end].to_vec()).is_err());
    }
}

#[test]
fn a_loss_that_is_no_number_names_its_step_and_leaves_the_checkpoint_good() {
    let model = open("llama_tied", BaseQuant::None);
    let rows = random_rows(4);
    // The first step has rate 0, the second makes parameters that are finite and useless.
    let config = TrainConfig {
        learning_rate: 1e30,
        warmup_ratio: 0.5,
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
    let last = last.unwrap();
    assert_eq!((step, last.step()), (3, 1));
    let adapter = Adapter::from_params(model.config(), config.lora, last.state.params).unwrap();
    let loss = crate::eval::evaluate_rows(&model, Some(&adapter), &rows).unwrap();
    assert!(loss.loss < 10.0, "{loss:?}");
}

#[test]
fn parameters_that_are_no_numbers_are_never_handed_out() {
    let model = open("llama_tied", BaseQuant::None);
    let rows = random_rows(4);
    let config = TrainConfig {
        learning_rate: 1e39,
        max_steps: Some(1),
        ..small_config()
    };
    let outcome = train_rows(&model, &rows, &config, None, None, &mut |_| {
        ControlFlow::Continue(())
    });
    let Err(error @ Error::Diverged { step: 1, .. }) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(
        error
            .to_string()
            .contains("start anew with a lower learning rate")
    );
    let config = TrainConfig {
        max_steps: None,
        warmup_ratio: 0.0,
        ..config
    };
    let outcome = train_rows(&model, &rows, &config, None, None, &mut |event| match event {
        TrainEvent::Step { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(outcome, Err(Error::Diverged { .. })), "{outcome:?}");
}

#[test]
fn a_checkpoint_with_what_is_no_number_is_refused() {
    let model = open("llama_tied", BaseQuant::None);
    let outcome = train_rows(&model, &random_rows(4), &small_config(), None, None, &mut |_| {
        ControlFlow::Break(())
    });
    let Ok(TrainOutcome::Stopped(mut checkpoint)) = outcome else {
        panic!("{outcome:?}")
    };
    checkpoint.state.second_moment[7] = f32::INFINITY;
    let error = Checkpoint::from_bytes(checkpoint.to_bytes().unwrap()).unwrap_err();
    assert!(error.to_string().contains("inf"), "{error}");
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
        ..config.clone()
    };
    assert!((0..20).all(|step| schedule::learning_rate(&all_warmup, step, 20).is_finite()));
    assert_eq!(
        schedule::learning_rate(&config, 0, 1),
        1.0,
        "a single step learns"
    );
    let two: Vec<f64> = (0..2)
        .map(|step| schedule::learning_rate(&config, step, 2))
        .collect();
    assert_eq!(two, [0.0, 1.0]);
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
