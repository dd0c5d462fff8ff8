//! `run.proto`: what is asked for. The settings of the stages are in `settings`, results in `scores`.

use super::{
    InvalidMessage, NAME_CHARS_MAX, Result, TOPIC_CHARS_MAX, at_least_1, digest, enumeration, nested, number,
    optional, optional_text, or_default, required, same_variants, text, unless_zero, up_to,
};
use crate::run::{
    ApiKeySource, Budget, Compute, CoverageDataset, Gate, GateRule, LocalModelSpec, Quantization, RunSpec,
    ServiceLlmSpec, Vendor,
};
use crate::wire;

/// Longest name of a run, characters: one line of a terminal.
pub(super) const RUN_NAME_CHARS_MAX: usize = 80;
/// Most cycles: each takes minutes to hours, and the data grows with each.
pub(super) const CYCLES_MAX: u32 = 1_000;
/// Most options of a command line that are kept, and characters of each: more than there are keys, and room for the longest
/// value, sixteen stop strings of 1,000 characters, with each character escaped.
const OVERRIDES_MAX: usize = 64;
const OVERRIDE_CHARS_MAX: usize = 100_000;
/// Most tasks of one stage of a cycle: what one scan of the state store reads in a second.
const TASKS_PER_STAGE_MAX: u32 = 10_000;
/// Calls of one cycle's synthesis: their numbers are 20 bits of the seed that tells calls apart.
pub(super) const SYNTHESIS_CALLS_MAX: u32 = 1 << 20;
/// Calls in flight when no number is named: polite to any vendor's lowest tier.
const CONCURRENCY: u32 = 4;
/// A call's time limit when none is named, milliseconds: what the vendors' own clients use.
const TIMEOUT_MS: u32 = 600_000;

impl TryFrom<wire::RunSpec> for RunSpec {
    type Error = InvalidMessage;
    fn try_from(wire: wire::RunSpec) -> Result<Self> {
        let service_llm: ServiceLlmSpec = required("service_llm", wire.service_llm)?;
        let judge_llm = match wire.judge_llm {
            Some(judge_llm) => nested("judge_llm", judge_llm)?,
            None => service_llm.clone(),
        };
        let spec = Self {
            name: text("name", wire.name, RUN_NAME_CHARS_MAX)?,
            topic: optional_text("topic", wire.topic, TOPIC_CHARS_MAX)?,
            local_model: required("local_model", wire.local_model)?,
            service_llm,
            judge_llm,
            coverage: required("coverage", wire.coverage)?,
            train: required("train", wire.train)?,
            infer: required("infer", wire.infer)?,
            judge: required("judge", wire.judge)?,
            synthesis: required("synthesis", wire.synthesis)?,
            gate: required("gate", wire.gate)?,
            budget: nested("budget", wire.budget.unwrap_or_default())?,
            cycles_max: up_to("cycles_max", wire.cycles_max, CYCLES_MAX)?,
            seed: wire.seed,
            measure_base_unquantized: wire.measure_base_unquantized,
            overrides: overrides(wire.overrides)?,
        };
        check_task_counts(&spec)?;
        Ok(spec)
    }
}

pub(super) fn overrides(overrides: Vec<String>) -> Result<Vec<String>> {
    if overrides.len() > OVERRIDES_MAX {
        let expected = format!("at most {OVERRIDES_MAX} options; put some into the config file");
        return Err(InvalidMessage::new("overrides", &expected, overrides.len()));
    }
    let each = overrides.into_iter();
    each.map(|option| text("overrides", option, OVERRIDE_CHARS_MAX))
        .collect()
}

/// A slip in a size must neither fill the state store with tasks nor ask for more calls than can be told apart.
fn check_task_counts(spec: &RunSpec) -> Result<()> {
    let n_infer_tasks = spec.coverage.n_test.div_ceil(spec.infer.prompts_per_task.max(1));
    up_to(
        "infer.prompts_per_task (tasks of the stage)",
        n_infer_tasks,
        TASKS_PER_STAGE_MAX,
    )?;
    let n_calls = spec
        .synthesis
        .samples_per_cycle
        .div_ceil(spec.synthesis.pairs_per_call.max(1));
    up_to(
        "synthesis.samples_per_cycle (calls of a cycle)",
        n_calls,
        SYNTHESIS_CALLS_MAX,
    )?;
    let n_synthesize_tasks = n_calls.div_ceil(spec.synthesis.calls_per_task.max(1));
    up_to(
        "synthesis.calls_per_task (tasks of the stage)",
        n_synthesize_tasks,
        TASKS_PER_STAGE_MAX,
    )?;
    Ok(())
}

