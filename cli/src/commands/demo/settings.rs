//! Every number of the demo.
//!
//! Invariant: the gate is fixed here beforehand; nothing about a run's outcome flows back into it.

use llamaduo_worker::stand_in;

use crate::config::Config;
use crate::config::sections::{
    CurationSection, DataSection, GateSection, InferSection, JudgeSection, LocalSection, LossOn, RunSection,
    ServiceSection, SynthesisSection, TaskSection, TrainSection,
};

/// The student: small enough for two cores.
pub(super) const LOCAL_MODEL: &str = "smollm2-135m-instruct";

/// The whole demo as a config, as a user would write it.
pub(super) fn config(seed: u64, stand_in_port: u16) -> Config {
    Config {
        task: TaskSection {
            name: format!("demo-{seed}"),
            topic: "customer support messages, each answered with one line of JSON".to_owned(),
        },
        local: LocalSection {
            base: LOCAL_MODEL.to_owned(),
            ..LocalSection::default()
        },
        service: ServiceSection {
            model: Some(stand_in::MODEL.to_owned()),
            base_url: Some(format!("http://127.0.0.1:{stand_in_port}/v1")),
            concurrency: 4,
            // Made-up prices, so that costs and budgets show.
            input_usd_per_mtok: Some(0.1),
            output_usd_per_mtok: Some(0.5),
            ..ServiceSection::default()
        },
        judge: JudgeSection {
            gradings_per_response: 2,
            ..JudgeSection::default()
        },
        data: DataSection {
            coverage: Some("data/coverage.jsonl".to_owned()),
            // Of 150 pairs, most are for the test: the train split is deliberately too small.
            test_count: Some(90),
            test_ratio: None,
            seed,
        },
        train: train(),
        infer: InferSection {
            responses_per_prompt: 1,
            temperature: 0.0,
            // Twice the longest right answer: what rambles on is wrong already.
            max_tokens: 64,
            prompts_per_task: 45,
            batch: 45,
            ..InferSection::default()
        },
        synthesis: SynthesisSection {
            samples_per_cycle: 432,
            pairs_per_call: 6,
            examples_per_call: 3,
            calls_per_task: 12,
            prompt: None,
            curation: CurationSection {
                response_json: true,
                ..CurationSection::default()
            },
        },
        gate: GateSection::default(),
        run: RunSection {
            cycles_max: 3,
            seed,
            measure_base_unquantized: true,
        },
        ..Config::default()
    }
}

fn train() -> TrainSection {
    TrainSection {
        lora_rank: 16,
        lora_alpha: 32.0,
        lora_dropout: 0.0,
        epochs: 1.0,
        // Few samples seen once: many small steps, each far.
        learning_rate: 2e-3,
        batch_rows: 2,
        sequence_tokens: 512,
        // The messages are made of given sentences; what is to be learnt is the answer.
        loss_on: LossOn::ResponseOnly,
        packing: false,
        // Some twenty seconds of work on two cores.
        checkpoint_steps: Some(25),
        ..TrainSection::default()
    }
}
