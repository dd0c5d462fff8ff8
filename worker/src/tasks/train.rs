//! Fine-tunes the base on samples, from its newest checkpoint if it has one.
//!
//! Invariant: a checkpoint is stored before its digest is told, and whoever resumes from it ends with the same
//! adapter bytes as an undisturbed run.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use llamaduo_data::jsonl;
use llamaduo_engine::lora::{LoraConfig, LoraTargets};
use llamaduo_engine::memory::{self, Base};
use llamaduo_engine::peft::{self, AdapterFiles};
use llamaduo_engine::train::{
    self as engine, Checkpoint, Conversation, Schedule, TrainConfig, TrainEvent, TrainOutcome, Trained,
};
use llamaduo_engine::{LocalModel, Message, Role};
use llamaduo_proto::manifest::ManifestKind;
use llamaduo_proto::run::{self, Compute, Quantization, TrainSettings};
use llamaduo_proto::session::Assignment;
use llamaduo_proto::task::{Progress, TaskOutput, TaskResult, TrainOutput, TrainTask};
use tokio::sync::mpsc;

use super::executor::{DEVICE_LOG, Loaded, base_quant};
use super::infer::{adapter_files, halved};
use super::{Bench, progress};
use crate::error::{Error, Stop};
use crate::link::AttemptHandle;
use crate::numbers::shortest;

/// What a worker that dies may cost at most, where epochs are longer and a run names no period of its own. A
/// checkpoint of a small model's adapter is some 30 MB.
const CHECKPOINT_PERIOD: Duration = Duration::from_secs(60);

/// The steps of a run, in the adapter's manifest.
const TRAIN_LOG: &str = "train_log.jsonl";

/// Everything the model thread needs.
struct Work {
    path: PathBuf,
    quantization: Quantization,
    compute: Compute,
    rows: Vec<Conversation>,
    config: TrainConfig,
    /// `None` keeps a checkpoint at the end of each epoch, and one every [`CHECKPOINT_PERIOD`] between.
    checkpoint_steps: Option<u32>,
    init: Option<AdapterFiles>,
    resume: Option<SavedState>,
    base_model: String,
    attempt: Arc<AttemptHandle>,
    checkpoints: mpsc::Sender<Vec<u8>>,
}

/// What a finished run hands over.
struct Done {
    trained: Trained,
    files: AdapterFiles,
    seconds: f64,
}

pub(super) async fn run(
    bench: &Arc<Bench>,
    task: &TrainTask,
    assignment: &Assignment,
    attempt: &Arc<AttemptHandle>,
) -> Result<TaskResult, Error> {
    let mut rows = Vec::new();
    for data in &task.data {
        let samples = bench.samples(*data, attempt).await?;
        rows.extend(samples.iter().map(|sample| Conversation {
            messages: messages(sample.messages()),
        }));
    }
    let init = match task.init_adapter {
        Some(manifest) => Some(adapter_files(bench, manifest, attempt).await?),
        None => None,
    };
    let resume = resume_from(bench, assignment, attempt).await?;
    let path = bench
        .models
        .resolve_for(&task.local_model.reference, attempt)
        .await?;
    // One: while a checkpoint is being stored the next is skipped, and training goes on.
    let (checkpoints, mut stored) = mpsc::channel::<Vec<u8>>(1);
    let work = Work {
        path,
        quantization: task.local_model.quantization,
        compute: task.local_model.compute.for_training(),
        rows,
        config: config(&task.settings, task.seed, assignment.batch_halvings),
        checkpoint_steps: task.settings.checkpoint_steps,
        init,
        resume,
        base_model: crate::models::published_name(&task.local_model.reference),
        attempt: Arc::clone(attempt),
        checkpoints,
    };
    let store = async {
        while let Some(bytes) = stored.recv().await {
            keep_checkpoint(bench, attempt, bytes).await;
        }
    };
    let (done, ()) = tokio::join!(bench.executor.run(move |loaded| work.run(loaded)), store);
    finish(bench, task, attempt, done?).await
}

