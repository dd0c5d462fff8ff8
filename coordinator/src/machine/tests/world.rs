//! Specifications and results made up for tests, and a driver that steps a run as the actors would.

use std::time::Duration;

use llamaduo_proto::Digest;
use llamaduo_proto::ids::{AttemptId, Cycle, Incarnation, LeaseToken, RequestId, RunId, TaskId, WorkerId};
use llamaduo_proto::run::*;
use llamaduo_proto::session::AttemptFailure;
use llamaduo_proto::task::*;

use crate::machine::{Action, Aggregate, Aggregated, Event, Now, Refusal, Rules, Run, Work, step};

pub(crate) fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

pub(crate) fn service() -> ServiceLlmSpec {
    ServiceLlmSpec {
        vendor: Vendor::Openai,
        model: "teacher".to_owned(),
        base_url: Some("http://127.0.0.1:1/v1".to_owned()),
        api_key: ApiKeySource::None,
        temperature: None,
        tokens_max: 100,
        concurrency_max: 4,
        requests_per_minute_max: None,
        usd_per_mtok: None,
        json_schema: true,
        timeout_ms: 1_000,
    }
}

/// A migration of 10 test prompts in shards of 4, and 12 synthesis calls in shards of 5.
pub(crate) fn spec() -> RunSpec {
    RunSpec {
        name: "tickets".to_owned(),
        topic: "support tickets".to_owned(),
        local_model: LocalModelSpec {
            reference: "tiny".to_owned(),
            quantization: Quantization::Nf4Double,
            compute: Compute::F32,
        },
        service_llm: service(),
        judge_llm: service(),
        coverage: CoverageDataset {
            train: digest("train"),
            test: digest("test"),
            n_train: 20,
            n_test: 10,
        },
        train: train_settings(),
        infer: InferSettings {
            responses_per_prompt: 2,
            temperature: 0.0,
            top_p: None,
            top_k: None,
            tokens_max: 16,
            prompts_per_task: 4,
            batch_max: 8,
            min_p: None,
            repetition_penalty: None,
            stop: Vec::new(),
            logprobs: false,
        },
        judge: JudgeSettings {
            gradings_per_response: 2,
            prompt: None,
        },
        synthesis: SynthesisSettings {
            samples_per_cycle: 24,
            pairs_per_call: 2,
            examples_per_call: 3,
            calls_per_task: 5,
            prompt: None,
            curation: CurationSettings::default(),
        },
        gate: Gate {
            rule: GateRule::Relative { ratio_min: 0.9 },
            coverage_score: 70.0,
            compared: None,
        },
        budget: Budget::default(),
        cycles_max: 3,
        seed: 7,
        measure_base_unquantized: true,
        overrides: Vec::new(),
    }
}

fn train_settings() -> TrainSettings {
    TrainSettings {
        lora_rank: 8,
        lora_alpha: 16.0,
        lora_dropout: 0.0,
        lora_targets: LoraTargets::AllLinear,
        epochs: 1.0,
        learning_rate: 1e-3,
        warmup_ratio: 0.0,
        weight_decay: 0.0,
        gradient_norm_max: None,
        batch_rows: 1,
        sequence_tokens_max: 128,
        loss_on: LossOn::WholeSequence,
        packing: true,
        checkpoint_steps: None,
        recompute: false,
        train_from: TrainFrom::Base,
    }
}

pub(crate) fn worker(name: &str) -> WorkerId {
    WorkerId::new(name).expect("a valid id")
}

pub(crate) fn incarnation(n: u32) -> Incarnation {
    Incarnation::new(&format!("i{n}")).expect("a valid id")
}

/// A result such as `spec` asks for.
pub(crate) fn result_of(task: &TaskId, spec: &TaskSpec) -> TaskResult {
    let name = |part: &str| digest(&format!("{task}/{part}"));
    let output = match spec {
        TaskSpec::Train(_) => TaskOutput::Train(TrainOutput {
            n_samples: 1,
            n_tokens: 1,
            n_steps: 1,
            loss_first: 2.0,
            loss_last: 1.0,
            seconds: 1.0,
        }),
        TaskSpec::Infer(_) => TaskOutput::Infer(InferOutput {
            responses: name("responses"),
            n_responses: 1,
            n_tokens: 1,
            seconds: 1.0,
        }),
        TaskSpec::Judge(_) => TaskOutput::Judge(JudgeOutput {
            verdicts: name("verdicts"),
            n_graded: 1,
            n_unparsed: 0,
        }),
        TaskSpec::Synthesize(_) => TaskOutput::Synthesize(SynthesizeOutput {
            samples: name("samples"),
            n_raw: 10,
            n_malformed: 1,
        }),
    };
    TaskResult {
        manifest: name("manifest"),
        output,
    }
}

pub(crate) fn scores(mean: f64) -> Scores {
    let metric = MetricScore {
        mean: Some(mean),
        interval: Some((mean - 1.0, mean + 1.0)),
        coverage: Some(0.5),
    };
    Scores {
        similarity: metric,
        precision: metric,
        n_verdicts: 40,
        n_unparsed: 0,
    }
}

/// A run with the clock and the revisions of its store.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) run: Run,
    pub(crate) now: Now,
    pub(crate) revision: u64,
    /// Aggregates asked for by the last step.
    pub(crate) aggregates: Vec<Aggregate>,
    /// The cycle whose gate passes; 0 is none.
    pub(crate) passing_cycle: u32,
}

