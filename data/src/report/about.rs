//! What a run was about, and what its report calls everyone in it.
//!
//! Invariant: every name of a subject on the page, in plots, tables and on the terminal comes from [`About::name_of`].

use serde::{Deserialize, Serialize};

/// What a run was about. Fields that reports of earlier versions lack have a default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The run's id.
    pub run: String,
    /// The task, in the user's words.
    pub task: String,
    /// The local model.
    pub local_model: String,
    /// How the frozen base was held.
    #[serde(default)]
    pub quantization: Quantization,
    /// What the operands of its matrix products were rounded to.
    #[serde(default)]
    pub compute: Compute,
    /// The service LLM that answers and synthesizes.
    pub service_model: String,
    /// The service LLM that judges.
    pub judge_model: String,
    /// Whether the service LLM was the stand-in that ships with the program, so that the numbers say nothing of a
    /// real one.
    pub stand_in: bool,
    /// Whether the judge was.
    #[serde(default)]
    pub judge_stand_in: bool,
    /// The cycle whose adapter is delivered; absent before anything was trained.
    #[serde(default)]
    pub adapter_cycle: Option<u32>,
    /// How it was trained.
    #[serde(default)]
    pub training: Option<Training>,
    /// Seed of the run.
    pub seed: u64,
    /// Train samples of the coverage dataset.
    pub train_samples: u64,
    /// Test samples, the n of all intervals.
    pub test_samples: u64,
    /// K, answers per test prompt.
    pub responses_per_prompt: u64,
    /// M, gradings per answer.
    pub judgings_per_response: u64,
    /// ζ, the mean score from which an answer counts as covered.
    pub coverage_score: f64,
    /// When the run was submitted, milliseconds since 1970; 0 when unknown.
    #[serde(default)]
    pub submitted_at_ms: u64,
    /// Version of the program that made the report.
    #[serde(default)]
    pub program_version: String,
    /// Seconds from submission to the end, or to this report, by the clock on the wall: time in which nothing ran,
    /// such as between a kill and the next start, counts too.
    pub seconds: f64,
}

/// How a frozen base is held, as the config spells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    /// NF4 with 8-bit scales.
    #[default]
    Nf4,
    /// NF4 with float32 scales.
    Nf4Single,
    /// The file's own values.
    None,
}

impl Quantization {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "NF4",
            Self::Nf4Single => "NF4, float32 scales",
            Self::None => "none: as its file holds it",
        }
    }
}

/// What the operands of matrix products are rounded to, as the config spells it; their sums are float32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// Not rounded.
    #[default]
    F32,
    /// To bfloat16.
    Bf16,
    /// In reading and answering to integers; in training not rounded.
    Int16,
}

impl Compute {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "operands rounded to bfloat16, sums in float32",
            Self::Int16 => "answers: operands rounded to integers of 13 and 14 bits; training: float32",
        }
    }
}

/// The settings of training that decide most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// LoRA rank.
    pub lora_rank: u32,
    /// LoRA alpha.
    pub lora_alpha: f64,
    /// Dropout on LoRA inputs.
    pub lora_dropout: f64,
    /// Passes over the data.
    pub epochs: f64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Rows in one optimizer step.
    pub batch_rows: u32,
    /// Longest sequence, tokens.
    pub sequence_tokens: u32,
    /// `whole_sequence` or `response_only`.
    pub loss_on: String,
    /// `base` or `last_adapter`.
    pub train_from: String,
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The untuned base as its file holds it.
    BaseUnquantized,
    /// The untuned base as it is trained on.
    Base,
    /// The model tuned in this cycle.
    Cycle(u32),
    /// The service LLM.
    Service,
}

impl About {
    /// What the report calls a subject.
    pub fn name_of(&self, who: Who) -> String {
        match (who, self.quantization) {
            (Who::Base, Quantization::Nf4) => "base (NF4)".to_owned(),
            (Who::Base, Quantization::Nf4Single) => "base (NF4, float32 scales)".to_owned(),
            (Who::Base, Quantization::None) | (Who::BaseUnquantized, _) => {
                "base (as its file holds it)".to_owned()
            }
            (Who::Cycle(cycle), _) => format!("cycle {cycle}"),
            (Who::Service, _) if self.stand_in => "service LLM (stand-in)".to_owned(),
            (Who::Service, _) => "service LLM".to_owned(),
        }
    }

    /// Which roles a stand-in played, in words; absent when none.
    pub fn stand_ins(&self) -> Option<&'static str> {
        match (self.stand_in, self.judge_stand_in) {
            (true, true) => Some("service LLM and the judge"),
            (true, false) => Some("service LLM"),
            (false, true) => Some("judge"),
            (false, false) => None,
        }
    }
}
