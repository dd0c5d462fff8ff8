//! Where the wire becomes the domain and back: `TryFrom<wire::X>` checks everything that the `.proto` files promise,
//! `From<X> for wire::X` cannot fail.
//!
//! Invariant: a valid domain value survives the way to the wire and back unchanged; no message makes this code panic.

mod event;
mod run;
mod scores;
mod settings;
mod task;
mod view;
mod worker;

#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::str::FromStr;

use crate::Digest;
use crate::ids::InvalidId;

/// A message that breaks its contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}`: expected {expected}, found {found}")]
pub struct InvalidMessage {
    /// Path of the field from the message's root, for example `service_llm.model`.
    pub field: String,
    /// What is allowed.
    pub expected: String,
    /// What was there, cut to 80 characters.
    pub found: String,
}

impl InvalidMessage {
    /// Says that `field` should have held `expected` but held `found`.
    pub fn new(field: &str, expected: &str, found: impl Display) -> Self {
        let found = found.to_string().chars().take(80).collect();
        Self {
            field: field.to_owned(),
            expected: expected.to_owned(),
            found,
        }
    }

    fn absent(field: &str) -> Self {
        Self::new(field, "a value", "nothing")
    }

    fn unspecified(what: &str) -> Self {
        Self::new("", what, "UNSPECIFIED")
    }

    /// The same, seen from the message that holds this one in `field`.
    fn within(mut self, field: &str) -> Self {
        self.field = if self.field.is_empty() {
            field.to_owned()
        } else {
            format!("{field}.{}", self.field)
        };
        self
    }
}

type Result<T> = std::result::Result<T, InvalidMessage>;

/// Longest text meant for people, characters; longer ones are cut, since refusing them would lose the news they bring.
const PEOPLE_TEXT_CHARS_MAX: usize = 2_000;
/// Longest topic, characters: it is part of every synthesis prompt.
const TOPIC_CHARS_MAX: usize = 4_000;
/// Longest path, URL, model name or variable name, characters: beyond what file systems and vendors take.
const NAME_CHARS_MAX: usize = 1_024;
/// Most elements of a repeated field: far above any worker's slots, and a page's size.
pub const LIST_LEN_MAX: usize = 1_000;
/// Rows of a page when a client names no number.
const PAGE_SIZE: u32 = 100;

/// Checks an id that stands alone in a request.
pub fn id<T: FromStr<Err = InvalidId>>(field: &str, text: &str) -> Result<T> {
    text.parse()
        .map_err(|error: InvalidId| InvalidMessage::new(field, error.expected, error.found))
}

/// Checks a digest that stands alone in a request.
pub fn digest(field: &str, text: &str) -> Result<Digest> {
    text.parse().map_err(|_| {
        let found = if text.is_empty() { "nothing" } else { text };
        InvalidMessage::new(field, "a sha256 in 64 lower-case hexadecimal digits", found)
    })
}

/// Checks the digests of a list of at most [`LIST_LEN_MAX`].
pub fn digests(field: &str, texts: &[String]) -> Result<Vec<Digest>> {
    short_list(field, texts.len())?;
    texts
        .iter()
        .enumerate()
        .map(|(idx, text)| digest(&format!("{field}[{idx}]"), text))
        .collect()
}

/// Rows of a page: 1 to [`LIST_LEN_MAX`], or the default for 0.
pub fn page_size(asked: u32) -> Result<usize> {
    let size = or_default(asked, PAGE_SIZE) as usize;
    if size > LIST_LEN_MAX {
        return Err(InvalidMessage::new("page_size", "at most 1,000 rows", size));
    }
    Ok(size)
}

fn optional_id<T: FromStr<Err = InvalidId>>(field: &str, text: &str) -> Result<Option<T>> {
    if text.is_empty() {
        Ok(None)
    } else {
        id(field, text).map(Some)
    }
}

fn optional_digest(field: &str, text: &str) -> Result<Option<Digest>> {
    if text.is_empty() {
        Ok(None)
    } else {
        digest(field, text).map(Some)
    }
}

fn digest_text(digest: Option<Digest>) -> String {
    digest.map(|digest| digest.to_string()).unwrap_or_default()
}

/// Converts a message that must be there.
fn required<W, D: TryFrom<W, Error = InvalidMessage>>(field: &str, message: Option<W>) -> Result<D> {
    nested(field, message.ok_or_else(|| InvalidMessage::absent(field))?)
}

