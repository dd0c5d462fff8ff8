//! The template environment that transformers sets up, with bounds.
//!
//! Invariant: a template that renders in transformers renders the same here, but for the date, or fails by name.
//!
//! One thing cannot be bounded in minijinja, which lets nobody replace its operators: `~` and `+` on texts. A template
//! that doubles a text some thirty times uses up the memory, as it does in transformers.

use std::error::Error as _;

use jiff::civil::{DateTime, date};
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind};

use super::{bounds, json, methods};

/// Steps of one rendering. Llama 3.1's template takes about 60 a message.
const FUEL: u64 = 5_000_000;
/// What every template takes for now: the date that Llama 3.2's writes when it has no clock. With the real one a
/// text, and so a training run that is resumed, would depend on the day.
const NOW: DateTime = date(2024, 7, 26).at(0, 0, 0, 0);
/// Nesting of loops, calls and macros.
const RECURSION_MAX: usize = 100;
/// Most bytes of a template; the longest in use has some 20 kB.
const SOURCE_BYTES_MAX: usize = 1 << 20;

/// An environment that holds one template.
pub(super) fn with_template(name: &'static str, source: &str) -> Result<Environment<'static>, Error> {
    if source.len() > SOURCE_BYTES_MAX {
        let reason = format!("it has {} bytes, more than {SOURCE_BYTES_MAX}", source.len());
        return Err(Error::new(ErrorKind::SyntaxError, reason));
    }
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_unknown_method_callback(methods::call);
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    bounds::add_to(&mut environment);
    environment.add_template_owned(name, without_generation_tags(source))?;
    Ok(environment)
}

/// `strftime_now(format)`, of [`NOW`] in UTC.
fn strftime_now(format: &str) -> Result<String, Error> {
    NOW.to_zoned(TimeZone::UTC)
        .and_then(|now| jiff::fmt::strtime::format(format, &now))
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// What an error says, its causes with it.
pub(super) fn reason(error: &Error) -> String {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason.push_str(": ");
        reason.push_str(&cause.to_string());
        source = cause.source();
    }
    reason
}

fn raise_exception(message: &str) -> Result<(), Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// Replaces `{% generation %}`, which marks the assistant's tokens for transformers and renders nothing, by a block
/// that is always taken, so that the whitespace around it is trimmed alike.
fn without_generation_tags(source: &str) -> String {
    let mut replaced = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        replaced.push_str(before);
        replaced.push_str("{%");
        rest = after;
        let Some((tag, _)) = after.split_once("%}") else {
            continue;
        };
        let word = tag
            .trim_start_matches(['-', '+'])
            .trim_end_matches(['-', '+'])
            .trim();
        let block = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        replaced.push_str(&tag.replace(word, block));
        rest = &after[tag.len()..];
    }
    replaced.push_str(rest);
    replaced
}
