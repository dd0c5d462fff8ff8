//! Plans against what is allocated, counted by the stand-in driver; and against sums made by hand.

use llamaduo_kernels::{Cuda, HeadDims};
use llamaduo_stand_in_driver::{load, usage};

use super::*;
use crate::config::ModelConfig;
use crate::error::Error;
use crate::generate::{GenerateOptions, PromptIds, generate_ids};
use crate::local_model::LocalModel;
use crate::lora::{Adapter, LoraTargets};
use crate::model::Keep;
use crate::testing::{golden, golden_model};
use crate::train::{OptimizerState, Row, StepSettings, TrainConfig, Trainer, micro_batches};

const NF4: BaseQuant = BaseQuant::Nf4 { double: true };

/// What a plan says without the driver's own, which the stand-in does not take.
fn planned(plan: &MemoryPlan) -> u64 {
    plan.bytes() - plan.part(Part::Context)
}

/// A model on the stand-in, and the bytes it took.
fn on_cuda(family: &str, quant: BaseQuant) -> (LocalModel<Cuda>, u64) {
    load().unwrap();
    let before = usage().n_bytes;
    let model = LocalModel::with_backend(Cuda::new(0).unwrap(), golden_model(family), quant).unwrap();
    (model, usage().n_bytes - before)
}

#[test]
fn a_base_takes_what_is_planned() {
    for (family, quant) in [
        ("llama3", NF4),
        ("mistral", NF4),
        ("gemma", BaseQuant::None),
        ("gemma3", BaseQuant::None),
        ("qwen2", NF4),
        ("qwen3", BaseQuant::None),
    ] {
        let (model, taken) = on_cuda(family, quant);
        let config = model.config();
        assert_eq!(planned(&Base { config, quant }.alone()), taken, "{family}");
    }
}

#[test]
fn a_step_of_each_family_has_the_buffers_that_are_planned() {
    let lora = LoraConfig {
        rank: 3,
        ..LoraConfig::default()
    };
    for family in ["llama3", "gemma3", "qwen2", "qwen3"] {
        let (model, base) = on_cuda(family, BaseQuant::None);
        let config = model.config();
        let adapter = Adapter::init(config, &lora, 1).unwrap();
        for (keep, recompute) in [(Keep::All, false), (Keep::Inputs, true)] {
            let state = OptimizerState::start(adapter.params().to_vec());
            let before = usage().n_bytes;
            let trainer = Trainer::new(model.inner(), adapter.layout().clone(), &state, 17, keep).unwrap();
            let taken = base + usage().n_bytes - before;
            let step = TrainingStep {
                lora: &lora,
                tokens: 17,
                recompute,
            };
            let quant = BaseQuant::None;
            let plan = Base { config, quant }.training(step);
            assert_eq!(
                planned(&plan) - plan.part(Part::Operations),
                taken,
                "{family}, {keep:?}"
            );
            drop(trainer);
        }
    }
}

/// `n` rows of `len` tokens, each of which is learnt.
fn rows(n: usize, len: usize) -> Vec<Row> {
    (0..n)
        .map(|row| {
            Row::new(
                (0..len).map(|i| ((row * 31 + i * 7) % 90) as u32).collect(),
                |_| true,
            )
        })
        .collect()
}

#[test]
fn training_takes_what_is_planned() {
    for (family, quant, targets) in [
        ("llama3", NF4, LoraTargets::AllLinear),
        ("mistral", NF4, LoraTargets::Qv),
        ("gemma", BaseQuant::None, LoraTargets::AllLinear),
    ] {
        let lora = LoraConfig {
            rank: 8,
            targets,
            ..LoraConfig::default()
        };
        for (keep, recompute) in [(Keep::All, false), (Keep::Inputs, true)] {
            // a device of its own, which keeps no operation's buffers of before
            let (model, base) = on_cuda(family, quant);
            let config = model.config();
            let adapter = Adapter::init(config, &lora, 1).unwrap();
            let tokens = 48;
            let state = OptimizerState::start(adapter.params().to_vec());
            let before = usage().n_bytes;
            let mut trainer =
                Trainer::new(model.inner(), adapter.layout().clone(), &state, tokens, keep).unwrap();
            let settings = StepSettings {
                number: 1,
                learning_rate: 1e-3,
                dropout: None,
            };
            let batches = micro_batches(&rows(2, tokens), tokens);
            let measured = trainer.measure(&batches, settings).unwrap();
            trainer
                .update(&TrainConfig::default(), settings, measured)
                .unwrap();
            let most = base + usage().n_bytes_max - before;
            let step = TrainingStep {
                lora: &lora,
                tokens,
                recompute,
            };
            // The last row has no label, so that its logits and their gradient are not made.
            let of_row = cross_entropy(2, config.hidden, config.vocab_size)
                - cross_entropy(1, config.hidden, config.vocab_size);
            let slack = SLACK_BYTES_PER_ROW * tokens as u64 + of_row;
            check(
                &format!("{family}, {keep:?}"),
                &Base { config, quant }.training(step),
                most,
                slack,
            );
            // The next step finds all it needs.
            let n_before = usage().n_allocations;
            let measured = trainer.measure(&batches, settings).unwrap();
            trainer
                .update(&TrainConfig::default(), settings, measured)
                .unwrap();
            assert_eq!(usage().n_allocations, n_before, "{family}, {keep:?}");
        }
    }
}

