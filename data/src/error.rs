//! What can go wrong on the pure side. Every message says what failed, what was expected and what to do.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the user's could not be read.
    #[error("cannot read the dataset {path}; check that it exists and may be read")]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// The system's own word.
        #[source]
        source: std::io::Error,
    },
    /// A line of a JSONL file is not what it should be.
    #[error("{name}, line {line}: {problem}; expected {expected}")]
    Line {
        /// The file or artifact, as the user knows it.
        name: String,
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
        /// The form a line must have.
        expected: &'static str,
    },
    /// A dataset without rows.
    #[error("{name} holds no rows; add at least two lines of {{\"messages\": [...]}}")]
    NoRows {
        /// The file, as the user knows it.
        name: String,
    },
    /// A file over the import bound.
    #[error(
        "{name} has {bytes} bytes, more than the {bytes_max} that an import takes; split it or drop rows"
    )]
    TooLarge {
        /// The file, as the user knows it.
        name: String,
        /// How large it is.
        bytes: u64,
        /// How large it may be.
        bytes_max: u64,
    },
    /// A split that would leave one side empty.
    #[error(
        "a test split of {test} from {samples} samples ({prompts} different prompts) leaves the {empty} split empty; \
         {remedy}"
    )]
    EmptySplit {
        /// Test samples asked for.
        test: usize,
        /// Samples there are.
        samples: usize,
        /// Different prompts among them; equal prompts stay on one side.
        prompts: usize,
        /// Which side would be empty.
        empty: &'static str,
        /// What to change.
        remedy: &'static str,
    },
    /// A split ratio that is no ratio.
    #[error("the test ratio is {ratio}; expected a number above 0 and below 1")]
    Ratio {
        /// The number given.
        ratio: f64,
    },
    /// A value that cannot be written as JSON.
    #[error("cannot write {what} as JSON")]
    Encode {
        /// What was being written.
        what: &'static str,
        /// The encoder's own word.
        #[source]
        source: serde_json::Error,
    },
    /// A price book that cannot be read.
    #[error("the price book is not valid: {problem}")]
    PriceBook {
        /// What is wrong and where.
        problem: String,
    },
    /// The report's page could not be rendered.
    #[error("cannot render the report's page")]
    Render {
        /// The template engine's own word.
        #[source]
        source: minijinja::Error,
    },
}

impl Error {
    /// Whether doing the same again could succeed: only a failed read could.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Read { .. })
    }
}