impl From<RunSpec> for wire::RunSpec {
    fn from(spec: RunSpec) -> Self {
        Self {
            name: spec.name,
            topic: spec.topic,
            local_model: Some(spec.local_model.into()),
            service_llm: Some(spec.service_llm.into()),
            judge_llm: Some(spec.judge_llm.into()),
            coverage: Some(spec.coverage.into()),
            train: Some(spec.train.into()),
            infer: Some(spec.infer.into()),
            judge: Some(spec.judge.into()),
            synthesis: Some(spec.synthesis.into()),
            gate: Some(spec.gate.into()),
            budget: Some(spec.budget.into()),
            cycles_max: spec.cycles_max,
            seed: spec.seed,
            measure_base_unquantized: spec.measure_base_unquantized,
            overrides: spec.overrides,
        }
    }
}

same_variants!(Quantization, unspecified Ok(Quantization::Nf4Double), None, Nf4, Nf4Double);
same_variants!(Compute, unspecified Ok(Compute::F32), F32, Bf16, Int16);
same_variants!(Vendor, unspecified Err(InvalidMessage::unspecified("a vendor")), Openai);

impl TryFrom<wire::LocalModel> for LocalModelSpec {
    type Error = InvalidMessage;
    fn try_from(wire: wire::LocalModel) -> Result<Self> {
        Ok(Self {
            reference: text("reference", wire.reference, NAME_CHARS_MAX)?,
            quantization: enumeration::<wire::Quantization, _>("quantization", wire.quantization)?,
            compute: enumeration::<wire::Compute, _>("compute", wire.compute)?,
        })
    }
}

impl From<LocalModelSpec> for wire::LocalModel {
    fn from(model: LocalModelSpec) -> Self {
        Self {
            reference: model.reference,
            quantization: wire::Quantization::from(model.quantization).into(),
            compute: wire::Compute::from(model.compute).into(),
        }
    }
}

impl TryFrom<wire::ServiceLlm> for ServiceLlmSpec {
    type Error = InvalidMessage;
    fn try_from(wire: wire::ServiceLlm) -> Result<Self> {
        let not_negative = |field: &str, value: f64| number(field, value, "at least 0", |x| x >= 0.0);
        let usd_per_mtok = match (wire.input_usd_per_mtok, wire.output_usd_per_mtok) {
            (Some(input), Some(output)) => Some((
                not_negative("input_usd_per_mtok", input)?,
                not_negative("output_usd_per_mtok", output)?,
            )),
            (None, None) => None,
            (Some(_), None) => return Err(one_price("output_usd_per_mtok")),
            (None, Some(_)) => return Err(one_price("input_usd_per_mtok")),
        };
        let temperature = wire
            .temperature
            .map(|t| number("temperature", t, "at least 0", |x| x >= 0.0));
        Ok(Self {
            vendor: enumeration::<wire::Vendor, _>("vendor", wire.vendor)?,
            model: text("model", wire.model, NAME_CHARS_MAX)?,
            base_url: base_url(wire.base_url)?,
            api_key: api_key(wire.api_key_env, wire.api_key_file)?,
            temperature: temperature.transpose()?,
            tokens_max: at_least_1("tokens_max", wire.tokens_max)?,
            concurrency_max: or_default(wire.concurrency_max, CONCURRENCY),
            requests_per_minute_max: unless_zero(wire.requests_per_minute_max),
            usd_per_mtok,
            json_schema: wire.json_schema.unwrap_or(true),
            timeout_ms: or_default(wire.timeout_ms, TIMEOUT_MS),
        })
    }
}

fn one_price(absent: &str) -> InvalidMessage {
    InvalidMessage::new(absent, "both prices or none", "only the other one")
}

fn base_url(url: String) -> Result<Option<String>> {
    let url = optional_text("base_url", url, NAME_CHARS_MAX)?;
    if url.is_empty() {
        return Ok(None);
    }
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(InvalidMessage::new(
            "base_url",
            "a URL that begins with http:// or https://",
            url,
        ));
    }
    Ok(Some(url))
}

fn api_key(env: String, file: String) -> Result<ApiKeySource> {
    let env = optional_text("api_key_env", env, NAME_CHARS_MAX)?;
    let file = optional_text("api_key_file", file, NAME_CHARS_MAX)?;
    if env.contains(['=', '\0']) {
        return Err(InvalidMessage::new(
            "api_key_env",
            "the name of an environment variable",
            env,
        ));
    }
    Ok(match (env.is_empty(), file.is_empty()) {
        (_, false) => ApiKeySource::File(file),
        (false, true) => ApiKeySource::Env(env),
        (true, true) => ApiKeySource::None,
    })
}

impl From<ServiceLlmSpec> for wire::ServiceLlm {
    fn from(llm: ServiceLlmSpec) -> Self {
        let (api_key_env, api_key_file) = match llm.api_key {
            ApiKeySource::None => (String::new(), String::new()),
            ApiKeySource::Env(env) => (env, String::new()),
            ApiKeySource::File(file) => (String::new(), file),
        };
        let (input_usd_per_mtok, output_usd_per_mtok) = llm.usd_per_mtok.unzip();
        Self {
            vendor: wire::Vendor::from(llm.vendor).into(),
            model: llm.model,
            base_url: llm.base_url.unwrap_or_default(),
            api_key_env,
            api_key_file,
            temperature: llm.temperature,
            tokens_max: llm.tokens_max,
            concurrency_max: llm.concurrency_max,
            requests_per_minute_max: llm.requests_per_minute_max.unwrap_or_default(),
            input_usd_per_mtok,
            output_usd_per_mtok,
            json_schema: Some(llm.json_schema),
            timeout_ms: llm.timeout_ms,
        }
    }
}