/// What was taken at most is what was planned, but for what is not known of each row.
fn check(what: &str, plan: &MemoryPlan, most: u64, slack: u64) {
    let planned = planned(plan);
    assert!(most <= planned, "{what}: {most} bytes, planned were {planned}");
    assert!(
        planned - most <= slack,
        "{what}: {most} bytes, planned were {planned}"
    );
}

#[test]
fn generation_takes_what_is_planned() {
    for (family, quant) in [("llama3", NF4), ("gemma", BaseQuant::None)] {
        let (model, base) = on_cuda(family, quant);
        let config = model.config();
        let golden = crate::peft::load(&golden(family).join("adapter"), config).unwrap();
        let lora = LoraConfig {
            rank: 5,
            targets: LoraTargets::Qv,
            ..LoraConfig::default()
        };
        let adapters = [golden, Adapter::init(config, &lora, 1).unwrap()];
        let mixes: [&[Option<usize>]; 3] = [&[Some(0)], &[Some(0), None], &[Some(0), Some(1), None]];
        for (mix, (max_batch, n_prompt, max_tokens)) in
            [(0, (3, 20, 5)), (0, (1, 9, 2)), (1, (2, 12, 3)), (2, (4, 12, 3))]
        {
            let mix = mixes[mix];
            let options = GenerateOptions {
                max_tokens,
                ..GenerateOptions::default()
            };
            let prompts: Vec<PromptIds> = (0..4)
                .map(|id| PromptIds {
                    id,
                    adapter: mix[id as usize % mix.len()],
                    ids: (0..n_prompt).map(|i| (i * 7 + id as u32 * 13) % 90).collect(),
                    n: 1,
                    options: options.clone(),
                })
                .collect();
            let batch = BatchOptions {
                max_batch,
                ..BatchOptions::default()
            };
            let before = usage().n_bytes;
            let given = &adapters[..mix.iter().flatten().count()];
            generate_ids(&model, given, &prompts, &[], &batch, &mut |_| {
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
            let most = base + usage().n_bytes_max - before;
            let sizes: Vec<Option<&LoraConfig>> = (mix.iter())
                .map(|adapter| adapter.map(|adapter| adapters[adapter].config()))
                .collect();
            let plan = Base { config, quant }.generation(GenerationBatch {
                adapters: &sizes,
                options: batch,
                context: n_prompt as usize + max_tokens,
            });
            // The rows of a prefill, which a short prompt does not fill; and what penalties fall on, which nobody asks for.
            let unseen = 2 * words(&[1024]);
            let slack = SLACK_BYTES_PER_ROW * (PREFILL_ROWS + max_batch) as u64 + unseen;
            let what = format!("{family}, {max_batch} at once, {} adapters", sizes.len());
            check(&what, &plan, most, slack);
        }
    }
}

fn shape(
    n_layers: usize,
    hidden: usize,
    ffn: usize,
    heads: [usize; 3],
    vocab_size: usize,
    tied_head: bool,
) -> ModelConfig {
    let [n_heads, n_kv_heads, head_dim] = heads;
    ModelConfig {
        n_layers,
        hidden,
        ffn,
        heads: HeadDims {
            n_heads,
            n_kv_heads,
            head_dim,
        },
        vocab_size,
        tied_head,
        context_len: 8192,
        windows: vec![None; n_layers],
        ..golden_model("llama3").config
    }
}

fn llama_8b() -> ModelConfig {
    shape(32, 4096, 14336, [32, 8, 128], 128_256, false)
}

fn gemma_7b() -> ModelConfig {
    shape(28, 3072, 24576, [16, 16, 256], 256_000, true)
}

fn rank_32() -> LoraConfig {
    LoraConfig {
        rank: 32,
        ..LoraConfig::default()
    }
}

#[test]
fn large_models_take_what_their_shapes_say() {
    let near = |bytes: u64, expected: f64| {
        assert!(
            (gib(bytes) - expected).abs() < 0.01,
            "{} GiB, expected {expected}",
            gib(bytes)
        );
    };
    // Elements of a block's linears: q and o 4096², k and v 4096·1024, gate, up and down 4096·14336: half a byte each, with
    // a scale of a byte for each 64 and a factor of 4 for each 256 of these, and 1 KiB a matrix for the values of scales.
    // Pairs: 32 ranks of inputs and outputs, 16 bytes an element in all.
    for (config, n_layers, block, n_embedding, n_pairs) in [
        (
            llama_8b(),
            32,
            218_103_808u64,
            2 * 128_256 * 4096u64,
            83_886_080u64,
        ),
        (gemma_7b(), 28, 276_824_064, 256_000 * 3072, 100_007_936),
    ] {
        let lora = rank_32();
        let step = TrainingStep {
            lora: &lora,
            tokens: 1024,
            recompute: true,
        };
        let base = Base {
            config: &config,
            quant: NF4,
        };
        let plan = base.training(step);
        assert_eq!(
            plan.part(Part::Linears),
            n_layers * (block / 2 + block / 64 + block / 64 / 256 * 4 + 7 * 1024)
        );
        assert_eq!(plan.part(Part::Embeddings), n_embedding * 2);
        assert_eq!(
            plan.part(Part::Adapter) + plan.part(Part::Optimizer),
            n_pairs * 16
        );
        // 16 rows of 1,024 tokens, recomputing, even if all are run at once
        let at_once = base.training(TrainingStep {
            tokens: 16 * 1024,
            ..step
        });
        assert!(gib(at_once.bytes()) < 16.0, "{:.2}", gib(at_once.bytes()));
    }
    let (config, lora) = (llama_8b(), rank_32());
    let base = Base {
        config: &config,
        quant: NF4,
    };
    let kept = |recompute| {
        let plan = base.training(TrainingStep {
            lora: &lora,
            tokens: 1024,
            recompute,
        });
        plan.part(Part::Kept)
    };
    // By hand, of a token: with recomputation 33 streams of 4096 and one block, else all blocks; a block's are q and what
    // the heads read (4096 each), k and v (1024 each), the stream between (4096), gate and up (14336 each) in bf16, 32
    // log-sum-exps and 7 times 32 ranks in f32.
    let block = 2 * (2 * 4096 + 2 * 1024 + 4096 + 2 * 14336) + 4 * (32 + 7 * 32);
    assert_eq!(kept(true), 1024 * (2 * 33 * 4096 + block));
    assert_eq!(kept(false), 1024 * (2 * 33 * 4096 + 32 * block));
    // 128 KiB of keys and values a token in bf16
    let batch = GenerationBatch {
        adapters: &[],
        options: BatchOptions {
            max_batch: 8,
            cache_bytes_max: usize::MAX,
        },
        context: 1025,
    };
    near(base.generation(batch).part(Part::Cache), 1.0);
}

#[test]
fn what_does_not_fit_is_changed_in_order_and_else_named() {
    let (config, lora) = (llama_8b(), rank_32());
    let base = Base {
        config: &config,
        quant: NF4,
    };
    let asked = TrainConfig {
        lora,
        micro_batch_tokens: 4096,
        ..TrainConfig::default()
    };
    let sizes = StepSizes {
        longest: 1024,
        batch: 16 * 1024,
    };
    let bytes = |tokens, recompute| {
        base.training(TrainingStep {
            lora: &asked.lora,
            tokens,
            recompute,
        })
        .bytes()
    };
    let fit = |room| fit_training(base, &asked, sizes, room);
    assert_eq!(fit(bytes(4096, false)).unwrap(), asked);
    let recomputing = TrainConfig {
        recompute: true,
        ..asked.clone()
    };
    assert_eq!(fit(bytes(4096, false) - 1).unwrap(), recomputing);
    for (room, tokens) in [(bytes(4096, true) - 1, 2048), (bytes(2048, true) - 1, 1024)] {
        let fitted = fit(room).unwrap();
        assert_eq!((fitted.recompute, fitted.micro_batch_tokens), (true, tokens));
        assert!(bytes(tokens, true) <= room);
    }
    let room = bytes(700, true);
    let Err(error @ Error::NotEnoughMemory { .. }) = fit(room) else {
        panic!("a row of 1,024 tokens is never divided")
    };
    let said = error.to_string();
    assert!(said.contains("samples of at most 700 tokens"), "{said}");
    assert!(said.contains("a card with"), "{said}");
    assert!(fit_base(base, base.alone().bytes()).is_ok());
    let said = fit_base(base, 3 << 30).unwrap_err().to_string();
    assert!(said.contains("a smaller base model"), "{said}");
    let unquantized = Base {
        quant: BaseQuant::None,
        ..base
    };
    let said = fit_base(unquantized, 12 << 30).unwrap_err().to_string();
    assert!(said.contains("held in NF4"), "{said}");
}

#[test]
fn fewer_responses_grow_at_once_where_memory_is_short() {
    let config = llama_8b();
    let base = Base {
        config: &config,
        quant: NF4,
    };
    let batch = |max_batch| GenerationBatch {
        adapters: &[],
        options: BatchOptions {
            max_batch,
            cache_bytes_max: usize::MAX,
        },
        context: 2048,
    };
    let bytes = |max_batch| base.generation(batch(max_batch)).bytes();
    let fit = |room| fit_generation(base, batch(64), room).map(|options| options.max_batch);
    assert_eq!(fit(bytes(64)).unwrap(), 64);
    assert_eq!(fit(bytes(64) - 1).unwrap(), 32);
    assert_eq!(fit(bytes(1)).unwrap(), 1);
    let said = fit(bytes(1) - 1).unwrap_err().to_string();
    assert!(said.contains("together at most"), "{said}");
}
