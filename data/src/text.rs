//! Small questions about text: its words, the JSON inside it, a safe cut.

use serde_json::Value;

/// How many `{` of a reply are tried as the start of an object. A judge's reply has one or two; the bound keeps
/// a reply of braces from costing quadratic time.
const OBJECT_STARTS_MAX: usize = 64;

/// The outermost JSON objects in `text`, in order, whatever stands between them.
pub fn json_objects(text: &str) -> Vec<Value> {
    let mut objects = Vec::new();
    let mut rest = text;
    for _ in 0..OBJECT_STARTS_MAX {
        let Some(start) = rest.find('{') else { break };
        rest = rest.get(start..).unwrap_or("");
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let step = match stream.next() {
            Some(Ok(object)) => {
                objects.push(object);
                stream.byte_offset()
            }
            _ => 1,
        };
        rest = rest.get(step..).unwrap_or("");
    }
    objects
}

/// The longest start of `text` that fits `bytes_max` and ends between two characters.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The words of `text`, lower-cased: runs of letters and digits. On ASCII text these are the tokens of Python's
/// `rouge-score` without its stemmer. Scripts written without spaces give one word a character, or a whole
/// sentence would be one word.
pub fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    each_word(text, |word| words.push(word.to_owned()));
    words
}

/// Hands each of the [`words`] of `text` to `visit`, without keeping them.
pub fn each_word(text: &str, mut visit: impl FnMut(&str)) {
    let mut word = String::new();
    for char in text.chars().flat_map(char::to_lowercase) {
        let unspaced = is_unspaced(char);
        if char.is_alphanumeric() && !unspaced {
            word.push(char);
            continue;
        }
        if !word.is_empty() {
            visit(&word);
            word.clear();
        }
        if unspaced {
            visit(char.encode_utf8(&mut [0; 4]));
        }
    }
    if !word.is_empty() {
        visit(&word);
    }
}

/// Whether `char` is of a script that puts no spaces between words: Thai and Lao, kana, CJK ideographs.
fn is_unspaced(char: char) -> bool {
    matches!(char, '\u{0e00}'..='\u{0eff}' | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}'
        | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}')
        && char.is_alphanumeric()
}

#[cfg(test)]
mod tests;
