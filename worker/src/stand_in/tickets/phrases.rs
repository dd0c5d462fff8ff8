//! The sentences that tickets are made of, and the cues by which a reader tells what they say.
//!
//! Invariant: a sentence holds a cue of what it stands for and of nothing else. None is longer than nine words, so
//! that two tickets do not share a run of ten words because they share a sentence.

mod english;
mod german;
mod spanish;

use super::label::Language;

/// One language. `{p}` stands for a product, `{d}` a date, `{n}` a number, `{o}` an order, `{c}` a customer,
/// `{t}` a town.
#[derive(Debug)]
pub(super) struct Phrases {
    /// What happened, by category.
    pub(super) issues: [&'static [&'static str]; 6],
    /// It cannot wait.
    pub(super) urgent: &'static [&'static str],
    /// It can wait.
    pub(super) unhurried: &'static [&'static str],
    /// Money back, please.
    pub(super) refund: &'static [&'static str],
    /// Another piece, please.
    pub(super) exchange: &'static [&'static str],
    /// Names the order.
    pub(super) order: &'static [&'static str],
    /// Names the customer, which looks like an order and is none.
    pub(super) customer: &'static [&'static str],
    /// Says nothing that matters.
    pub(super) details: &'static [&'static str],
    /// First words.
    pub(super) greetings: &'static [&'static str],
    /// Last words, before the name.
    pub(super) closings: &'static [&'static str],
    /// Months, with what stands between the day and them.
    pub(super) months: [&'static str; 12],
    /// How to read it.
    pub(super) cues: Cues,
}

/// Lower-case pieces of text by which a reader tells what a message says.
#[derive(Debug)]
pub(super) struct Cues {
    /// By category.
    pub(super) issues: [&'static [&'static str]; 6],
    /// Of `urgent`.
    pub(super) urgent: &'static [&'static str],
    /// Of `unhurried`.
    pub(super) unhurried: &'static [&'static str],
    /// Of `refund`.
    pub(super) refund: &'static [&'static str],
    /// Of `exchange`.
    pub(super) exchange: &'static [&'static str],
    /// Frequent words that the other languages do not have.
    pub(super) words: &'static [&'static str],
}

/// The table of a language.
pub(super) fn phrases(language: Language) -> &'static Phrases {
    match language {
        Language::English => &english::PHRASES,
        Language::German => &german::PHRASES,
        Language::Spanish => &spanish::PHRASES,
    }
}
