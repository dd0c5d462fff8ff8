//! What can go wrong with a prompt. All of it is the template's fault, so nothing here is worth retrying.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not a prompt.
    #[error("cannot read the prompt; expected the keys name, description, system, user and schema")]
    Parse {
        /// The reader's own word, with the line.
        #[source]
        source: toml::de::Error,
    },
    /// The schema is no JSON.
    #[error("the schema of the prompt {name} is not JSON")]
    Schema {
        /// Which prompt.
        name: &'static str,
        /// The reader's own word.
        #[source]
        source: serde_json::Error,
    },
    /// A template names a variable that there is not.
    #[error(
        "the {part} template of the prompt {name} uses `{variable}`, which does not exist; it may use {known}"
    )]
    UnknownVariable {
        /// Which prompt.
        name: &'static str,
        /// `system` or `user`.
        part: &'static str,
        /// As the template spells it.
        variable: String,
        /// Those that there are.
        known: String,
    },
    /// A template cannot be rendered.
    #[error("cannot render the {part} template of the prompt {name}{at}; {remedy}")]
    Template {
        /// Which prompt.
        name: &'static str,
        /// `system` or `user`.
        part: &'static str,
        /// The line, with its number, where it is known.
        at: String,
        /// What to do.
        remedy: &'static str,
        /// The engine's own word.
        #[source]
        source: minijinja::Error,
    },
    /// A template leaves out something that the service LLM must see.
    #[error(
        "the prompt {name} never shows {variable}; use {{{{ {variable} }}}} in its system or user template"
    )]
    Unused {
        /// Which prompt.
        name: &'static str,
        /// What is missing.
        variable: String,
    },
    /// A prompt was used for another's purpose.
    #[error("expected the prompt {expected}, found {found}; check which file is configured for which prompt")]
    OtherPrompt {
        /// What was asked for.
        expected: &'static str,
        /// What the file names.
        found: &'static str,
    },
}

impl Error {
    /// Never: the template stays what it is.
    pub fn is_retryable(&self) -> bool {
        false
    }
}
