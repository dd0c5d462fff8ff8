//! JSON lines in and out: one value a line, every error names its line.
//!
//! Invariant: a line number is that of the file, blank lines counted.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

/// `items`, one a line, each line closed by a newline.
pub fn write<'a, T: Serialize + 'a>(items: impl IntoIterator<Item = &'a T>) -> Result<String, Error> {
    let mut text = String::new();
    for item in items {
        let line = serde_json::to_string(item).map_err(|source| Error::Encode {
            what: "a row",
            source,
        })?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

/// The values of `text`, which `name` holds. Blank lines are passed over.
pub fn read<T: DeserializeOwned>(name: &str, text: &str) -> Result<Vec<T>, Error> {
    let rows = read_lines(name, text, "a row as this program writes it")?;
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// The same with the line of each, from 1, for rows that must look as `expected` says.
pub fn read_lines<T: DeserializeOwned>(
    name: &str,
    text: &str,
    expected: &'static str,
) -> Result<Vec<(u64, T)>, Error> {
    let lines = (1..).zip(text.lines()).filter(|(_, row)| !row.trim().is_empty());
    lines
        .map(|(line, row)| match serde_json::from_str(row) {
            Ok(value) => Ok((line, value)),
            Err(error) => Err(Error::Line {
                name: name.to_owned(),
                line,
                problem: in_row(&error),
                expected,
            }),
        })
        .collect()
}

/// What is wrong with one row. The parser counts lines inside it, which would read as a second line number.
pub(crate) fn in_row(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let words = message.split(" at line ").next().unwrap_or(&message);
    match error.column() {
        0 => words.to_owned(),
        column => format!("{words}, column {column}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_row_is_named_by_its_line_in_the_file_alone() {
        let rows: Vec<(u64, u8)> = read_lines("f", "1\n\n3\n", "a number").unwrap();
        assert_eq!(rows, [(1, 1), (3, 3)]);
        let error = read_lines::<u8>("f", "1\n\n{\n", "a number").unwrap_err();
        assert!(
            error.to_string().starts_with("f, line 3: ")
                && error.to_string().ends_with("; expected a number"),
            "{error}"
        );
        assert_eq!(error.to_string().matches("line").count(), 1, "{error}");
    }
}