/// Converts a message that may be absent.
fn optional<W, D: TryFrom<W, Error = InvalidMessage>>(field: &str, message: Option<W>) -> Result<Option<D>> {
    message.map(|message| nested(field, message)).transpose()
}

fn nested<W, D: TryFrom<W, Error = InvalidMessage>>(field: &str, message: W) -> Result<D> {
    D::try_from(message).map_err(|error| error.within(field))
}

/// Converts each message of a list of at most [`LIST_LEN_MAX`].
fn list<W, D: TryFrom<W, Error = InvalidMessage>>(field: &str, messages: Vec<W>) -> Result<Vec<D>> {
    short_list(field, messages.len())?;
    let convert = |(idx, message)| nested(&format!("{field}[{idx}]"), message);
    messages.into_iter().enumerate().map(convert).collect()
}

fn short_list(field: &str, len: usize) -> Result<()> {
    if len > LIST_LEN_MAX {
        return Err(InvalidMessage::new(field, "at most 1,000 elements", len));
    }
    Ok(())
}

/// Converts an enum, whose number may be unknown here.
fn enumeration<W, D>(field: &str, number: i32) -> Result<D>
where
    W: TryFrom<i32>,
    D: TryFrom<W, Error = InvalidMessage>,
{
    let value = W::try_from(number).map_err(|_| InvalidMessage::new(field, "a known value", number))?;
    nested(field, value)
}

/// A text of 1 to `chars_max` characters without control characters.
fn text(field: &str, text: String, chars_max: usize) -> Result<String> {
    if text.is_empty() {
        return Err(InvalidMessage::absent(field));
    }
    optional_text(field, text, chars_max)
}

/// A text of 0 to `chars_max` characters without control characters other than line breaks and tabs.
fn optional_text(field: &str, text: String, chars_max: usize) -> Result<String> {
    let n_chars = text.chars().count();
    if n_chars > chars_max {
        let found = format!("{n_chars} characters");
        return Err(InvalidMessage::new(
            field,
            &format!("at most {chars_max} characters"),
            found,
        ));
    }
    if text
        .chars()
        .any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
    {
        return Err(InvalidMessage::new(
            field,
            "text without control characters",
            text.escape_debug(),
        ));
    }
    Ok(text)
}

fn text_for_people(text: String) -> String {
    match text.char_indices().nth(PEOPLE_TEXT_CHARS_MAX) {
        Some((end, _)) => text.get(..end).unwrap_or_default().to_owned(),
        None => text,
    }
}

fn at_least_1(field: &str, number: u32) -> Result<u32> {
    up_to(field, number, u32::MAX)
}

/// A number from 1 to `max`.
fn up_to(field: &str, number: u32, max: u32) -> Result<u32> {
    match number {
        0 => Err(InvalidMessage::new(field, "at least 1", 0)),
        _ if number > max => Err(InvalidMessage::new(field, &format!("at most {max}"), number)),
        _ => Ok(number),
    }
}

/// A finite number of which `allowed` holds.
fn number<T: Into<f64> + Copy + Display>(
    field: &str,
    number: T,
    expected: &str,
    allowed: impl Fn(f64) -> bool,
) -> Result<T> {
    let value = number.into();
    if value.is_finite() && allowed(value) {
        Ok(number)
    } else {
        Err(InvalidMessage::new(field, expected, number))
    }
}

fn or_default<T: Default + PartialEq>(value: T, default: T) -> T {
    if value == T::default() { default } else { value }
}

/// `None` for the value that stands for absence.
fn unless_zero<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

/// Maps an enum to its wire twin by variants of the same name; says what UNSPECIFIED becomes.
macro_rules! same_variants {
    ($name:ident, unspecified $unspecified:expr, $($variant:ident),+) => {
        impl From<$name> for wire::$name {
            fn from(value: $name) -> Self {
                match value {
                    $($name::$variant => Self::$variant),+
                }
            }
        }

        impl TryFrom<wire::$name> for $name {
            type Error = InvalidMessage;
            fn try_from(value: wire::$name) -> Result<Self> {
                match value {
                    wire::$name::Unspecified => $unspecified,
                    $(wire::$name::$variant => Ok(Self::$variant)),+
                }
            }
        }
    };
}
use same_variants;
