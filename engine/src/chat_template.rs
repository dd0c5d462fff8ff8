//! Messages to the text a model was tuned on, rendered as transformers renders it.
//!
//! Invariant: a template is untrusted: its steps, its depth and its output are bounded.

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role { System, User, Assistant }

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message { pub role: Role, pub content: String }

/// A compiled template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {}

impl ChatTemplate {
    /// A template of ours: `chatml`.
    pub fn built_in(name: &str) -> Option<Self>;
    /// The conversation as text; `add_generation_prompt` opens the assistant's turn at the end.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String>;
}

/// Tokens of a conversation: rendered, then encoded with nothing added, so that there is never a second BOS.
pub fn encode_chat(tokenizer: &Tokenizer, template: &ChatTemplate, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>>;