impl TryFrom<wire::CoverageDataset> for CoverageDataset {
    type Error = InvalidMessage;
    fn try_from(wire: wire::CoverageDataset) -> Result<Self> {
        Ok(Self {
            train: digest("train_digest", &wire.train_digest)?,
            test: digest("test_digest", &wire.test_digest)?,
            n_train: at_least_1("n_train", wire.n_train)?,
            n_test: at_least_1("n_test", wire.n_test)?,
        })
    }
}

impl From<CoverageDataset> for wire::CoverageDataset {
    fn from(coverage: CoverageDataset) -> Self {
        Self {
            train_digest: coverage.train.to_string(),
            test_digest: coverage.test.to_string(),
            n_train: coverage.n_train,
            n_test: coverage.n_test,
        }
    }
}

impl TryFrom<wire::Gate> for Gate {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Gate) -> Result<Self> {
        Ok(Self {
            rule: match wire.rule.ok_or_else(|| InvalidMessage::absent("rule"))? {
                wire::gate::Rule::Relative(rule) => relative(rule)?,
                wire::gate::Rule::Absolute(rule) => absolute(rule)?,
            },
            coverage_score: score("coverage_score", or_default(wire.coverage_score, 70.0))?,
            compared: optional("compared", wire.compared)?,
        })
    }
}

fn score(field: &str, x: f64) -> Result<f64> {
    number(field, x, "1 to 100", |x| (1.0..=100.0).contains(&x))
}

fn relative(rule: wire::RelativeGate) -> Result<GateRule> {
    let ratio_min = or_default(rule.ratio_min, 0.9);
    let field = "relative.ratio_min";
    let expected = "above 0, at most 1.5";
    Ok(GateRule::Relative {
        ratio_min: number(field, ratio_min, expected, |x| x > 0.0 && x <= 1.5)?,
    })
}

fn absolute(rule: wire::AbsoluteGate) -> Result<GateRule> {
    Ok(GateRule::Absolute {
        similarity_mean_min: score("absolute.similarity_mean_min", rule.similarity_mean_min)?,
        precision_mean_min: score("absolute.precision_mean_min", rule.precision_mean_min)?,
        coverage_min: number("absolute.coverage_min", rule.coverage_min, "0 to 1", |x| {
            (0.0..=1.0).contains(&x)
        })?,
    })
}

impl TryFrom<wire::ComparedGate> for GateRule {
    type Error = InvalidMessage;
    fn try_from(wire: wire::ComparedGate) -> Result<Self> {
        match wire.rule.ok_or_else(|| InvalidMessage::absent("rule"))? {
            wire::compared_gate::Rule::Relative(rule) => relative(rule),
            wire::compared_gate::Rule::Absolute(rule) => absolute(rule),
        }
    }
}

impl From<GateRule> for wire::ComparedGate {
    fn from(rule: GateRule) -> Self {
        let rule = match rule {
            GateRule::Relative { ratio_min } => {
                wire::compared_gate::Rule::Relative(wire::RelativeGate { ratio_min })
            }
            GateRule::Absolute {
                similarity_mean_min,
                precision_mean_min,
                coverage_min,
            } => wire::compared_gate::Rule::Absolute(wire::AbsoluteGate {
                similarity_mean_min,
                precision_mean_min,
                coverage_min,
            }),
        };
        Self { rule: Some(rule) }
    }
}

impl From<Gate> for wire::Gate {
    fn from(gate: Gate) -> Self {
        let rule = match gate.rule {
            GateRule::Relative { ratio_min } => wire::gate::Rule::Relative(wire::RelativeGate { ratio_min }),
            GateRule::Absolute {
                similarity_mean_min,
                precision_mean_min,
                coverage_min,
            } => wire::gate::Rule::Absolute(wire::AbsoluteGate {
                similarity_mean_min,
                precision_mean_min,
                coverage_min,
            }),
        };
        Self {
            rule: Some(rule),
            coverage_score: gate.coverage_score,
            compared: gate.compared.map(Into::into),
        }
    }
}

impl TryFrom<wire::Budget> for Budget {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Budget) -> Result<Self> {
        Ok(Self {
            nano_usd_max: wire.nano_usd_max,
            calls_max: wire.calls_max,
        })
    }
}

impl From<Budget> for wire::Budget {
    fn from(budget: Budget) -> Self {
        Self {
            nano_usd_max: budget.nano_usd_max,
            calls_max: budget.calls_max,
        }
    }
}