impl World {
    pub(crate) fn new(work: Work, passing_cycle: u32) -> Self {
        let rules = Rules {
            lease_expiry: Duration::from_secs(18),
        };
        let id = RunId::new("run-1").expect("a valid id");
        let request = RequestId::new("request-1").expect("a valid id");
        let (run, actions) = Run::submitted(id, request, work, rules, Now::default());
        let mut world = Self {
            run,
            now: Now::default(),
            revision: 1,
            aggregates: Vec::new(),
            passing_cycle,
        };
        world.take(actions);
        world
    }

    pub(crate) fn migration(passing_cycle: u32) -> Self {
        Self::new(Work::Migration(Box::new(spec())), passing_cycle)
    }

    fn take(&mut self, actions: Vec<Action>) -> bool {
        let mut again = false;
        self.aggregates.clear();
        for action in actions {
            match action {
                Action::Aggregate(aggregate) => self.aggregates.push(aggregate),
                Action::StepAgain => again = true,
                Action::Place | Action::CancelAttempt { .. } | Action::Progress(_) => {}
            }
        }
        again
    }

    /// Steps and commits.
    pub(crate) fn step(&mut self, event: Event) -> Result<(), Refusal> {
        let (run, actions) = step(&self.run, event, self.now)?;
        self.run = run;
        self.revision += 1;
        self.run.stamp(LeaseToken(self.revision));
        if self.take(actions) {
            self.step(Event::Tick)
        } else {
            Ok(())
        }
    }

    pub(crate) fn pass_time(&mut self, seconds: f64) {
        self.now.clock += Duration::from_secs_f64(seconds);
        self.now.time_ms += (seconds * 1000.0) as u64;
    }

    pub(crate) fn ready(&self) -> Vec<TaskId> {
        let is_ready = |task: &&(&TaskId, &crate::machine::Task)| {
            task.1.record.status == TaskStatus::Ready && task.1.not_before <= self.now.clock
        };
        if !self.run.is_open() {
            return Vec::new();
        }
        self.run
            .tasks_in_order()
            .iter()
            .filter(is_ready)
            .map(|(id, _)| (*id).clone())
            .collect()
    }

    pub(crate) fn claim(&mut self, task: &TaskId, by: &str) -> AttemptId {
        self.claim_as(task, by, 1)
    }

    pub(crate) fn claim_as(&mut self, task: &TaskId, by: &str, process: u32) -> AttemptId {
        self.step(Event::Claim {
            task: task.clone(),
            worker: worker(by),
            incarnation: incarnation(process),
        })
        .expect("the task is ready");
        self.run.attempt_id(task).expect("it was claimed")
    }

    pub(crate) fn complete(&mut self, attempt: &AttemptId) -> Result<(), Refusal> {
        let spec = self.run.task_spec(&attempt.task).expect("its inputs are there");
        let result = result_of(&attempt.task, &spec);
        let digest = digest(&format!("{attempt:?} done"));
        self.step(Event::Completed {
            attempt: attempt.clone(),
            result,
            digest,
        })
    }

    pub(crate) fn fail(&mut self, attempt: &AttemptId, kind: FailureKind) -> Result<(), Refusal> {
        let failure = AttemptFailure {
            kind,
            message: "it broke".to_owned(),
            checkpoint: None,
        };
        let digest = digest(&format!("{attempt:?} failed"));
        self.step(Event::Failed {
            attempt: attempt.clone(),
            failure,
            digest,
        })
    }

    pub(crate) fn aggregate(&mut self, aggregate: Aggregate) -> Result<(), Refusal> {
        let aggregated = match aggregate {
            Aggregate::Score { cycle, subject } => Aggregated::Scored {
                cycle,
                subject,
                scores: scores(50.0),
            },
            Aggregate::Gate { cycle } => Aggregated::Gated {
                cycle,
                decision: self.decision(cycle),
            },
            Aggregate::Curate { cycle } => Aggregated::Curated {
                cycle,
                counts: CurationCounts {
                    n_raw: 30,
                    n_kept: 10,
                    n_duplicates: 10,
                    n_filtered: 5,
                    n_contaminated: 5,
                },
                manifest: digest(&format!("curated {cycle:?}")),
                samples: digest(&format!("samples {cycle:?}")),
            },
            Aggregate::Report => Aggregated::Reported {
                manifest: digest("report"),
            },
        };
        self.step(Event::Aggregated(aggregated))
    }

    fn decision(&self, cycle: Cycle) -> GateDecision {
        let passed = cycle.0 == self.passing_cycle;
        let reason = if passed { "good enough" } else { "not good enough" }.to_owned();
        let value = Some(f64::from(cycle.0) / 10.0);
        GateDecision {
            rule: "as good".to_owned(),
            value,
            threshold: 0.9,
            passed,
            reason,
        }
    }

    /// One thing that is due: an aggregate, or a task from claim to completion. `false` when nothing is.
    pub(crate) fn do_one(&mut self) -> bool {
        if let Some(aggregate) = self.aggregates.first().copied() {
            self.aggregate(aggregate).expect("aggregates are never refused");
            return true;
        }
        let Some(task) = self.ready().first().cloned() else {
            return false;
        };
        let attempt = self.claim(&task, "w1");
        self.complete(&attempt).expect("the lease is current");
        true
    }

    pub(crate) fn do_all(&mut self) {
        while self.do_one() {}
    }
}
