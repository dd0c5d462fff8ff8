//! The words sent to a service LLM, as data: templates with the schema of the reply, versioned by content hash.
//!
//! Invariant: a [`Prompt`] that exists renders. Its templates were compiled and tried when it was read, and name no
//! unknown variable; the texts put into it cannot leave their place, because the code on the lines around them
//! occurs in none of them.

mod boundary;
mod error;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use error::Error;

/// Which prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptName {
    /// Grades a response.
    Judge,
    /// Asks for new pairs.
    Synthesize,
}

impl PromptName {
    /// As it stands in the file; also the name of the reply's schema.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Judge => "judge",
            Self::Synthesize => "synthesize",
        }
    }

    /// What its templates may use.
    fn variables(self) -> &'static [&'static str] {
        match self {
            Self::Judge => &["instruction", "human_response", "model_response", "boundary"],
            Self::Synthesize => &["examples", "system", "topic", "count", "boundary"],
        }
    }
}

/// A template, ready to be rendered.
#[derive(Debug, Clone)]
pub struct Prompt {
    file: PromptFile,
    schema: serde_json::Value,
    hash: String,
}

/// The form of a prompt's file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptFile {
    name: PromptName,
    description: String,
    system: String,
    user: String,
    schema: String,
}

/// What a judge is shown.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct JudgeInput<'a> {
    /// The whole test prompt as one text.
    pub instruction: &'a str,
    /// The response of the coverage dataset.
    pub human_response: &'a str,
    /// The response to be graded.
    pub model_response: &'a str,
}

/// What a synthesizer is shown.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SynthesisInput<'a> {
    /// Train pairs, at least one.
    pub examples: &'a [ExamplePair<'a>],
    /// The standing instruction of the task's samples, if they have one.
    pub system: Option<&'a str>,
    /// The task in the user's words.
    pub topic: &'a str,
    /// How many new pairs to ask for, at least 1.
    pub count: u32,
}

/// A pair shown as an example.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ExamplePair<'a> {
    /// What is asked.
    pub instruction: &'a str,
    /// What is answered.
    pub response: &'a str,
}

/// Words ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// The turns, in order.
    pub messages: Vec<RenderedMessage>,
    /// JSON Schema of the reply, strict: every property is required and no other is allowed.
    pub schema: serde_json::Value,
    /// A name for the schema, for vendors that want one.
    pub schema_name: &'static str,
    /// sha256 of the prompt's file, hex.
    pub prompt_hash: String,
}

/// One turn to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedMessage {
    /// Who speaks.
    pub role: RenderedRole,
    /// What is said.
    pub content: String,
}

/// Who speaks in a rendered prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenderedRole {
    /// Standing instructions.
    System,
    /// The question.
    User,
}

impl RenderedRole {
    /// The word used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
        }
    }
}

/// Steps that rendering may take: a thousand examples need some 20,000, a template that loops for ever needs more.
const FUEL: u64 = 1_000_000;

impl Prompt {
    /// The prompt that ships with the program.
    pub fn builtin(name: PromptName) -> Result<Self, Error> {
        Self::from_toml(match name {
            PromptName::Judge => include_str!("../templates/judge.toml"),
            PromptName::Synthesize => include_str!("../templates/synthesize.toml"),
        })
    }

