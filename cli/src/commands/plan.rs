//! `plan`: how much of a card's memory training and answering take, and what to change where that is too much.
//!
//! Invariant: nothing of the weights is read and no card is needed; the sums are those that a worker makes before it starts.

use llamaduo_engine::memory::{
    Base, GenerationBatch, MemoryPlan, Part, StepSizes, TrainingStep, fit_generation, fit_training,
};
use llamaduo_engine::{
    BatchOptions, Error as EngineError, LoraConfig, LoraTargets, ModelConfig, TrainConfig, describe,
};
use serde::{Serialize, Serializer};

use super::local_model::find_here;
use crate::args::Plan;
use crate::config::plan::local_model;
use crate::config::sections::{self, Config, Quant};
use crate::config::{self, settings};
use crate::error::Result;
use crate::exit::Exit;
use crate::model::{base_quant, quant_name};
use crate::output::Output;

/// What is asked.
struct Asked {
    model: String,
    quant: Quant,
    train: TrainConfig,
    sizes: StepSizes,
    options: BatchOptions,
    /// That answer in one batch.
    n_adapters: usize,
    context: usize,
}

#[derive(Serialize)]
struct Planned {
    model: String,
    quant: Quant,
    /// Of the card; null where none is named.
    memory_bytes: Option<u64>,
    training: Work<TrainingSettings>,
    generation: Work<GenerationSettings>,
}

/// What one kind of work takes.
#[derive(Serialize)]
struct Work<S> {
    settings: S,
    #[serde(serialize_with = "by_name")]
    parts: MemoryPlan,
    bytes: u64,
    /// Whether the card holds it as it is; null where none is named.
    fits: Option<bool>,
    /// What a worker would change so that it fits.
    changed: Option<S>,
    /// What it takes then.
    changed_bytes: Option<u64>,
    /// Why nothing that a worker may change would do, and what would.
    problem: Option<String>,
}

#[derive(Clone, Copy, Serialize)]
struct TrainingSettings {
    rank: usize,
    /// Tokens that are run at once.
    tokens: usize,
    recompute: bool,
}

#[derive(Clone, Copy, Serialize)]
struct GenerationSettings {
    /// Responses that grow together.
    batch: usize,
    /// Adapters that answer them.
    adapters: usize,
    /// Tokens of a response together with its prompt.
    context: usize,
}

fn by_name<S: Serializer>(plan: &MemoryPlan, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.collect_map(plan.parts().iter().map(|(part, bytes)| (part, bytes)))
}

/// `plan`.
pub(super) fn plan(arguments: &Plan, output: &Output) -> Result<Exit> {
    let memory_bytes = match arguments.memory {
        Some(size) => Some(size.0),
        None => arguments.device.memory_bytes()?,
    };
    let named = config_of(arguments)?;
    let path = find_here(&named.local.base)?;
    let model = describe(&path)?;
    for note in cut_to_context(arguments, model.context_len) {
        output.line(&note);
    }
    let planned = compute(&model, &asked(arguments, named, &model)?, memory_bytes);
    output.result(&planned, || planned.text())?;
    let fails = planned.training.problem.is_some() || planned.generation.problem.is_some();
    Ok(if fails { Exit::Failed } else { Exit::Ok })
}

/// The config that is named, or the defaults with the model that is.
fn config_of(arguments: &Plan) -> Result<Config> {
    let mut named = match &arguments.config {
        Some(path) => {
            let mut named = config::load(path, &arguments.set)?;
            named.local.base = local_model(&named, config::directory_of(path))?.reference;
            named
        }
        None => Config::default(),
    };
    if let Some(model) = &arguments.model {
        named.local.base.clone_from(model);
    }
    Ok(named)
}

/// What is asked and is more than the model can take.
fn cut_to_context(arguments: &Plan, context_len: usize) -> Vec<String> {
    let options = [("--seq", arguments.seq), ("--context", arguments.context)];
    let is_cut = |given: u32| given as usize > context_len;
    let cut = options.into_iter().filter_map(|(option, given)| {
        let given = given.filter(|&given| is_cut(given))?;
        Some(format!(
            "note: {option} {given} is more than the {context_len} tokens of the model's context; the sums are for {context_len}"
        ))
    });
    cut.collect()
}

fn asked(arguments: &Plan, named: Config, model: &ModelConfig) -> Result<Asked> {
    let or = |given: Option<u32>, named: u32| given.unwrap_or(named) as usize;
    let train = settings::train_settings(&named.train)?;
    let infer = settings::infer_settings(&named.infer)?;
    let longest = or(arguments.seq, train.sequence_tokens_max).min(model.context_len);
    let defaults = TrainConfig::default();
    let max_context = longest + infer.tokens_max as usize;
    Ok(Asked {
        model: named.local.base,
        quant: arguments.quant.unwrap_or(named.local.quant),
        sizes: StepSizes {
            longest,
            batch: longest.saturating_mul(or(arguments.rows, train.batch_rows)),
        },
        train: TrainConfig {
            lora: LoraConfig {
                rank: or(arguments.rank, train.lora_rank),
                targets: match named.train.lora_targets {
                    sections::LoraTargets::AllLinear => LoraTargets::AllLinear,
                    sections::LoraTargets::QueryValue => LoraTargets::Qv,
                },
                ..defaults.lora
            },
            recompute: arguments.recompute || train.recompute,
            micro_batch_tokens: arguments
                .tokens
                .map_or(defaults.micro_batch_tokens, |tokens| tokens as usize),
            ..defaults
        },
        options: BatchOptions {
            max_batch: or(arguments.batch, infer.batch_max),
            cache_bytes_max: usize::MAX,
        },
        n_adapters: arguments.adapters.unwrap_or(1) as usize,
        context: arguments
            .context
            .map_or(max_context, |tokens| tokens as usize)
            .min(model.context_len),
    })
}

