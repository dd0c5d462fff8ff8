//! Text to tokens and back.
//!
//! Invariant: no token is ever added that the text does not spell; who wants a BOS writes it (templates do).

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {}

impl Tokenizer {
    /// Tokens of `text`, none added; the text of a special token becomes that token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>>;
    /// Text of `ids`, special tokens left out; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String>;
    /// First token of a sequence, where the model has one.
    pub fn bos(&self) -> Option<u32>;
    /// Whether plain text is to begin with BOS (chat templates write their own).
    pub fn adds_bos(&self) -> bool;
    /// Tokens that end a response.
    pub fn eos(&self) -> &[u32];
    /// Padding token.
    pub fn pad(&self) -> Option<u32>;
    /// The token with exactly this text.
    pub fn token_id(&self, token: &str) -> Option<u32>;
    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize;
}

/// Turns tokens into text as they come, never half a character.
#[derive(Debug, Default)]
pub struct StreamDecoder {}

impl StreamDecoder {
    /// Takes one token and gives the text it completes, which may be empty.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String>;
    /// Gives what is left.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String>;
}
