//! Valid domain values, drawn from a seed.

mod events;
mod messages;

use crate::Digest;
use crate::ids::{AttemptNumber, Cycle};
use crate::run::*;
use crate::task::*;

/// splitmix64.
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// 1 to `max`.
    fn count(&mut self, max: u32) -> u32 {
        1 + self.below(max.into()) as u32
    }

    /// Strictly between 0 and 1.
    fn share(&mut self) -> f64 {
        (1 + self.below(998)) as f64 / 1_000.0
    }

    fn maybe<T>(&mut self, draw: impl Fn(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| draw(self))
    }

    fn some<T>(&mut self, draw: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.below(4)).map(|_| draw(self)).collect()
    }

    fn digest(&mut self) -> Digest {
        let hex: String = (0..4).map(|_| format!("{:016x}", self.next())).collect();
        hex.parse().unwrap()
    }

    fn id<T: std::str::FromStr>(&mut self) -> T {
        format!("c{:02}-x_{}.y", self.below(100), self.below(1_000))
            .parse()
            .ok()
            .unwrap()
    }

    fn text(&mut self) -> String {
        format!("some wörds {}", self.below(1_000))
    }

    fn quantization(&mut self) -> Quantization {
        self.pick(&[Quantization::None, Quantization::Nf4, Quantization::Nf4Double])
    }

    fn stage(&mut self) -> Stage {
        self.pick(&[Stage::Train, Stage::Infer, Stage::Judge, Stage::Synthesize])
    }

    fn cycle(&mut self) -> Cycle {
        Cycle(self.count(9))
    }

    fn local_model(&mut self) -> LocalModelSpec {
        LocalModelSpec {
            reference: self.text(),
            quantization: self.quantization(),
            compute: self.pick(&[Compute::F32, Compute::Bf16, Compute::Int16]),
        }
    }

    fn service_llm(&mut self) -> ServiceLlmSpec {
        ServiceLlmSpec {
            vendor: Vendor::Openai,
            model: self.text(),
            base_url: self.maybe(|d| format!("http://127.0.0.1:{}/v1", d.count(60_000))),
            api_key: match self.below(3) {
                0 => ApiKeySource::None,
                1 => ApiKeySource::Env("SOME_KEY".to_owned()),
                _ => ApiKeySource::File("/run/key".to_owned()),
            },
            temperature: self.maybe(|d| d.share() as f32),
            tokens_max: self.count(4_096),
            concurrency_max: self.count(64),
            requests_per_minute_max: self.maybe(|d| d.count(500)),
            usd_per_mtok: self.maybe(|d| (d.share(), d.share() * 10.0)),
            json_schema: self.flag(),
            timeout_ms: self.count(600_000),
        }
    }

    fn train(&mut self) -> TrainSettings {
        TrainSettings {
            lora_rank: self.count(64),
            lora_alpha: self.count(64) as f32,
            lora_dropout: self.share() as f32,
            lora_targets: self.pick(&[LoraTargets::AllLinear, LoraTargets::QueryValue]),
            epochs: self.share() as f32 * 5.0,
            learning_rate: self.share() as f32,
            warmup_ratio: self.share() as f32,
            weight_decay: self.share() as f32,
            gradient_norm_max: self.maybe(|d| d.share() as f32),
            batch_rows: self.count(64),
            sequence_tokens_max: self.count(4_096),
            loss_on: self.pick(&[LossOn::WholeSequence, LossOn::ResponseOnly]),
            packing: self.flag(),
            checkpoint_steps: self.maybe(|d| d.count(100)),
            recompute: self.flag(),
            train_from: self.pick(&[TrainFrom::Base, TrainFrom::LastAdapter]),
        }
    }

    fn infer(&mut self) -> InferSettings {
        InferSettings {
            responses_per_prompt: self.count(8),
            temperature: self.share() as f32,
            top_p: self.maybe(|d| d.share() as f32),
            top_k: self.maybe(|d| d.count(100)),
            tokens_max: self.count(512),
            prompts_per_task: self.count(32),
            batch_max: self.count(64),
            min_p: self.maybe(|d| d.share() as f32),
            repetition_penalty: self.maybe(|d| 1.0 + d.share() as f32),
            stop: self.some(Self::text),
            logprobs: self.flag(),
        }
    }

    fn judge(&mut self) -> JudgeSettings {
        JudgeSettings {
            gradings_per_response: self.count(10),
            prompt: self.maybe(Self::digest),
        }
    }

    fn synthesis(&mut self) -> SynthesisSettings {
        let prompt_words_min = self.count(10);
        SynthesisSettings {
            samples_per_cycle: self.count(1_000),
            pairs_per_call: self.count(10),
            examples_per_call: self.count(10),
            calls_per_task: self.count(10),
            prompt: self.maybe(Self::digest),
            curation: CurationSettings {
                near_duplicate_jaccard: self.share(),
                novelty_rouge_l: self.share() * 2.0,
                contamination_rouge_l: self.share(),
                contamination_run_words: self.count(20),
                prompt_words_min,
                prompt_words_max: prompt_words_min + self.count(100),
                response_words_max: self.count(100),
                response_json: self.flag(),
            },
        }
    }

    fn gate_rule(&mut self) -> GateRule {
        if self.flag() {
            GateRule::Relative {
                ratio_min: self.share(),
            }
        } else {
            GateRule::Absolute {
                similarity_mean_min: 1.0 + 99.0 * self.share(),
                precision_mean_min: 1.0 + 99.0 * self.share(),
                coverage_min: self.share(),
            }
        }
    }

    fn gate(&mut self) -> Gate {
        Gate {
            rule: self.gate_rule(),
            coverage_score: 1.0 + 99.0 * self.share(),
            compared: self.maybe(Self::gate_rule),
        }
    }

    fn budget(&mut self) -> Budget {
        Budget {
            nano_usd_max: self.maybe(|d| d.below(9)),
            calls_max: self.maybe(|d| d.below(9)),
        }
    }

    pub(super) fn run_spec(&mut self) -> RunSpec {
        RunSpec {
            name: self.text(),
            topic: self.maybe(Self::text).unwrap_or_default(),
            local_model: self.local_model(),
            service_llm: self.service_llm(),
            judge_llm: self.service_llm(),
            coverage: CoverageDataset {
                train: self.digest(),
                test: self.digest(),
                n_train: self.count(1_000),
                n_test: self.count(1_000),
            },
            train: self.train(),
            infer: self.infer(),
            judge: self.judge(),
            synthesis: self.synthesis(),
            gate: self.gate(),
            budget: self.budget(),
            cycles_max: self.count(9),
            seed: self.next(),
            measure_base_unquantized: self.flag(),
            overrides: self.some(Self::text),
        }
    }

    /// Of the base (0), an adapter (1) or the service (2).
    pub(super) fn infer_task(&mut self, who: u64) -> InferTask {
        InferTask {
            cycle: self.cycle(),
            answerer: match who {
                0 => Answerer::Base {
                    local_model: self.local_model(),
                },
                1 => Answerer::Adapter {
                    local_model: self.local_model(),
                    adapter: self.digest(),
                },
                _ => Answerer::Service {
                    service_llm: self.service_llm(),
                },
            },
            test: self.digest(),
            first_prompt: self.count(100),
            n_prompts: self.count(100),
            settings: self.infer(),
            seed: self.next(),
        }
    }

    pub(super) fn task_spec(&mut self) -> TaskSpec {
        match self.below(4) {
            0 => TaskSpec::Train(TrainTask {
                cycle: self.cycle(),
                local_model: self.local_model(),
                data: vec![self.digest(), self.digest()],
                settings: self.train(),
                seed: self.next(),
                init_adapter: self.maybe(Self::digest),
            }),
            1 => {
                let who = self.below(3);
                TaskSpec::Infer(self.infer_task(who))
            }
            2 => TaskSpec::Judge(JudgeTask {
                cycle: self.cycle(),
                subject: self.maybe(Self::subject),
                judge_llm: self.service_llm(),
                test: self.digest(),
                responses: self.digest(),
                settings: self.judge(),
            }),
            _ => TaskSpec::Synthesize(SynthesizeTask {
                cycle: self.cycle(),
                service_llm: self.service_llm(),
                train: self.digest(),
                first_call: self.count(100),
                n_calls: self.count(100),
                settings: self.synthesis(),
                topic: self.text(),
                seed: self.next(),
            }),
        }
    }

    fn subject(&mut self) -> Subject {
        match self.below(3) {
            0 => Subject::Base(self.quantization()),
            1 => Subject::Service,
            _ => Subject::Adapter(self.cycle()),
        }
    }

    pub(super) fn task_result(&mut self) -> TaskResult {
        let output = match self.below(4) {
            0 => TaskOutput::Train(TrainOutput {
                n_samples: self.count(99),
                n_tokens: self.next(),
                n_steps: self.count(99),
                loss_first: self.share(),
                loss_last: self.share(),
                seconds: self.share(),
            }),
            1 => TaskOutput::Infer(InferOutput {
                responses: self.digest(),
                n_responses: self.count(99),
                n_tokens: self.next(),
                seconds: self.share(),
            }),
            2 => TaskOutput::Judge(JudgeOutput {
                verdicts: self.digest(),
                n_graded: self.count(99),
                n_unparsed: self.count(99),
            }),
            _ => TaskOutput::Synthesize(SynthesizeOutput {
                samples: self.digest(),
                n_raw: 99,
                n_malformed: self.count(99),
            }),
        };
        TaskResult {
            manifest: self.digest(),
            output,
        }
    }

    fn failure_kind(&mut self) -> FailureKind {
        use FailureKind::*;
        self.pick(&[
            Retryable,
            Permanent,
            OutOfMemory,
            Cancelled,
            WorkerLost,
            LeaseExpired,
            CorruptInput,
            ServiceRefused,
            ServiceUnavailable,
            BudgetSpent,
            Released,
        ])
    }

    fn failure(&mut self) -> Failure {
        Failure {
            kind: self.failure_kind(),
            message: self.text(),
            attempt: AttemptNumber(self.count(4)),
            worker: self.id(),
        }
    }

    fn progress(&mut self) -> Progress {
        Progress {
            n_done: self.next(),
            n_total: self.next(),
            unit: self.text(),
            detail: self.text(),
        }
    }

    fn metric(&mut self) -> MetricScore {
        MetricScore {
            mean: self.maybe(|d| 1.0 + 99.0 * d.share()),
            interval: self.maybe(|d| (50.0 * d.share(), 50.0 + 50.0 * d.share())),
            coverage: self.maybe(Self::share),
        }
    }

    fn scores(&mut self) -> Scores {
        Scores {
            similarity: self.metric(),
            precision: self.metric(),
            n_verdicts: self.count(99),
            n_unparsed: self.count(99),
        }
    }

    fn decision(&mut self) -> GateDecision {
        GateDecision {
            rule: self.text(),
            value: self.maybe(Self::share),
            threshold: self.share(),
            passed: self.flag(),
            reason: self.text(),
        }
    }

    fn counts(&mut self) -> CurationCounts {
        let [n_kept, n_duplicates, n_filtered, n_contaminated] = [(); 4].map(|()| self.count(99));
        let n_raw = n_kept + n_duplicates + n_filtered + n_contaminated;
        CurationCounts {
            n_raw,
            n_kept,
            n_duplicates,
            n_filtered,
            n_contaminated,
        }
    }
}