fn compute(model: &ModelConfig, asked: &Asked, memory_bytes: Option<u64>) -> Planned {
    let base = Base {
        config: model,
        quant: base_quant(asked.quant),
    };
    Planned {
        model: asked.model.clone(),
        quant: asked.quant,
        memory_bytes,
        training: training(base, asked, memory_bytes),
        generation: generation(base, asked, memory_bytes),
    }
}

fn training(base: Base<'_>, asked: &Asked, room: Option<u64>) -> Work<TrainingSettings> {
    let settings = |config: &TrainConfig| TrainingSettings {
        rank: config.lora.rank,
        tokens: asked.sizes.tokens(config.micro_batch_tokens),
        recompute: config.recompute,
    };
    let parts = |settings: TrainingSettings| {
        base.training(TrainingStep {
            lora: &asked.train.lora,
            tokens: settings.tokens,
            recompute: settings.recompute,
        })
    };
    let fitted =
        room.map(|room| fit_training(base, &asked.train, asked.sizes, room).map(|config| settings(&config)));
    Work::new(settings(&asked.train), room, fitted, parts)
}

fn generation(base: Base<'_>, asked: &Asked, room: Option<u64>) -> Work<GenerationSettings> {
    let settings = |options: BatchOptions| GenerationSettings {
        batch: options.max_batch,
        adapters: asked.n_adapters,
        context: asked.context,
    };
    let adapters = vec![Some(&asked.train.lora); asked.n_adapters];
    let batch = GenerationBatch {
        adapters: &adapters,
        options: asked.options,
        context: asked.context,
    };
    let parts = |settings: GenerationSettings| {
        let options = BatchOptions {
            max_batch: settings.batch,
            ..asked.options
        };
        base.generation(GenerationBatch { options, ..batch })
    };
    let fitted = room.map(|room| fit_generation(base, batch, room).map(settings));
    Work::new(settings(asked.options), room, fitted, parts)
}

impl<S: Copy> Work<S> {
    /// Of what is asked, and of what is `fitted` into the room that there is, if any is named.
    fn new(
        settings: S,
        room: Option<u64>,
        fitted: Option<std::result::Result<S, EngineError>>,
        parts_of: impl Fn(S) -> MemoryPlan,
    ) -> Self {
        let parts = parts_of(settings);
        let bytes = parts.bytes();
        let fits = room.map(|room| bytes <= room);
        let (changed, problem) = match fitted {
            Some(Ok(changed)) => (Some(changed).filter(|_| fits == Some(false)), None),
            Some(Err(error)) => (None, Some(error.to_string())),
            None => (None, None),
        };
        Self {
            settings,
            parts,
            bytes,
            fits,
            changed_bytes: changed.map(|changed| parts_of(changed).bytes()),
            changed,
            problem,
        }
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

impl Planned {
    fn text(&self) -> String {
        let (training, generation) = (&self.training, &self.generation);
        let mut lines = vec![
            format!("{}, quant {}", self.model, quant_name(self.quant)),
            "memory as asked:".to_owned(),
            format!("  training: {}", training.settings.words()),
            format!("  generation: {}", generation.settings.words()),
            format!("{:34}{:>14}{:>14}", "", "training", "generation"),
        ];
        let parts = Part::ALL
            .into_iter()
            .map(|part| {
                (
                    part.name(),
                    training.parts.part(part),
                    generation.parts.part(part),
                )
            })
            .filter(|(_, training, generation)| training + generation > 0);
        let together = ("together", training.bytes, generation.bytes);
        lines.extend(parts.chain([together]).map(|(name, training, generation)| {
            format!("{name:34}{:>14}{:>14}", gib(training), gib(generation))
        }));
        match self.memory_bytes {
            None => lines.push("give --memory SIZE or --device cuda:N to see whether it fits".to_owned()),
            Some(memory) => lines.extend([
                format!("training {}", training.verdict(memory)),
                format!("generation {}", generation.verdict(memory)),
            ]),
        }
        lines.join("\n")
    }
}

impl<S: Words> Work<S> {
    /// How what the table says compares with the memory of a card.
    fn verdict(&self, memory: u64) -> String {
        let (takes, memory) = (gib(self.bytes), gib(memory));
        match (&self.problem, &self.changed, self.changed_bytes) {
            (Some(problem), ..) => format!("does not fit: {problem}"),
            (None, Some(changed), Some(bytes)) => format!(
                "does not fit into {memory} as asked ({takes}); a worker makes it fit with {}, which takes {}",
                changed.words(),
                gib(bytes)
            ),
            (None, ..) => format!("fits into {memory} as asked"),
        }
    }
}

/// Settings for people.
trait Words {
    fn words(&self) -> String;
}

impl Words for TrainingSettings {
    fn words(&self) -> String {
        let activations = match self.recompute {
            true => "activations made again in the backward",
            false => "activations kept for the backward",
        };
        format!(
            "rank {}, {} tokens at once, {activations}",
            self.rank, self.tokens
        )
    }
}

impl Words for GenerationSettings {
    fn words(&self) -> String {
        let by = match self.adapters {
            1 => String::new(),
            n => format!(" by {n} adapters"),
        };
        format!("{} responses at once of {} tokens{by}", self.batch, self.context)
    }
}
