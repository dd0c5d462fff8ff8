//! `eval --ids` as a user gives it: a model without a tokenizer held against the numbers of another implementation.
//!
//! Invariant: the expected logits and losses were made by transformers (`tests/golden`), not by this program.

use std::fs;
use std::path::{Path, PathBuf};

use llamaduo_engine::safetensors::SafetensorsFile;
use llamaduo_tests::process::{self, Output, llamaduo};
use serde_json::{Value, json};

const TOLERANCE: f32 = 2e-5;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn tensor(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    SafetensorsFile::open(path).unwrap().f32_values(name).unwrap()
}

/// The token ids that a family's references were made of.
fn input_ids(family: &str) -> Vec<Vec<i64>> {
    let file = SafetensorsFile::open(&golden(family).join("reference.safetensors")).unwrap();
    let tensor = file.tensor("input_ids").unwrap();
    let (eights, _) = file.data(tensor).as_chunks::<8>();
    let ids: Vec<i64> = eights.iter().map(|&eight| i64::from_le_bytes(eight)).collect();
    ids.chunks(tensor.shape[1]).map(<[i64]>::to_vec).collect()
}

/// `eval --ids` of a golden model in a directory of its own.
struct Bench {
    directory: tempfile::TempDir,
    family: &'static str,
}

impl Bench {
    fn new(family: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory, family }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn eval(&self, rows: &Value, more: &[&str]) -> Output {
        fs::write(self.path("rows.json"), rows.to_string()).unwrap();
        let mut command = llamaduo();
        command
            .args(["eval", "-o", "json", "--ids", "rows.json", "--quant", "none"])
            .arg("--model")
            .arg(golden(self.family));
        process::run(command.args(more).current_dir(self.directory.path()))
    }

    fn measure(&self, rows: &Value, more: &[&str]) -> Value {
        let output = self.eval(rows, more);
        assert_eq!(output.code(), 0, "{}", output.stderr);
        serde_json::from_str(&output.stdout).unwrap()
    }
}

fn assert_close(ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len());
    for (place, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= TOLERANCE, "value {place}: {a}, expected {b}");
    }
}

#[test]
fn logits_and_loss_of_token_ids_are_those_of_transformers() {
    for family in ["llama_tied", "mistral"] {
        let bench = Bench::new(family);
        let rows = json!(input_ids(family));
        let reference = golden(family).join("reference.safetensors");
        let measured = bench.measure(&rows, &["--logits", "out.safetensors"]);
        let (shape, expected) = tensor(&reference, "logits");
        assert_eq!(
            measured["logits"],
            json!({"path": "out.safetensors", "shape": shape})
        );
        let (found, ours) = tensor(&bench.path("out.safetensors"), "logits");
        assert_eq!(found, shape);
        assert_close(&ours, &expected);
        assert_eq!(measured["rows"], 2);
        assert_eq!(measured["tokens"], 2 * (shape[1] - 1));

        let adapter = golden(family).join("adapter").display().to_string();
        let adapted = ["--adapter", &adapter, "--logits", "out.safetensors"];
        let with_adapter = bench.measure(&rows, &adapted);
        let (_, ours) = tensor(&bench.path("out.safetensors"), "logits");
        let reference = golden(family).join("adapter_reference.safetensors");
        assert_close(&ours, &tensor(&reference, "logits").1);
        assert_ne!(with_adapter["loss"], measured["loss"]);
        assert!(!bench.path("out.safetensors.partial").exists());
    }
}

#[test]
fn rows_of_different_lengths_are_filled_up_and_that_is_said() {
    let bench = Bench::new("llama_tied");
    let row = input_ids("llama_tied").remove(0);
    let rows = json!([row[..3], row[..1], row[..5]]);
    let output = bench.eval(&rows, &["--logits", "out.safetensors"]);
    assert_eq!(output.code(), 0, "{}", output.stderr);
    assert!(output.stderr.contains("NaN"), "{}", output.stderr);
    let (shape, ours) = tensor(&bench.path("out.safetensors"), "logits");
    assert_eq!(shape, [3, 5, 384]);
    let expected = tensor(&golden("llama_tied").join("reference.safetensors"), "logits").1;
    for (row, len) in ours.chunks(5 * 384).zip([3, 1, 5]) {
        let (said, filled) = row.split_at(len * 384);
        assert_close(said, &expected[..len * 384]);
        assert!(filled.iter().all(|value| value.is_nan()));
    }
    // One token predicts nothing, which is no loss of 0.
    let single = bench.measure(&json!([[5]]), &["--logits", "out.safetensors"]);
    assert_eq!(single.get("loss"), None);
    assert_eq!(
        (&single["quant"], &single["compute"]),
        (&json!("none"), &json!("f32"))
    );
    assert_eq!(tensor(&bench.path("out.safetensors"), "logits").0, [1, 1, 384]);
}

#[test]
fn ids_that_the_model_cannot_be_given_are_wrong_input() {
    let bench = Bench::new("llama_tied");
    for (rows, said) in [
        (json!([[1, 2], [3, -1]]), "rows.json, row 2, token 2: -1"),
        (
            json!([[1, 384]]),
            "row 1, token 2: the id 384 is beyond the model's vocabulary",
        ),
        (json!([[1, 2], []]), "row 2 holds no tokens"),
        (json!([vec![1; 100_000]]), "more than the"),
        (json!([]), "holds no rows"),
        (json!(7), "list of lists"),
        (json!([[5]]), "no row of rows.json has two tokens"),
    ] {
        let more: &[&str] = if rows == json!([[5]]) {
            &[]
        } else {
            &["--logits", "out.safetensors"]
        };
        let output = bench.eval(&rows, more);
        output.assert_refused(2, &[said]);
        assert!(!bench.path("out.safetensors").exists());
    }
    let unwritable = bench.eval(&json!([[1, 2]]), &["--logits", "nowhere/out.safetensors"]);
    assert_eq!(unwritable.code(), 1, "{}", unwritable.stderr);
    assert!(unwritable.stderr.contains("cannot write nowhere/out.safetensors"));
    let both = process::run(llamaduo().args(["eval", "--model", "m", "--ids", "a", "--data", "b"]));
    assert_eq!(both.code(), 2);
}
