//! Reads a message by its cues and says what it is about: the rules that the local model has to learn.
//!
//! Invariant: looks at nothing but the words; for every generated ticket it gives the generator's own label.

use super::label::{Category, Label, Language, Priority, Team, Wish};
use super::phrases::{Cues, phrases};

/// The label of a message; `None` when it holds no cue of any category.
pub fn reference_label(message: &str) -> Option<Label> {
    let text = message.to_lowercase();
    let words: Vec<&str> = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let language = Language::ALL.into_iter().max_by_key(|language| {
        let cues = &phrases(*language).cues;
        let n_words = words.iter().filter(|word| cues.words.contains(word)).count();
        let n_cues: usize = cues.issues.iter().map(|cues| count(&text, cues)).sum();
        // An issue's cue is a rarer find than a frequent word. Ties go to the last of the list.
        (n_words + 3 * n_cues, *language)
    })?;
    let cues = &phrases(language).cues;
    let category = category(&text, cues)?;
    Some(Label {
        category,
        team: Team::of(category),
        priority: priority(&text, cues),
        language,
        wish: wish(&text, cues),
        order: words
            .iter()
            .find(|word| is_order(word))
            .map(|word| word.to_uppercase()),
    })
}

fn count(text: &str, cues: &[&str]) -> usize {
    cues.iter().filter(|cue| text.contains(**cue)).count()
}

/// The category with the most cues; the first of equals.
fn category(text: &str, cues: &Cues) -> Option<Category> {
    let counted = Category::ALL
        .into_iter()
        .zip(cues.issues)
        .map(|(category, cues)| (category, count(text, cues)));
    let best = counted.rev().max_by_key(|(_, n_cues)| *n_cues)?;
    (best.1 > 0).then_some(best.0)
}

fn priority(text: &str, cues: &Cues) -> Priority {
    if count(text, cues.unhurried) > 0 {
        Priority::Low
    } else if count(text, cues.urgent) > 0 {
        Priority::High
    } else {
        Priority::Normal
    }
}

fn wish(text: &str, cues: &Cues) -> Wish {
    if count(text, cues.refund) > 0 {
        Wish::Refund
    } else if count(text, cues.exchange) > 0 {
        Wish::Exchange
    } else {
        Wish::None
    }
}

/// `k` and four digits.
fn is_order(word: &str) -> bool {
    word.len() == 5
        && word
            .strip_prefix('k')
            .is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
}
