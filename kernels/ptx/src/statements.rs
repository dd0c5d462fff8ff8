//! PTX text as a list of statements with their lines.
//!
//! Invariant: comments are gone, white space is single, and braces that open or close a scope stand alone.

/// A piece of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    /// Line of its first character, from 1.
    pub(crate) line: u32,
    pub(crate) kind: StatementKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StatementKind {
    /// Up to a semicolon, or the head of a function up to its brace.
    Text(String),
    /// `name:`.
    Label(String),
    Open,
    Close,
}

/// Splits `source`. A brace within a statement (a vector, an initialiser) belongs to it.
pub(crate) fn split(source: &str) -> Vec<Statement> {
    let mut found = Vec::new();
    let mut text = String::new();
    let mut first_line = 0;
    for (index, line) in source.lines().enumerate() {
        let line_number = index as u32 + 1;
        let code = line.split("//").next().unwrap_or_default();
        // Directives that end with their line.
        let trimmed = code.trim();
        if text.is_empty()
            && [".version", ".target", ".address_size", ".file ", ".loc "]
                .iter()
                .any(|d| trimmed.starts_with(d))
        {
            continue;
        }
        for character in code.chars().chain(['\n']) {
            if text.is_empty() {
                first_line = line_number;
            }
            let at_rest = text.is_empty() || is_head(&text);
            let kind = match character {
                ';' => StatementKind::Text(std::mem::take(&mut text).trim().to_owned()),
                ':' if is_label(&text) => StatementKind::Label(std::mem::take(&mut text).trim().to_owned()),
                '{' if at_rest => {
                    if !text.is_empty() {
                        let head = std::mem::take(&mut text).trim().to_owned();
                        found.push(Statement {
                            line: first_line,
                            kind: StatementKind::Text(head),
                        });
                    }
                    StatementKind::Open
                }
                '}' if text.is_empty() => StatementKind::Close,
                blank if blank.is_whitespace() => {
                    if !text.is_empty() && !text.ends_with(' ') {
                        text.push(' ');
                    }
                    continue;
                }
                other => {
                    text.push(other);
                    continue;
                }
            };
            if kind != StatementKind::Text(String::new()) {
                found.push(Statement {
                    line: first_line,
                    kind,
                });
            }
        }
    }
    if !text.trim().is_empty() {
        found.push(Statement {
            line: first_line,
            kind: StatementKind::Text(text.trim().to_owned()),
        });
    }
    found
}

/// Whether `text` is the head of a function, whose body a brace opens.
fn is_head(text: &str) -> bool {
    text.starts_with('.') && text.split(' ').any(|word| word == ".entry" || word == ".func")
}

fn is_label(text: &str) -> bool {
    let name = text.trim();
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '$')
}

/// The parts of `text` between commas outside of braces and brackets.
pub(crate) fn split_operands(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut begin) = (0, 0);
    for (index, character) in text.char_indices() {
        match character {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[begin..index].trim());
                begin = index + 1;
            }
            _ => {}
        }
    }
    if !text[begin..].trim().is_empty() {
        parts.push(text[begin..].trim());
    }
    parts
}
