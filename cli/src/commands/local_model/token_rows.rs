//! `eval --ids`: a model on rows of token ids, so that anyone can hold it against any other implementation.
//!
//! Invariant: the file of logits is there whole or not at all, and is never held in memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use llamaduo_engine::{Adapter, EvalLoss, LocalModel, check_ids, evaluate_ids, safetensors, stream_logits};
use serde::Serialize;

use super::{OVER_ROWS, Told, loss_in_words, open, read};
use crate::args::Eval;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::model::Held;
use crate::output::Output;
use crate::progress::words::counted;

/// What a file of rows must hold.
const FORM: &str = "expected a list of lists of token ids, as [[1, 2, 3], [4, 5, 6]]";

/// The name of the tensor in the file.
const TENSOR: &str = "logits";

#[derive(Serialize)]
struct Measured {
    rows: usize,
    /// Absent: no row has two tokens, so none is predicted.
    #[serde(flatten)]
    loss: Option<EvalLoss>,
    /// Which tokens the loss is the mean of; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    over: Option<&'static str>,
    #[serde(flatten)]
    held: Held,
    /// Absent: not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<Written>,
}

/// The file of logits.
#[derive(Serialize)]
struct Written {
    path: PathBuf,
    /// Rows, tokens of the longest, vocabulary.
    shape: [usize; 3],
}

pub(super) fn eval(path: &Path, arguments: &Eval, output: &Output) -> Result<Exit> {
    let rows = read_rows(path)?;
    let n_predicted: usize = rows.iter().map(|row| row.len().saturating_sub(1)).sum();
    if n_predicted == 0 && arguments.logits.is_none() {
        return Err(Error::Usage(format!(
            "no row of {} has two tokens, so none is predicted and there is no loss; give longer rows, or ask for --logits",
            path.display()
        )));
    }
    let (model, adapter) = open(arguments, output)?;
    check_ids(model.config(), &rows).map_err(|error| refused(path, error))?;
    let loss = match n_predicted {
        0 => None,
        _ => {
            let mut told = Told::new("eval", output);
            let loss = evaluate_ids(&model, adapter.as_ref(), &rows, &mut |n_done, n| {
                told.tell(n_done, n)
            });
            told.end();
            Some(loss?)
        }
    };
    let logits = match &arguments.logits {
        Some(target) => Some(write_logits(target, &model, adapter.as_ref(), &rows, output)?),
        None => None,
    };
    let measured = Measured {
        rows: rows.len(),
        over: loss.map(|_| OVER_ROWS),
        loss,
        held: Held::from(&arguments.model),
        logits,
    };
    output.result(&measured, || in_words(&measured))?;
    Ok(Exit::Ok)
}

fn in_words(measured: &Measured) -> String {
    let loss = measured
        .loss
        .map(|loss| loss_in_words(loss, OVER_ROWS, measured.held));
    let mut lines: Vec<String> = loss.into_iter().collect();
    if let Some(Written { path, shape }) = &measured.logits {
        lines.push(format!("logits {shape:?} in {}", path.display()));
    }
    lines.join("\n")
}

/// The rows of a file; every id is a whole number, whether or not a model knows it.
fn read_rows(path: &Path) -> Result<Vec<Vec<u32>>> {
    let name = path.display();
    let rows: Vec<Vec<serde_json::Number>> = serde_json::from_str(&read(path)?)
        .map_err(|error| Error::Usage(format!("{name} holds no rows of token ids: {error}; {FORM}")))?;
    if rows.is_empty() {
        return Err(Error::Usage(format!("{name} holds no rows; {FORM}")));
    }
    let id = |row: usize, token: usize, number: &serde_json::Number| {
        let id = number.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| {
            Error::Usage(format!(
                "{name}, row {}, token {}: {number} is no token id; {FORM}",
                row + 1,
                token + 1
            ))
        })
    };
    let rows = rows.iter().enumerate().map(|(row, numbers)| {
        let numbered = numbers.iter().enumerate();
        numbered.map(|(token, number)| id(row, token, number)).collect()
    });
    rows.collect()
}

/// What the model cannot be given, with rows and tokens counted from 1 as people do.
fn refused(path: &Path, error: llamaduo_engine::Error) -> Error {
    let problem = match error {
        llamaduo_engine::Error::NoTokens { row } => format!("row {} holds no tokens; {FORM}", row + 1),
        llamaduo_engine::Error::TokenUnknown {
            row,
            token,
            id,
            vocab_size,
        } => format!(
            "row {}, token {}: the id {id} is beyond the model's vocabulary; expected 0 to {}",
            row + 1,
            token + 1,
            vocab_size.saturating_sub(1)
        ),
        llamaduo_engine::Error::RowTooLong {
            row,
            n_tokens,
            context_len,
        } => format!(
            "row {} has {n_tokens} tokens, more than the {context_len} of the model's context; shorten it or leave it out",
            row + 1
        ),
        error => return Error::Engine(error),
    };
    Error::Usage(format!("{}, {problem}", path.display()))
}