    /// A prompt from a file of the same form as the built-in ones. It is tried on made-up texts, so that a slip in
    /// a template shows now and not after the first paid call.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        let file: PromptFile = toml::from_str(text).map_err(|source| Error::Parse { source })?;
        let name = file.name.as_str();
        let schema: serde_json::Value =
            serde_json::from_str(&file.schema).map_err(|source| Error::Schema { name, source })?;
        let hash = Sha256::digest(text)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let prompt = Self { file, schema, hash };
        prompt.try_out()?;
        Ok(prompt)
    }

    /// Which prompt it is.
    pub fn name(&self) -> PromptName {
        self.file.name
    }

    /// What it is for, in a sentence.
    pub fn description(&self) -> &str {
        &self.file.description
    }

    /// sha256 of its file, hex: the version that every verdict and sample carries.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The words that ask for one grading.
    pub fn render_judge(&self, input: JudgeInput<'_>) -> Result<Rendered, Error> {
        self.expect(PromptName::Judge)?;
        let texts = [input.instruction, input.human_response, input.model_response];
        self.render(&WithBoundary {
            boundary: boundary::choose(texts),
            input,
        })
    }

    /// The words that ask for new pairs.
    pub fn render_synthesis(&self, input: SynthesisInput<'_>) -> Result<Rendered, Error> {
        self.expect(PromptName::Synthesize)?;
        let pairs = input
            .examples
            .iter()
            .flat_map(|pair| [pair.instruction, pair.response]);
        let boundary = boundary::choose(pairs.chain(input.system).chain([input.topic]));
        self.render(&WithBoundary { boundary, input })
    }

    fn expect(&self, expected: PromptName) -> Result<(), Error> {
        let found = self.file.name;
        if found == expected {
            return Ok(());
        }
        Err(Error::OtherPrompt {
            expected: expected.as_str(),
            found: found.as_str(),
        })
    }

    fn render(&self, input: &impl Serialize) -> Result<Rendered, Error> {
        let text = |part, template: &str| {
            render_template(template, input).map_err(|source| self.broken(part, template, source))
        };
        let system = text("system", &self.file.system)?;
        let user = text("user", &self.file.user)?;
        let turns = [(RenderedRole::System, system), (RenderedRole::User, user)];
        let messages = turns
            .into_iter()
            .map(|(role, content)| RenderedMessage {
                role,
                content: content.trim().to_owned(),
            })
            .filter(|message| !message.content.is_empty());
        Ok(Rendered {
            messages: messages.collect(),
            schema: self.schema.clone(),
            schema_name: self.file.name.as_str(),
            prompt_hash: self.hash.clone(),
        })
    }

    /// What is wrong with a template that cannot be rendered.
    fn broken(&self, part: &'static str, template: &str, source: minijinja::Error) -> Error {
        let name = self.file.name.as_str();
        let known = self.file.name.variables();
        if source.kind() == ErrorKind::UndefinedError
            && let Some(variable) = unknown_variable(template, known)
        {
            let known = known.join(", ");
            return Error::UnknownVariable {
                name,
                part,
                variable,
                known,
            };
        }
        let line = source.line().and_then(|number| {
            let words = template.lines().nth(number - 1)?.trim();
            Some(format!(", in its line {number}: `{words}`"))
        });
        Error::Template {
            name,
            part,
            at: line.unwrap_or_default(),
            remedy: match source.kind() {
                ErrorKind::UndefinedError => "something in that line does not exist: check how it is spelt",
                ErrorKind::SyntaxError => "mend its syntax, which is Jinja's",
                ErrorKind::OutOfFuel => "it takes too many steps; let it loop over less",
                _ => "use only what Jinja knows, on the variables of the built-in prompt",
            },
            source,
        }
    }

    /// Renders with made-up texts and looks whether each arrived.
    fn try_out(&self) -> Result<(), Error> {
        let (rendered, variables) = match self.file.name {
            PromptName::Judge => {
                let input = JudgeInput {
                    instruction: "try-instruction",
                    human_response: "try-human-response",
                    model_response: "try-model-response",
                };
                (
                    self.render_judge(input)?,
                    ["instruction", "human-response", "model-response"],
                )
            }
            PromptName::Synthesize => {
                let examples = [ExamplePair {
                    instruction: "try-instruction",
                    response: "try-response",
                }];
                let input = SynthesisInput {
                    examples: &examples,
                    system: Some("try-system"),
                    topic: "try-topic",
                    count: 3,
                };
                self.render_synthesis(SynthesisInput {
                    system: None,
                    ..input
                })?;
                (
                    self.render_synthesis(input)?,
                    ["instruction", "response", "topic"],
                )
            }
        };
        let name = self.file.name.as_str();
        let words: String = rendered
            .messages
            .into_iter()
            .map(|message| message.content)
            .collect();
        match variables
            .into_iter()
            .find(|variable| !words.contains(&format!("try-{variable}")))
        {
            Some(variable) => Err(Error::Unused {
                name,
                variable: variable.replace('-', "_"),
            }),
            None => Ok(()),
        }
    }
}

/// The variables of a template.
#[derive(Serialize)]
struct WithBoundary<T> {
    boundary: String,
    #[serde(flatten)]
    input: T,
}

/// A name that the template takes from outside and that is neither known nor one of the engine's own.
fn unknown_variable(template: &str, known: &[&str]) -> Option<String> {
    let environment = environment().ok()?;
    let template = environment.template_from_str(template).ok()?;
    let mut unknown: Vec<String> = template
        .undeclared_variables(false)
        .into_iter()
        .filter(|name| !known.contains(&name.as_str()))
        .filter(|name| environment.globals().all(|(global, _)| global != name))
        .collect();
    unknown.sort();
    unknown.into_iter().next()
}

fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_fuel(Some(FUEL));
    Ok(environment)
}

fn render_template(template: &str, input: &impl Serialize) -> Result<String, minijinja::Error> {
    environment()?.render_str(template, Serde(input))
}

#[cfg(test)]
mod tests;
