//! Grades a response by comparing it with the reference.
//!
//! Invariant: a response equal to its reference gets 100 for both before noise, and no response gets less than 1.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::chat::cut;
use super::tickets::Draw;

/// How far noise moves a score, points up or down.
const NOISE: usize = 3;
/// Precision falls faster than similarity: one wrong value of six costs a fifth instead of a sixth.
const PRECISION_EXPONENT: f64 = 1.25;
/// What each unasked field costs, points of (similarity, precision).
const EXTRA_FIELD: (f64, f64) = (5.0, 8.0);
/// What text around the JSON costs, points of (similarity, precision).
const EXTRA_TEXT: (f64, f64) = (10.0, 15.0);
/// The most that a response without a JSON object gets, points of (similarity, precision).
const NO_JSON: (f64, f64) = (15.0, 5.0);
/// Longest reason, bytes.
const REASON_BYTES_MAX: usize = 400;
/// Keeps these choices apart from all others of the same seed and request.
const PURPOSE: u64 = 0x96ad;

struct Grade {
    similarity: f64,
    precision: f64,
    reason: String,
}

/// The judge's reply: `{"similarity_assessment": {"score", "reason"}, "precision_assessment": {"score", "reason"}}`.
pub(super) fn verdict(reference: &str, response: &str, seed: u64, request: u64) -> String {
    let grade = match serde_json::from_str::<Map<String, Value>>(reference) {
        Ok(reference) => grade_object(&reference, response),
        Err(_) => grade_words(reference, response),
    };
    let mut draw = Draw::new(&[seed, PURPOSE, request]);
    let mut score = |points: f64| {
        let noise = draw.below(2 * NOISE + 1) as f64 - NOISE as f64;
        (points + noise).round().clamp(1.0, 100.0) as u8
    };
    let (similarity, precision) = (score(grade.similarity), score(grade.precision));
    let reason = cut(&grade.reason, REASON_BYTES_MAX);
    json!({
        "similarity_assessment": {"score": similarity, "reason": reason},
        "precision_assessment": {"score": precision, "reason": reason},
    })
    .to_string()
}

fn grade_object(reference: &Map<String, Value>, response: &str) -> Grade {
    let Some((object, is_bare)) = find_object(response) else {
        let shared = shared_words(&Value::Object(reference.clone()).to_string(), response);
        return Grade {
            similarity: NO_JSON.0 * shared,
            precision: NO_JSON.1 * shared,
            reason: "The response holds no JSON object.".to_owned(),
        };
    };
    let credits: Vec<(&String, f64)> = reference
        .iter()
        .map(|(key, value)| (key, credit(value, object.get(key))))
        .collect();
    let agreement = match credits.len() {
        0 => 1.0,
        n_fields => credits.iter().map(|(_, credit)| credit).sum::<f64>() / n_fields as f64,
    };
    let n_extra = object.keys().filter(|key| !reference.contains_key(*key)).count() as f64;
    let extra_text = if is_bare { 0.0 } else { 1.0 };

    let wrong: Vec<&str> = credits
        .iter()
        .filter(|(_, credit)| *credit < 1.0)
        .map(|(key, _)| key.as_str())
        .collect();
    let mut reason = match wrong.as_slice() {
        [] => "Every field agrees with the human response.".to_owned(),
        wrong => format!(
            "Of {} fields, these differ from the human response: {}.",
            credits.len(),
            wrong.join(", ")
        ),
    };
    if n_extra > 0.0 {
        reason += " There are fields that were not asked for.";
    }
    if !is_bare {
        reason += " There is text around the JSON.";
    }
    Grade {
        similarity: 100.0 * agreement - n_extra * EXTRA_FIELD.0 - extra_text * EXTRA_TEXT.0,
        precision: 100.0 * agreement.powf(PRECISION_EXPONENT)
            - n_extra * EXTRA_FIELD.1
            - extra_text * EXTRA_TEXT.1,
        reason,
    }
}

/// The response as a JSON object, or the object between its outermost braces; and whether nothing is around it.
fn find_object(response: &str) -> Option<(Map<String, Value>, bool)> {
    if let Ok(object) = serde_json::from_str(response.trim()) {
        return Some((object, true));
    }
    let inner = response.get(response.find('{')?..=response.rfind('}')?)?;
    serde_json::from_str(inner).ok().map(|object| (object, false))
}

/// 1 for the same value, a half for one that differs in case or type only, else 0.
fn credit(expected: &Value, found: Option<&Value>) -> f64 {
    let plain = |value: &Value| match value {
        Value::String(text) => text.trim().to_lowercase(),
        other => other.to_string(),
    };
    match found {
        Some(found) if found == expected => 1.0,
        Some(found) if plain(found) == plain(expected) => 0.5,
        _ => 0.0,
    }
}

fn grade_words(reference: &str, response: &str) -> Grade {
    let shared = shared_words(reference, response);
    Grade {
        similarity: 100.0 * shared,
        precision: 100.0 * shared,
        reason: format!("The responses share {:.0} % of their words.", 100.0 * shared),
    }
}

/// F1 of the words of two texts, as bags. 1 when neither has any.
fn shared_words(left: &str, right: &str) -> f64 {
    let bag = |text: &str| {
        let mut bag = BTreeMap::<String, usize>::new();
        for word in text
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
        {
            *bag.entry(word.to_lowercase()).or_default() += 1;
        }
        bag
    };
    let (left, right) = (bag(left), bag(right));
    let n_words = left.values().sum::<usize>() + right.values().sum::<usize>();
    if n_words == 0 {
        return 1.0;
    }
    let n_shared: usize = left
        .iter()
        .map(|(word, n)| (*n).min(right.get(word).copied().unwrap_or_default()))
        .sum();
    2.0 * n_shared as f64 / n_words as f64
}

#[cfg(test)]
mod tests;