/// Writes `[rows, tokens of the longest, vocabulary]`, beside its place first, then renamed.
fn write_logits(
    target: &Path,
    model: &LocalModel,
    adapter: Option<&Adapter>,
    rows: &[Vec<u32>],
    output: &Output,
) -> Result<Written> {
    let lengths = || rows.iter().map(Vec::len);
    let (shortest, longest) = (lengths().min().unwrap_or(0), lengths().max().unwrap_or(0));
    let shape = [rows.len(), longest, model.config().vocab_size];
    let header = safetensors::header_of_one(TENSOR, &shape).ok_or_else(|| {
        Error::Usage(format!(
            "logits of the shape {shape:?} are more than a file can hold; give fewer or shorter rows"
        ))
    })?;
    let failed = |source| Error::Write {
        path: target.to_owned(),
        source,
    };
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = target.with_file_name(name);
    let mut told = Told::new("logits", output);
    let written = File::create(&partial).map_err(failed).and_then(|file| {
        let mut file = BufWriter::new(file);
        file.write_all(&header).map_err(failed)?;
        let n_total: usize = lengths().sum();
        let mut filler = Filler::new(longest * shape[2]);
        let mut n_values = 0;
        stream_logits(model, adapter, rows, &mut |row, values| {
            filler.begin(row, &mut file).map_err(failed)?;
            for value in values {
                file.write_all(&value.to_le_bytes()).map_err(failed)?;
            }
            filler.n_written += values.len();
            n_values += values.len();
            told.tell((n_values / shape[2].max(1)) as u64, n_total as u64);
            Ok::<(), Error>(())
        })?;
        filler.begin(rows.len(), &mut file).map_err(failed)?;
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)
    });
    told.end();
    let placed = written.and_then(|()| std::fs::rename(&partial, target).map_err(failed));
    if let Err(error) = placed {
        // What cannot be removed either is no worse than before.
        let _ = std::fs::remove_file(&partial);
        return Err(error);
    }
    if shortest < longest {
        output.line(&format!(
            "note: the rows have {shortest} to {}; behind the end of a shorter row the logits are NaN",
            counted(longest as u64, "token", "tokens")
        ));
    }
    Ok(Written {
        path: target.to_owned(),
        shape,
    })
}

/// Fills rows up to the length of the longest.
struct Filler {
    row: usize,
    n_written: usize,
    n_full: usize,
}

impl Filler {
    /// For rows of `n_full` values.
    fn new(n_full: usize) -> Self {
        Self {
            row: 0,
            n_written: 0,
            n_full,
        }
    }

    /// Ends all rows before `row`.
    fn begin(&mut self, row: usize, file: &mut impl Write) -> std::io::Result<()> {
        while self.row < row {
            for _ in self.n_written..self.n_full {
                file.write_all(&f32::NAN.to_le_bytes())?;
            }
            (self.row, self.n_written) = (self.row + 1, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_holds_no_rows_is_named_with_the_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows.json");
        for (text, said) in [
            ("", "no rows of token ids"),
            ("[]", "holds no rows"),
            ("[1, 2]", "expected a list of lists"),
            ("{\"a\": 1}", "expected a list of lists"),
            ("[[1], [2, \"3\"]]", "expected a list of lists"),
            ("[[1], [2, -3]]", "row 2, token 2: -3 is no token id"),
            ("[[1.5]]", "row 1, token 1: 1.5 is no token id"),
            ("[[4294967296]]", "row 1, token 1: 4294967296 is no token id"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read_rows(&path).unwrap_err();
            assert!(matches!(error, Error::Usage(_)), "{error:?}");
            let words = error.to_string();
            assert!(words.contains(said) && words.contains("rows.json"), "{words}");
        }
        std::fs::write(&path, "[[1, 2], []]").unwrap();
        assert_eq!(read_rows(&path).unwrap(), [vec![1, 2], vec![]]);
    }

    #[test]
    fn rows_are_filled_up_to_the_longest() {
        let mut filler = Filler::new(2);
        let mut file = Vec::new();
        filler.n_written = 1;
        filler.begin(0, &mut file).unwrap();
        assert!(file.is_empty());
        filler.begin(3, &mut file).unwrap();
        assert_eq!(file, f32::NAN.to_le_bytes().repeat(5));
    }
}
