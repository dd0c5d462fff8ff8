//! What a run came to: `report.json` and the page that shows it.
//!
//! Invariant: the page and its plots are made from [`Report`] alone, so `report.json` holds everything they show.

mod about;
mod chart;
mod csv;
mod page;
mod plots;

use serde::{Deserialize, Serialize};

pub use about::{About, Compute, Quantization, Training, Who};
pub use page::{TIME_SPAN, thousands};

use crate::Error;
use crate::curate::CurationCounts;
use crate::gate::GateOutcome;
use crate::price::NanoUsd;
use crate::score::{Interval, Judged, Metric, MetricScore};

/// Everything that a run's report says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How the run ended.
    pub status: Status,
    /// Why, in a sentence: the last gate's reason, or the failure and what to do about it.
    pub reason: String,
    /// What the run was about.
    pub about: About,
    /// The untuned base in the form that is trained on: the floor.
    pub base: Option<SubjectReport>,
    /// The untuned base as its file holds it, where that is another form and was measured.
    pub base_unquantized: Option<SubjectReport>,
    /// The service LLM's own fresh answers: the ceiling.
    pub service: Option<SubjectReport>,
    /// The turns of the run, from cycle 1.
    pub cycles: Vec<CycleReport>,
    /// What the service LLM cost.
    pub cost: CostReport,
    /// The same test prompts answered by everyone, side by side.
    pub examples: Vec<Example>,
}

/// How a run ended, or that it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not ended yet.
    Running,
    /// A cycle passed the gate.
    Passed,
    /// All cycles were used up.
    GateNotReached,
    /// The budget ended first.
    BudgetSpent,
    /// The service LLM could not be used.
    ServiceFailed,
    /// A task of the run could not be done: out of memory, a full disk, a model that diverged.
    Failed,
    /// Someone cancelled it.
    Cancelled,
}

/// The graded answers of one subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubjectReport {
    /// How alike its answers and the references are.
    pub similarity: MetricScore,
    /// How right they are.
    pub precision: MetricScore,
    /// Gradings, read or not.
    pub verdicts: u64,
    /// Gradings that could not be read.
    pub unparsed: u64,
    /// Answers none of whose gradings could be read.
    pub ungraded_responses: u64,
    /// How many answers' mean scores lie in each tenth of 1..100.
    pub distribution: Distribution,
}

/// Counts of answers per tenth of the scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// By similarity.
    pub similarity: [u64; 10],
    /// By precision.
    pub precision: [u64; 10],
}

impl SubjectReport {
    /// The report of `judged`.
    pub fn new(judged: &Judged) -> Self {
        let scores = judged.scores();
        Self {
            similarity: scores.similarity,
            precision: scores.precision,
            verdicts: scores.verdicts,
            unparsed: scores.unparsed,
            ungraded_responses: scores.ungraded_responses,
            distribution: Distribution {
                similarity: judged.histogram(Metric::Similarity),
                precision: judged.histogram(Metric::Precision),
            },
        }
    }

    fn metric(&self, metric: Metric) -> (&MetricScore, &[u64; 10]) {
        match metric {
            Metric::Similarity => (&self.similarity, &self.distribution.similarity),
            Metric::Precision => (&self.precision, &self.distribution.precision),
        }
    }
}

/// One turn of the run. Stages not reached yet are absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CycleReport {
    /// Its number, from 1.
    pub cycle: u32,
    /// How it was trained.
    pub train: Option<TrainReport>,
    /// How the trained model was graded.
    #[serde(flatten)]
    pub subject: Option<SubjectReport>,
    /// What the gate that decides said.
    pub gate: Option<GateOutcome>,
    /// What the other rule would have said.
    pub other_gates: Vec<GateOutcome>,
    /// What was written for the next cycle; absent when the gate passed.
    pub synthesis: Option<SynthesisReport>,
}

/// One training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainReport {
    /// Samples trained on.
    pub samples: u64,
    /// Tokens seen, every epoch counted.
    pub tokens: u64,
    /// Loss of the first step, nats per token.
    pub loss_first: f64,
    /// Loss of the last step.
    pub loss_last: f64,
    /// Time spent.
    pub seconds: f64,
    /// Loss by step.
    pub curve: Vec<LossPoint>,
}

/// The loss of one optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Counted from 1.
    pub step: u64,
    /// Nats per token.
    pub loss: f64,
}

/// What synthesis brought, so that `raw = kept + duplicates + filtered + contaminated`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SynthesisReport {
    /// Items the service LLM wrote.
    pub raw: u64,
    /// Kept for training.
    pub kept: u64,
    /// Dropped because another says the same: the sum of the next three.
    pub duplicates: u64,
    /// Word for word.
    pub exact_duplicates: u64,
    /// Nearly.
    pub near_duplicates: u64,
    /// With little new.
    pub not_novel: u64,
    /// Dropped for what they are: the sum of the next two.
    pub filtered: u64,
    /// No pairs at all.
    pub malformed: u64,
    /// Broke a quality rule.
    pub rule_breaches: u64,
    /// Dropped because they are too close to a test prompt.
    pub contaminated: u64,
}

