//! The built-in filters that make much out of little, with bounds.
//!
//! Invariant: what one call of them makes has at most [`OUTPUT_BYTES_MAX`] bytes, or [`ITEMS_MAX`] lists.

use std::fmt::{self, Write};

use minijinja::value::{Kwargs, Rest, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};

use super::OUTPUT_BYTES_MAX;

/// Most lists that `batch` and `slice` make or fill up to; as many as a `range` may have.
const ITEMS_MAX: usize = 100_000;
/// Most digits of a width or precision in `format`.
const WIDTH_DIGITS_MAX: usize = 3;

/// Refuses arguments whose result would be too long.
type Check = fn(&[Value]) -> Result<(), Error>;

/// Puts bounds before the filters of an environment.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    let bounded: [(&'static str, Value, Check); 5] = [
        ("indent", Value::from_function(filters::indent), check_indent),
        ("format", Value::from_function(filters::format), check_format),
        ("replace", Value::from_function(filters::replace), check_replace),
        ("batch", Value::from_function(filters::batch), check_count),
        ("slice", Value::from_function(filters::slice), check_count),
    ];
    for (name, builtin, check) in bounded {
        let run = move |state: &mut State<'_, '_>, arguments: Rest<ValueOrKwargs>| {
            let arguments = arguments.into_values();
            check(&arguments)?;
            builtin.call(state, &arguments)
        };
        environment.add_filter(name, run);
    }
    environment.add_filter("join", join);
}

/// `value | join(joiner='', attribute=none)`.
fn join(
    value: &Value,
    joiner: Option<&str>,
    attribute: Option<&str>,
    options: Kwargs,
) -> Result<String, Error> {
    let joiner = match joiner {
        Some(joiner) => Some(joiner),
        None => options.get("d")?,
    };
    let attribute = match attribute {
        Some(attribute) => Some(attribute),
        None => options.get("attribute")?,
    };
    options.assert_all_used()?;
    if value.is_undefined() || value.is_none() {
        return Ok(String::new());
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        items.push(match attribute {
            Some(path) => path.split('.').try_fold(item, |item, name| item.get_attr(name))?,
            None => item,
        });
    }
    joined(items.into_iter(), joiner.unwrap_or_default())
}

/// The texts of `items` with `joiner` between them.
pub(super) fn joined(items: impl Iterator<Item = Value>, joiner: &str) -> Result<String, Error> {
    let mut text = BoundedText::default();
    for (index, item) in items.enumerate() {
        let separator = if index > 0 { joiner } else { "" };
        text.write_str(separator)
            .and_then(|()| text.value(&item))
            .map_err(|_| too_long("join"))?;
    }
    Ok(text.0)
}

/// Whether every `from` of a text of `len` bytes can be replaced by `to_len` bytes.
pub(super) fn check_replaced(len: usize, to_len: usize) -> Result<(), Error> {
    // An empty `from` stands before and after each character.
    within("replace", (len + 1).saturating_mul(to_len.max(1)))
}

fn check_replace(arguments: &[Value]) -> Result<(), Error> {
    let len = |index: usize| match arguments.get(index) {
        Some(argument) => text_len("replace", argument),
        None => Ok(0),
    };
    check_replaced(len(0)?, len(2)?)
}

fn check_indent(arguments: &[Value]) -> Result<(), Error> {
    let (Some(text), Some(last)) = (arguments.first(), arguments.last()) else {
        return Ok(());
    };
    let positional = arguments.get(1).and_then(Value::as_usize);
    let named = Kwargs::try_from(last.clone()).and_then(|options| options.get::<Option<usize>>("width"));
    let width = positional.or(named.ok().flatten()).unwrap_or(4);
    let n_lines = text.as_str().map_or(1, |text| 1 + text.matches('\n').count());
    let len = text_len("indent", text)?;
    within("indent", len.saturating_add(n_lines.saturating_mul(width)))
}

fn check_format(arguments: &[Value]) -> Result<(), Error> {
    let Some((Some(pattern), values)) = arguments
        .split_first()
        .map(|(pattern, values)| (pattern.as_str(), values))
    else {
        return Ok(());
    };
    let mut n_digits = 0;
    for character in pattern.chars() {
        n_digits = if character.is_ascii_digit() {
            n_digits + 1
        } else {
            0
        };
        // Digits outside of a conversion are no widths, but then the pattern is no format either.
        if n_digits > WIDTH_DIGITS_MAX && pattern.contains('%') {
            return Err(invalid(format!(
                "format with a number of more than {WIDTH_DIGITS_MAX} digits in `{}`",
                pattern.chars().take(40).collect::<String>()
            )));
        }
    }
    let mut longest = 0;
    for value in values {
        longest = longest.max(text_len("format", value)?);
    }
    let n_conversions = pattern.matches('%').count();
    let width = 2 * 10usize.pow(WIDTH_DIGITS_MAX as u32);
    let len = n_conversions.saturating_mul(longest.saturating_add(width));
    within("format", len.saturating_add(pattern.len()))
}

fn check_count(arguments: &[Value]) -> Result<(), Error> {
    match arguments.get(1).and_then(Value::as_usize) {
        Some(count) if count > ITEMS_MAX => Err(invalid(format!("a count of more than {ITEMS_MAX}"))),
        _ => Ok(()),
    }
}

/// Bytes of a value's text. Fails when it is too long itself.
fn text_len(filter: &str, value: &Value) -> Result<usize, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.len());
    }
    let mut text = BoundedText::default();
    text.value(value).map_err(|_| too_long(filter))?;
    Ok(text.0.len())
}

fn within(filter: &str, len: usize) -> Result<(), Error> {
    if len > OUTPUT_BYTES_MAX {
        return Err(too_long(filter));
    }
    Ok(())
}

fn too_long(filter: &str) -> Error {
    invalid(format!("{filter} may make more than {OUTPUT_BYTES_MAX} bytes"))
}

fn invalid(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// A text of at most [`OUTPUT_BYTES_MAX`] bytes.
#[derive(Default)]
struct BoundedText(String);

impl BoundedText {
    fn value(&mut self, value: &Value) -> fmt::Result {
        match value.as_str() {
            Some(text) => self.write_str(text),
            None => write!(self, "{value}"),
        }
    }
}

impl Write for BoundedText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > OUTPUT_BYTES_MAX {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}