async fn finish(
    bench: &Bench,
    task: &TrainTask,
    attempt: &AttemptHandle,
    done: Done,
) -> Result<TaskResult, Error> {
    let Done {
        trained,
        files,
        seconds,
    } = done;
    let log = jsonl::write(&trained.log)?;
    let named = vec![
        (peft::CONFIG_FILE, files.config),
        (peft::TENSORS_FILE, files.tensors),
        (TRAIN_LOG, log.into_bytes()),
    ];
    let parents = task.data.iter().copied().chain(task.init_adapter).collect();
    let manifest = bench
        .store(attempt, ManifestKind::Adapter, named, parents)
        .await?;
    let loss = |step: Option<&engine::StepLog>| step.map_or(f64::NAN, |step| step.loss);
    let output = TrainOutput {
        n_samples: trained.samples as u32,
        // All steps together see `epochs` passes, the last of them perhaps in part.
        n_tokens: (trained.tokens as f64 / f64::from(task.settings.epochs)).round() as u64,
        n_steps: trained.log.len() as u32,
        loss_first: loss(trained.log.first()),
        loss_last: loss(trained.log.last()),
        seconds,
    };
    let result = bench
        .result(attempt, &manifest, TaskOutput::Train(output))
        .await?;
    if let Some(last) = attempt.checkpoint() {
        bench.artifacts.let_go(last).await;
    }
    Ok(result)
}

/// The checkpoint that an assignment names. One that is gone or damaged costs the steps, not the run.
async fn resume_from(
    bench: &Bench,
    assignment: &Assignment,
    attempt: &AttemptHandle,
) -> Result<Option<SavedState>, Error> {
    let Some(digest) = assignment.checkpoint else {
        return Ok(None);
    };
    let lost = |reason: String| {
        tracing::warn!(task_id = %attempt.id.task, checkpoint = %digest, reason, "cannot resume from the checkpoint, training anew");
        Ok(None)
    };
    match bench.artifacts.get(digest, attempt.stopped()).await {
        Ok(bytes) => match SavedState::from_bytes(bytes) {
            Ok(saved) => {
                let step = saved.checkpoint.step();
                tracing::info!(run_id = %attempt.id.run, task_id = %attempt.id.task, step, "training goes on from a checkpoint");
                attempt.set_checkpoint(digest);
                Ok(Some(saved))
            }
            Err(error) => lost(error.message()),
        },
        Err(error @ Error::Artifact(_)) if !error.is_retryable() => lost(error.message()),
        Err(error) => Err(error),
    }
}

/// Stores a checkpoint and tells of it. A failure is told to the log only: training goes on, and the next
/// checkpoint may fare better.
async fn keep_checkpoint(bench: &Bench, attempt: &AttemptHandle, bytes: Vec<u8>) {
    // An attempt that is stopped may have no coordinator to publish to; the spool's courier publishes later.
    let stored = match attempt.check() {
        Ok(()) => bench.artifacts.put(bytes, attempt.stopped()).await,
        Err(_) => bench.artifacts.keep(bytes).await,
    };
    match stored {
        Ok(digest) => {
            let before = attempt.checkpoint().filter(|before| *before != digest);
            attempt.set_checkpoint(digest);
            if let Some(before) = before {
                bench.artifacts.let_go(before).await;
            }
        }
        Err(error) => {
            tracing::warn!(task_id = %attempt.id.task, reason = %error.message(), "cannot store a checkpoint");
        }
    }
}

impl Work {
    fn run(mut self, loaded: &mut Loaded) -> Result<Done, Error> {
        self.attempt.check()?;
        let init = self.init.take();
        let room = loaded.room()?;
        let model = loaded.model(&self.path, self.quantization, self.compute)?;
        if let Some(room) = room {
            self.config = self.fitted(model, room)?;
        }
        let now = Instant::now();
        let mut watch = Watch {
            work: &self,
            begun: now,
            kept_at: now,
            n_done: 0,
            n_steps: 0,
        };
        let init = init
            .map(|files| peft::from_files(files, model.config()))
            .transpose()?;
        let resume = self.resume.as_ref().map(|saved| &saved.checkpoint);
        let mut train = |resume: Option<&Checkpoint>| {
            let mut observe = |event: TrainEvent<'_>| watch.see(event);
            engine::train(
                model,
                &self.rows,
                &self.config,
                init.as_ref(),
                resume,
                &mut observe,
            )
        };
        let mut outcome = train(resume);
        if let (Err(llamaduo_engine::Error::CheckpointOfOtherRun { what }), true) =
            (&outcome, resume.is_some())
        {
            // For example after an attempt that ran out of memory: the batch is cut otherwise now.
            tracing::warn!(task_id = %self.attempt.id.task, what, "the checkpoint is of another run, training anew");
            outcome = train(None);
        }
        let seconds = watch.seconds();
        match outcome? {
            TrainOutcome::Finished(trained) => {
                let files = peft::to_files(&trained.adapter, &self.base_model)?;
                Ok(Done {
                    trained,
                    files,
                    seconds,
                })
            }
            TrainOutcome::Stopped(checkpoint) => {
                let stop = self.attempt.stop_reason().cloned().unwrap_or(Stop::Draining);
                if matches!(stop, Stop::Draining | Stop::LeaseLost) && checkpoint.step() > 0 {
                    let bytes = SavedState { seconds, checkpoint }.to_bytes()?;
                    // The other side reads until this sender is dropped, so the last one is always taken.
                    let _taken = self.checkpoints.blocking_send(bytes);
                }
                Err(Error::Stopped(stop))
            }
        }
    }

