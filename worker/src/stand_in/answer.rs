//! Answers a support message as the teacher reads it, with a slip now and then.
//!
//! Invariant: a slip is valid JSON with one wrong value.

use super::tickets::{Category, Draw, Label, Language, Priority, Team, Wish, reference_label};

/// Share of answers with a slip: good service LLMs are not perfect either.
const SLIPS: f64 = 0.03;
/// Keeps these choices apart from all others of the same seed and request.
const PURPOSE: u64 = 0xa25e;

/// The line of JSON for `message`.
pub(super) fn triage(message: &str, seed: u64, request: u64) -> String {
    let label = reference_label(message).unwrap_or(Label {
        category: Category::Question,
        team: Team::Sales,
        priority: Priority::Normal,
        language: Language::English,
        wish: Wish::None,
        order: None,
    });
    let mut draw = Draw::new(&[seed, PURPOSE, request]);
    let label = if draw.chance(SLIPS) {
        with_slip(label, &mut draw)
    } else {
        label
    };
    label.to_json()
}

/// The label with one value changed.
pub(super) fn with_slip(mut label: Label, draw: &mut Draw) -> Label {
    match draw.below(3) {
        0 => {
            let others = Category::ALL
                .into_iter()
                .filter(|category| *category != label.category);
            let others: Vec<Category> = others.collect();
            label.category = draw.pick(&others).copied().unwrap_or(label.category);
        }
        1 => {
            label.priority = match label.priority {
                Priority::Normal => Priority::High,
                Priority::Low | Priority::High => Priority::Normal,
            }
        }
        _ => {
            label.wish = match label.wish {
                Wish::None => Wish::Refund,
                Wish::Refund | Wish::Exchange => Wish::None,
            }
        }
    }
    label
}
