//! A code for the lines around quoted texts, which none of the texts contains.
//!
//! Invariant: the code depends on the texts alone, so that the same question is the same call and is paid for once.

use sha2::{Digest as _, Sha256};

/// Hexadecimal digits of a code: short to read, and a text would need 2³² of them to hold every code.
const DIGITS: usize = 8;

/// A code that occurs in none of `texts`.
pub(crate) fn choose<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let texts: Vec<&str> = texts.into_iter().collect();
    let mut hash = Sha256::new();
    for text in &texts {
        // The length keeps ("ab", "c") apart from ("a", "bc").
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    let seed = hash.finalize();
    let code = |attempt: u32| {
        let digest = Sha256::new()
            .chain_update(seed)
            .chain_update(attempt.to_le_bytes())
            .finalize();
        digest
            .iter()
            .take(DIGITS / 2)
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let is_free = |code: &String| !texts.iter().any(|text| text.contains(code.as_str()));
    (0..=u32::MAX).map(code).find(is_free).unwrap_or_default()
}

#[cfg(test)]
mod tests;