    /// The settings with which `room` bytes of a device hold a step. Says what it had to change; fails where nothing that
    /// it may change would do.
    fn fitted(&self, model: &LocalModel, room: u64) -> Result<TrainConfig, Error> {
        let base = Base {
            config: model.config(),
            quant: base_quant(self.quantization),
        };
        let sizes = engine::step_sizes(model, &self.rows, &self.config)?;
        let fitted = memory::fit_training(base, &self.config, sizes, room)?;
        if fitted != self.config {
            let (recompute, tokens) = (fitted.recompute, sizes.tokens(fitted.micro_batch_tokens));
            let tokens_before = sizes.tokens(self.config.micro_batch_tokens);
            tracing::warn!(target: DEVICE_LOG, task_id = %self.attempt.id.task, recompute, tokens, tokens_before, "a step would not fit into the device's memory: activations are made again, and as many tokens are run at once as fit");
        }
        Ok(fitted)
    }

    fn offer(&self, checkpoint: &Checkpoint, seconds: f64) {
        if self.checkpoints.capacity() == 0 {
            return;
        }
        match (SavedState {
            seconds,
            checkpoint: checkpoint.clone(),
        })
        .to_bytes()
        {
            // Full only when the one before is still being stored.
            Ok(bytes) => drop(self.checkpoints.try_send(bytes)),
            Err(error) => tracing::warn!(reason = %error.message(), "cannot write a checkpoint"),
        }
    }
}

/// Follows a run: tells how far it is, hands out checkpoints, and breaks off when the attempt has to stop.
struct Watch<'a> {
    work: &'a Work,
    begun: Instant,
    /// When the last checkpoint was kept, or training began.
    kept_at: Instant,
    n_done: u32,
    n_steps: u32,
}

impl Watch<'_> {
    fn see(&mut self, event: TrainEvent<'_>) -> ControlFlow<()> {
        let attempt = &self.work.attempt;
        let steps = |n_done: u32, n_steps: u32| progress(n_done.into(), n_steps.into(), "steps");
        match event {
            TrainEvent::Started {
                n_steps,
                n_done,
                n_samples,
                n_cut,
                n_dropped,
                ..
            } => {
                if n_cut + n_dropped > 0 {
                    let sequence_tokens_max = self.work.config.max_seq_len;
                    // Under a name of its own: no event of the run tells it, so it is shown where the worker's log is not.
                    tracing::warn!(target: "llamaduo::training_data", task_id = %attempt.id.task, n_samples, n_cut, n_dropped, sequence_tokens_max, "rows are cut to the longest sequence and lose their end, or have nothing to learn left and are dropped");
                }
                // Loading the model is not training.
                (self.begun, self.kept_at) = (Instant::now(), Instant::now());
                (self.n_steps, self.n_done) = (n_steps, n_done);
                attempt.progress(steps(n_done, n_steps));
            }
            TrainEvent::Step { log, n_steps } => {
                self.n_done = log.step;
                let detail = format!("loss {:.3}", log.loss);
                attempt.progress(Progress {
                    detail,
                    ..steps(log.step, n_steps)
                });
            }
            TrainEvent::Checkpoint(checkpoint) => {
                if self.is_due() {
                    self.kept_at = Instant::now();
                    self.work.offer(checkpoint, self.seconds());
                }
            }
        }
        if attempt.stopped().is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Whether the checkpoint after this step is to be kept. With a period of its own the engine gives out just those.
    fn is_due(&self) -> bool {
        self.work.checkpoint_steps.is_some()
            || ends_epoch(self.n_done, self.n_steps, self.work.config.epochs)
            || self.kept_at.elapsed() >= CHECKPOINT_PERIOD
    }

    /// Seconds of training, with those before the checkpoint that was resumed from.
    fn seconds(&self) -> f64 {
        let before = self.work.resume.as_ref().map_or(0.0, |saved| saved.seconds);
        before + self.begun.elapsed().as_secs_f64()
    }
}

