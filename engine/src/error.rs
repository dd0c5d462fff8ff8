//! What can go wrong in the engine.
//!
//! Invariant: a message names what failed, what was expected and what to do; the inner error is the source.

use std::path::PathBuf;

use llamaduo_kernels::DeviceError;

use crate::memory::gib;

/// A failed engine operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A path holds no model.
    #[error(
        "no model at {}: {found}; expected a .gguf file, or a directory with config.json and model.safetensors \
         (or its shards and index), or with exactly one .gguf file",
        path.display()
    )]
    NoModel {
        /// Where it was looked for.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// A JSON file is not JSON, or not of the shape it should have.
    #[error("{} is not the JSON it should be; fetch the file again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where parsing stopped.
        #[source]
        source: serde_json::Error,
    },
    /// A model's description lacks something or contradicts itself.
    #[error("{}: `{field}` must be {expected}, found {found}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key as the file spells it.
        field: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A model of a family that the engine does not know.
    #[error("{}: model type `{model_type}` is not supported; supported are {supported}", path.display())]
    UnsupportedModel {
        /// The file.
        path: PathBuf,
        /// What the file calls itself.
        model_type: String,
        /// Names of what is supported.
        supported: String,
    },
    /// A GGUF or safetensors file breaks its own format.
    #[error("{} is damaged or truncated: {found}; fetch the file again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit, with the expected and the found.
        found: String,
    },
    /// The files of a model hold no tensor of that name.
    #[error("{}: tensor `{tensor}` is missing; the file is not a whole checkpoint of this model", path.display())]
    TensorMissing {
        /// The file, or the directory of several.
        path: PathBuf,
        /// The name as the file would spell it.
        tensor: String,
    },
    /// A tensor has another shape than the model's description demands.
    #[error("{}: tensor `{tensor}` must be {expected:?}, found {found:?}", path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The name as the file spells it.
        tensor: String,
        /// Shape by the model's description, outermost first.
        expected: Vec<usize>,
        /// Shape in the file, outermost first.
        found: Vec<usize>,
    },
    /// A tensor is stored in a way that cannot be read.
    #[error("{}: tensor `{tensor}` is stored as {found}; readable are {supported}", path.display())]
    TensorFormat {
        /// The file.
        path: PathBuf,
        /// The name as the file spells it.
        tensor: String,
        /// How it is stored.
        found: String,
        /// How it could be stored.
        supported: &'static str,
    },
    /// A tokenizer cannot be built from what the model's files hold.
    #[error("{}: cannot build the tokenizer: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Text cannot be turned into tokens.
    #[error("cannot tokenize {n_bytes} bytes of text")]
    Encode {
        /// Length of the text.
        n_bytes: usize,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Tokens cannot be turned into text.
    #[error("cannot turn {n_tokens} tokens into text")]
    Decode {
        /// How many.
        n_tokens: usize,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The model has no tokenizer.
    #[error("{} has no tokenizer: expected tokenizer.json beside the weights, or a vocabulary in the GGUF", path.display())]
    NoTokenizer {
        /// The model.
        path: PathBuf,
    },
    /// The model has no chat template.
    #[error(
        "{} has no chat template: expected chat_template.jinja, `chat_template` in tokenizer_config.json or in the \
         GGUF; put the model's chat_template.jinja into its directory",
        path.display()
    )]
    NoChatTemplate {
        /// The model.
        path: PathBuf,
    },
    /// A chat template does not compile.
    #[error("the chat template {origin} cannot be read: {reason}")]
    TemplateSyntax {
        /// Where it came from.
        origin: String,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// A chat template refuses the messages or does not end.
    #[error("the chat template {origin} cannot render these messages: {reason}")]
    TemplateRender {
        /// Where it came from.
        origin: String,
        /// What it said.
        reason: String,
    },
    /// A kernel refused its operands, or a file could not be mapped.
    #[error(transparent)]
    Kernel(#[from] llamaduo_kernels::Error),
    /// A file cannot be written.
    #[error("cannot write {}; check the directory and the free space", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A training setting has a value without a meaning.
    #[error("`{field}` must be {expected}, found {found}")]
    TrainConfig {
        /// The setting.
        field: &'static str,
        /// Values that have a meaning.
        expected: String,
        /// The value.
        found: String,
    },
    /// No row predicts a token.
    #[error("no row has a token to learn or to measure; expected at least one conversation of two tokens")]
    NothingToLearn,
    /// No row of a training run is left.
    #[error(
        "none of the {n_rows} rows has a token to learn among its first {len_max}; allow longer sequences, or shorten \
         the prompts"
    )]
    AllRowsDropped {
        /// How many there were.
        n_rows: usize,
        /// Tokens of a row that are looked at.
        len_max: usize,
    },
    /// A row does not fit into the model's context.
    #[error(
        "row {row} has {n_tokens} tokens, the model's context holds {context_len}; shorten or leave it out"
    )]
    RowTooLong {
        /// From 0.
        row: usize,
        /// Its length.
        n_tokens: usize,
        /// What fits.
        context_len: usize,
    },
    /// A row of token ids holds none.
    #[error("row {row} holds no tokens; give it at least one or leave it out")]
    NoTokens {
        /// From 0.
        row: usize,
    },
    /// A row of token ids holds one that the model does not know.
    #[error(
        "row {row}, token {token}: the id {id} is beyond the model's vocabulary of {vocab_size}; the ids are another \
         model's"
    )]
    TokenUnknown {
        /// From 0.
        row: usize,
        /// Its place in the row, from 0.
        token: usize,
        /// The id.
        id: u32,
        /// Ids that there are.
        vocab_size: usize,
    },
    /// A loss, a gradient or what a step made of the parameters is no finite number.
    #[error(
        "training left the finite numbers at step {step} (loss {loss}, gradient norm {grad_norm}); start anew with a \
         lower learning rate"
    )]
    Diverged {
        /// From 1.
        step: u32,
        /// Its loss.
        loss: f64,
        /// Norm of its gradients.
        grad_norm: f64,
    },
    /// Bytes are no checkpoint that can be read.
    #[error("the checkpoint cannot be read: {reason}; go on from an earlier one or start anew")]
    Checkpoint {
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint belongs to another run.
    #[error("the checkpoint is of a run with another {what}; resume with the same one or start anew")]
    CheckpointOfOtherRun {
        /// What differs.
        what: &'static str,
    },
    /// An adapter does not fit the model or the settings.
    #[error("the adapter does not fit: expected {expected}, found {found}")]
    AdapterMismatch {
        /// What would fit.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The same of an adapter whose files say what it was trained on.
    #[error(
        "the adapter does not fit this model; its adapter_config.json says that it was trained on {base:?}: use it with that one"
    )]
    AdapterOfOtherModel {
        /// A name or a path, as whoever trained it called the model.
        base: String,
        /// What does not fit.
        #[source]
        source: Box<Error>,
    },
    /// An adapter holds what is no number to compute with.
    #[error("the adapter holds {value} in layer {layer}'s {module}, expected finite numbers; train it anew")]
    AdapterNotFinite {
        /// From 0.
        layer: usize,
        /// The linear that it adapts.
        module: &'static str,
        /// The first such value.
        value: f32,
    },
    /// A model computes what is no number.
    #[error("{what} is {value}, expected a finite number; the model's or the adapter's numbers are damaged")]
    NotFinite {
        /// What was computed.
        what: &'static str,
        /// What came out.
        value: f64,
    },
    /// A response from which no token can be chosen.
    #[error(
        "no next token can be chosen {}: the largest logit is not a finite number; the model's or the adapter's numbers are \
         damaged, take an earlier adapter or fetch the files again",
        match adapter { Some(number) => format!("with adapter {number}, counted from 0"), None => "by the base".to_owned() }
    )]
    NoToken {
        /// The number of the adapter that the response goes through.
        adapter: Option<usize>,
    },
    /// An adapter is of a kind that the engine cannot run.
    #[error(
        "the adapter uses {what}, which is not supported; supported is plain LoRA on the blocks' linears"
    )]
    AdapterKind {
        /// What it uses.
        what: String,
    },
    /// A model or an adapter cannot be said in another format.
    #[error("cannot export {what}: {reason}")]
    Export {
        /// What was to be written.
        what: String,
        /// Why it cannot be, and what can.
        reason: String,
    },
    /// A device's memory does not hold what is to be done, however it is divided.
    #[error(
        "{what} needs {:.2} GiB of the device's memory, of which there are {:.2}; what would fit: {remedy}",
        gib(*needed), gib(*room)
    )]
    NotEnoughMemory {
        /// What is to be done.
        what: String,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        room: u64,
        /// What would fit.
        remedy: String,
    },
    /// A generation setting has a value without a meaning.
    #[error("`{field}` must be {expected}, found {found}")]
    GenerateOptions {
        /// The setting.
        field: &'static str,
        /// Values that have a meaning.
        expected: &'static str,
        /// The value.
        found: String,
    },
}

impl Error {
    /// What the CUDA device said, where it is to blame.
    pub fn device(&self) -> Option<&DeviceError> {
        match self {
            Self::Kernel(error) => error.device(),
            _ => None,
        }
    }
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;
