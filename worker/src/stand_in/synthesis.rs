//! Writes new pairs of the demo's task, with the flaws that curation has to catch.
//!
//! Invariant: as many items as asked for, in a JSON object of the form `{"contents": [...]}`.

use serde_json::{Value, json};

use super::answer::with_slip;
use super::tickets::{COVERAGE_PAIRS, Draw, Stream, Ticket, other_product, ticket};

/// Shares of flawed items, in [0, 1]; beyond a sum of 1 the later ones never happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flaws {
    /// An example, word for word.
    pub duplicates: f64,
    /// No pair at all.
    pub malformed: f64,
    /// A pair of the coverage dataset with a few words changed: of the test split, if luck will have it.
    pub near_copies: f64,
    /// A new pair with one wrong value.
    pub wrong_labels: f64,
}

impl Default for Flaws {
    /// Enough of each that the demo's curation has something to show.
    fn default() -> Self {
        Self {
            duplicates: 0.05,
            malformed: 0.04,
            near_copies: 0.05,
            wrong_labels: 0.015,
        }
    }
}

/// Keeps these choices apart from all others of the same seed and request.
const PURPOSE: u64 = 0x5f47;

/// Where the pairs come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    /// Pairs that the prompt shows.
    pub(super) examples: &'a [(String, String)],
    /// Seed of the coverage dataset, for near-copies.
    pub(super) coverage_seed: u64,
    pub(super) flaws: Flaws,
    pub(super) seed: u64,
    pub(super) request: u64,
}

/// The reply with `n_pairs` items.
pub(super) fn contents(source: &Source<'_>, n_pairs: usize) -> String {
    let items: Vec<Value> = (0..n_pairs as u64).map(|index| item(source, index)).collect();
    json!({ "contents": items }).to_string()
}

fn item(source: &Source<'_>, index: u64) -> Value {
    let mut draw = Draw::new(&[source.seed, PURPOSE, source.request, index]);
    let fresh = || ticket(source.seed ^ source.request, Stream::Synthesis, index);
    let flaws = source.flaws;
    let mut left = draw.unit();
    let mut is_next = |share: f64| {
        let hit = left < share;
        left -= share;
        hit
    };
    if is_next(flaws.duplicates)
        && let Some((instruction, response)) = draw.pick(source.examples)
    {
        return json!({"instruction": instruction, "response": response});
    }
    if is_next(flaws.malformed) {
        return malformed(&fresh(), &mut draw);
    }
    if is_next(flaws.near_copies) {
        return pair(&near_copy(source.coverage_seed, &mut draw));
    }
    let mut ticket = fresh();
    if is_next(flaws.wrong_labels) {
        ticket.label = with_slip(ticket.label, &mut draw);
    }
    pair(&ticket)
}

fn pair(ticket: &Ticket) -> Value {
    json!({"instruction": ticket.message, "response": ticket.label.to_json()})
}

fn malformed(ticket: &Ticket, draw: &mut Draw) -> Value {
    match draw.below(4) {
        0 => json!({"instruction": ticket.message}),
        1 => json!({"instruction": "", "response": ticket.label.to_json()}),
        2 => json!({"instruction": ticket.message, "response": {"label": ticket.label}}),
        _ => {
            let response = ticket.label.to_json();
            let half = super::chat::cut(&response, response.len() / 2);
            json!({"instruction": ticket.message, "response": half})
        }
    }
}

fn near_copy(coverage_seed: u64, draw: &mut Draw) -> Ticket {
    let original = ticket(coverage_seed, Stream::Coverage, draw.below(COVERAGE_PAIRS) as u64);
    let message = if draw.chance(0.5) {
        other_product(&original.message, draw)
    } else {
        format!("{} {}", original.message, draw.text(&["Okay?", "OK?", "PS: ok."]))
    };
    Ticket {
        message,
        label: original.label,
    }
}

#[cfg(test)]
mod tests;