/// Whether `n_done` of `n_steps` steps is the first to reach the end of one of `epochs` passes.
fn ends_epoch(n_done: u32, n_steps: u32, epochs: f64) -> bool {
    let passes = |n: u32| (f64::from(n) * epochs / f64::from(n_steps.max(1))).floor();
    n_done > 0 && passes(n_done) > passes(n_done - 1)
}

/// A checkpoint as an artifact: the seconds of training it took (f64, little-endian), then the engine's bytes.
struct SavedState {
    seconds: f64,
    checkpoint: Checkpoint,
}

impl SavedState {
    fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = self.seconds.to_le_bytes().to_vec();
        bytes.extend(self.checkpoint.to_bytes()?);
        Ok(bytes)
    }

    fn from_bytes(mut bytes: Vec<u8>) -> Result<Self, Error> {
        let seconds = *bytes.first_chunk::<8>().ok_or_else(|| Error::Task {
            what: "a checkpoint",
            expected: "at least 8 bytes".to_owned(),
            found: format!("{} bytes", bytes.len()),
        })?;
        bytes.drain(..8);
        Ok(Self {
            seconds: f64::from_le_bytes(seconds),
            checkpoint: Checkpoint::from_bytes(bytes)?,
        })
    }
}

/// The messages of a sample as the engine takes them.
pub(super) fn messages(messages: &[llamaduo_data::Message]) -> Vec<Message> {
    let convert = |message: &llamaduo_data::Message| Message {
        role: match message.role {
            llamaduo_data::Role::System => Role::System,
            llamaduo_data::Role::User => Role::User,
            llamaduo_data::Role::Assistant => Role::Assistant,
        },
        content: message.content.clone(),
    };
    messages.iter().map(convert).collect()
}

/// A run's settings as the engine takes them. After attempts that ran out of memory the first remedy is to make
/// activations again, which changes no byte of the result, so that a checkpoint can be taken up; then micro-batches are
/// halved.
fn config(settings: &TrainSettings, seed: u64, batch_halvings: u32) -> TrainConfig {
    let defaults = TrainConfig::default();
    let micro_batch_halvings = match settings.recompute {
        true => batch_halvings,
        false => batch_halvings.saturating_sub(1),
    };
    TrainConfig {
        lora: LoraConfig {
            rank: settings.lora_rank as usize,
            alpha: settings.lora_alpha,
            dropout: settings.lora_dropout,
            targets: match settings.lora_targets {
                run::LoraTargets::AllLinear => LoraTargets::AllLinear,
                run::LoraTargets::QueryValue => LoraTargets::Qv,
            },
        },
        epochs: shortest(settings.epochs),
        learning_rate: shortest(settings.learning_rate),
        schedule: Schedule::Cosine,
        warmup_ratio: shortest(settings.warmup_ratio),
        weight_decay: settings.weight_decay,
        max_grad_norm: settings.gradient_norm_max,
        batch_rows: settings.batch_rows as usize,
        accumulation: 1,
        max_seq_len: settings.sequence_tokens_max as usize,
        loss_on: match settings.loss_on {
            run::LossOn::WholeSequence => engine::LossOn::WholeSequence,
            run::LossOn::ResponseOnly => engine::LossOn::ResponseOnly,
        },
        packing: settings.packing,
        seed,
        // Every step when epochs decide: the engine does not say where they end, the observer finds out.
        checkpoint_every_steps: settings.checkpoint_steps.unwrap_or(1),
        recompute: settings.recompute || batch_halvings > 0,
        micro_batch_tokens: halved(defaults.micro_batch_tokens, micro_batch_halvings),
        ..defaults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_epoch_ends_once() {
        let ends = |n_steps, epochs| {
            (1..=n_steps)
                .filter(|step| ends_epoch(*step, n_steps, epochs))
                .collect::<Vec<_>>()
        };
        assert_eq!(ends(6, 3.0), [2, 4, 6]);
        assert_eq!(ends(5, 2.5), [2, 4]);
        assert_eq!(ends(2, 4.0), [1, 2]);
        assert!(!ends_epoch(0, 0, 1.0));
    }

    #[test]
    fn a_short_checkpoint_is_refused() {
        assert!(SavedState::from_bytes(b"short".to_vec()).is_err());
        assert!(SavedState::from_bytes(vec![0; 64]).is_err());
    }
}