impl From<CurationCounts> for SynthesisReport {
    fn from(counts: CurationCounts) -> Self {
        Self {
            raw: counts.raw,
            kept: counts.kept,
            duplicates: counts.duplicates + counts.near_duplicates + counts.not_novel,
            exact_duplicates: counts.duplicates,
            near_duplicates: counts.near_duplicates,
            not_novel: counts.not_novel,
            filtered: counts.malformed + counts.filtered,
            malformed: counts.malformed,
            rule_breaches: counts.filtered,
            contaminated: counts.contaminated,
        }
    }
}

/// What the service LLM cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CostReport {
    /// Calls paid for.
    pub calls: u64,
    /// Tokens sent.
    pub input_tokens: u64,
    /// Tokens received.
    pub output_tokens: u64,
    /// Dollars; absent when the price of any call is unknown.
    pub usd: Option<f64>,
    /// Calls that were sent and whose end nobody saw, as when a process was killed meanwhile. The service may have
    /// billed them; they are in none of the other numbers.
    #[serde(default)]
    pub unknown_calls: u64,
    /// The same by what it was spent on, in the order given.
    pub parts: Vec<CostPart>,
}

/// What one kind of call cost in one cycle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CostPart {
    /// The cycle; 0 is the floor and the ceiling.
    pub cycle: u32,
    /// `infer` (the ceiling's answers), `judge` or `synthesize`.
    pub stage: String,
    /// Calls paid for.
    pub calls: u64,
    /// Tokens sent.
    pub input_tokens: u64,
    /// Tokens received.
    pub output_tokens: u64,
    /// Billionths of a dollar; absent when unknown.
    #[serde(rename = "nano_usd", alias = "cost")]
    pub cost: Option<NanoUsd>,
}

/// One test prompt and what everyone made of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Its position in the test split, from 0.
    pub prompt_index: u32,
    /// Whether it is shown because the delivered adapter's answer is among its worst, and not for its place.
    #[serde(default)]
    pub worst: bool,
    /// What is asked.
    pub prompt: String,
    /// The answer kept in the coverage dataset.
    pub reference: String,
    /// What each subject answered.
    pub answers: Vec<ExampleAnswer>,
}

/// One subject's answer to an example.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExampleAnswer {
    /// Who answered: "service LLM", "base", "cycle 1", …
    pub subject: String,
    /// The answer.
    pub text: String,
    /// Its mean similarity, absent when ungraded.
    pub similarity: Option<f64>,
    /// Its mean precision.
    pub precision: Option<f64>,
    /// One judge's reasons, similarity first.
    pub reasons: Vec<String>,
}

/// A report as files.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// `report.json`.
    pub json: String,
    /// `report.html`, which needs no other file.
    pub html: String,
    /// Each plot as `plots/NAME.svg` and the numbers behind it as `plots/NAME.csv`.
    pub files: Vec<(String, String)>,
}

impl Report {
    /// `report.json`, indented.
    pub fn to_json(&self) -> Result<String, Error> {
        let mut json = serde_json::to_string_pretty(self).map_err(|source| Error::Encode {
            what: "the report",
            source,
        })?;
        json.push('\n');
        Ok(json)
    }

    /// All files of the report.
    pub fn render(&self) -> Result<Rendered, Error> {
        let plots = plots::all(self);
        let html = page::render(self, &plots)?;
        let files = plots
            .into_iter()
            .flat_map(|plot| {
                let path = |extension: &str| format!("plots/{}.{extension}", plot.name);
                [(path("svg"), plot.svg), (path("csv"), plot.csv)]
            })
            .collect();
        Ok(Rendered {
            json: self.to_json()?,
            html,
            files,
        })
    }

    /// How the cycle was chosen whose adapter is delivered, in a phrase; absent before anything was trained.
    pub fn adapter_choice(&self) -> Option<&'static str> {
        let delivered = self.about.adapter_cycle?;
        let cycle = self.cycles.iter().find(|cycle| cycle.cycle == delivered)?;
        let n_trained = self.cycles.iter().filter(|cycle| cycle.train.is_some()).count();
        Some(match &cycle.gate {
            Some(gate) if gate.passed => "the one that passed the gate",
            _ if n_trained < 2 => "the only one",
            Some(_) => {
                "the one nearest to passing by its weakest comparison with the gate, of equals the newest"
            }
            None => "the newest, since none was held against the gate",
        })
    }

    /// The subjects in the order of the plots: base as its file holds it, base, each cycle, the service LLM.
    fn subjects(&self) -> Vec<Named<'_>> {
        let base = [
            (Who::BaseUnquantized, &self.base_unquantized),
            (Who::Base, &self.base),
        ];
        let cycles = self
            .cycles
            .iter()
            .map(|cycle| (Who::Cycle(cycle.cycle), &cycle.subject));
        let all = base
            .into_iter()
            .chain(cycles)
            .chain([(Who::Service, &self.service)]);
        all.filter_map(|(who, subject)| {
            Some(Named {
                who,
                name: self.about.name_of(who),
                subject: subject.as_ref()?,
            })
        })
        .collect()
    }
}

/// A subject with what it is called.
struct Named<'a> {
    who: Who,
    name: String,
    subject: &'a SubjectReport,
}

fn bounds(interval: Option<Interval>) -> (Option<f64>, Option<f64>) {
    (
        interval.map(|interval| interval.low),
        interval.map(|interval| interval.high),
    )
}

#[cfg(test)]
mod tests;
