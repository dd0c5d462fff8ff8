//! Tests of exported files as this engine reads them back; `tests/it/export.rs` has other programs read them.

mod texts;

use std::path::{Path, PathBuf};

use super::encode::encode;
use super::*;
use crate::gguf::GgufFile;
use crate::gguf::write::Header;
use crate::safetensors::SafetensorsFile;
use crate::testing::{directory_with_text, golden};
use crate::weights::TensorName;

const NF4: BaseQuant = BaseQuant::Nf4 { double: true };
/// Of logits of some units: sums in another order, and for Llama 3 a rotation divided by another rounding.
const EXACT: f64 = 2e-4;

fn adapter_of(family: &str, model: &Path) -> Adapter {
    peft::load(
        &golden(family).join("adapter"),
        &ModelFiles::open(model).unwrap().config,
    )
    .unwrap()
}

fn request<'a>(model: &'a Path, adapter: Option<&'a Adapter>, target: Target, out: &'a Path) -> Request<'a> {
    Request {
        model,
        base_name: "golden",
        quant: NF4,
        compute: llamaduo_kernels::Compute::default(),
        adapter,
        target,
        out,
        conversations: &[],
    }
}

fn run(request: &Request<'_>) -> Exported {
    export(request, &mut |_| {}).unwrap()
}

fn refusal(request: &Request<'_>) -> String {
    export(request, &mut |_| {}).unwrap_err().to_string()
}

#[test]
fn values_are_stored_as_the_reference_writer_stores_them() {
    let file = SafetensorsFile::open(&golden("quant/stored.safetensors")).unwrap();
    let values = file.f32_values("values").unwrap().1;
    for (name, stored) in [
        ("F16", StoredType::F16),
        ("BF16", StoredType::Bf16),
        ("Q8_0", StoredType::Q8_0),
    ] {
        let mut bytes = Vec::new();
        encode("values", stored.format_of_rows(32), &values, &mut bytes).unwrap();
        let expected = file.data(file.tensor(&format!("{name}.bytes")).unwrap());
        assert!(bytes == expected, "{name}");
    }
    let refused = |format, value| {
        encode("x", format, &[value; 32], &mut Vec::new())
            .unwrap_err()
            .to_string()
    };
    use llamaduo_kernels::Format::{Bf16, F16, Q8_0};
    assert!(refused(F16, 1e5).contains("--type bf16"));
    assert!(refused(Q8_0, -1e5).contains("--type bf16"));
    assert!(refused(Bf16, f32::NAN).contains("finite"));
    assert_eq!(
        StoredType::Q8_0.format_of_rows(33),
        F16,
        "rows that do not fill blocks"
    );
}

#[test]
fn headers_are_read_as_they_were_written() {
    let mut header = Header::default();
    header.u32("a.u32", 7);
    header.f32("a.f32", 0.5);
    header.flag("a.flag", true);
    header.string("a.string", "é");
    header.strings("a.strings", &["x", ""]);
    header.i32s("a.i32s", [-1, 2].into_iter());
    header.f32s("a.f32s", &[1.5]);
    assert_eq!(
        header.tensor("odd", &[3, 3], llamaduo_kernels::Format::F16),
        Some(18)
    );
    assert_eq!(
        header.tensor("even", &[2, 32], llamaduo_kernels::Format::Q8_0),
        Some(68)
    );
    assert_eq!(
        header.tensor("no", &[2, 33], llamaduo_kernels::Format::Q8_0),
        None
    );
    let mut bytes = header.to_bytes();
    let start = bytes.len();
    bytes.resize(start + 32 + 96, 1);
    let file = GgufFile::from_bytes(Path::new("x.gguf"), std::sync::Arc::new(bytes)).unwrap();
    assert_eq!(
        (file.unsigned("a.u32").unwrap(), file.float("a.f32").unwrap()),
        (Some(7), Some(0.5))
    );
    assert_eq!(
        (file.flag("a.flag").unwrap(), file.string("a.string").unwrap()),
        (Some(true), Some("é"))
    );
    let tensor = |name: &str| file.tensor(name).unwrap().clone();
    assert_eq!(
        (tensor("odd").shape, tensor("odd").offset - start),
        (vec![3, 3], 0)
    );
    assert_eq!(
        (tensor("even").shape, tensor("even").offset - start),
        (vec![2, 32], 32)
    );
    // Copied entries keep their bytes.
    let mut copy = Header::default();
    file.written_metadata()
        .for_each(|(key, value)| copy.written(key, value));
    let copied = copy.to_bytes();
    let again = GgufFile::from_bytes(Path::new("y.gguf"), std::sync::Arc::new(copied)).unwrap();
    assert_eq!(again.value("a.i32s"), file.value("a.i32s"));
    assert_eq!(again.value("a.strings"), file.value("a.strings"));
}

#[test]
fn every_tensor_of_a_checkpoint_has_a_name_to_be_exported_by() {
    let entries = std::fs::read_dir(golden(""))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut n_models = 0;
    for path in entries.filter(|path| path.join("model.safetensors").is_file()) {
        let config = ModelFiles::open(&path).unwrap().config;
        let file = SafetensorsFile::open(&path.join("model.safetensors")).unwrap();
        let mut named: Vec<String> = TensorName::all(&config)
            .iter()
            .map(|name| name.hugging_face())
            .collect();
        named.sort_unstable();
        // bitsandbytes puts parts of a quantized weight beside it.
        let is_part = |name: &&str| name.contains(".weight.");
        let held: Vec<String> = file
            .names()
            .filter(|name| !is_part(name))
            .map(str::to_owned)
            .collect();
        assert_eq!(named, held, "{}", path.display());
        n_models += 1;
    }
    assert!(n_models >= 3);
}

/// How many bytes were exported; their logits and their likelihoods differ by `tolerance` at most.
fn n_bytes_if_close(request: &Request<'_>, family: &str, tolerance: f64) -> u64 {
    let exported = run(request);
    let difference = exported.difference.unwrap();
    let told = format!("{family} {:?}: {difference:?}", request.target);
    println!("{told}");
    assert!(difference.positions > 32, "{told}");
    assert!(difference.logits_max <= tolerance, "{told}");
    assert!(difference.kl_mean <= tolerance, "{told}");
    exported.bytes
}

#[test]
fn merged_models_answer_as_base_and_adapter_do_in_every_format_and_back() {
    for family in [
        "llama_tied",
        "llama3",
        "llama_bf16_sharded",
        "mistral",
        "mistral_window",
        "gemma",
        "gemma3",
        "qwen2",
        "qwen3",
    ] {
        check_merged(family);
    }
}

fn check_merged(family: &str) {
    let model = directory_with_text(family);
    let adapter = adapter_of(family, model.path());
    let root = tempfile::tempdir().unwrap();
    let place = |name: &str| root.path().join(name);
    let merged = |model: &Path, target, out: &Path, tolerance| {
        n_bytes_if_close(&request(model, Some(&adapter), target, out), family, tolerance)
    };
    let converted = |model: &Path, target, out: &Path| {
        let request = Request {
            quant: BaseQuant::None,
            ..request(model, None, target, out)
        };
        n_bytes_if_close(&request, family, EXACT)
    };
    let (to_gguf, to_hf) = (
        Target::Gguf(StoredType::F32),
        Target::Safetensors(StoredType::F32),
    );
    let (gguf, hf) = (place("a.gguf"), place("hf"));
    let n_bytes = merged(model.path(), to_gguf, &gguf, EXACT);
    assert_eq!(std::fs::metadata(&gguf).unwrap().len(), n_bytes);
    // From GGUF to a checkpoint and back: names, shapes, the order of rows and all settings both ways.
    converted(&gguf, to_hf, &hf);
    converted(&hf, to_gguf, &place("b.gguf"));
    merged(model.path(), to_hf, &place("hf2"), EXACT);
    // A GGUF file as the base, whose rows are ordered otherwise.
    merged(&gguf, to_gguf, &place("c.gguf"), EXACT);
    // Rounded: still close, and not by accident the exact one.
    for stored in [StoredType::F16, StoredType::Bf16, StoredType::Q8_0] {
        merged(model.path(), Target::Gguf(stored), &place("d.gguf"), 0.3);
    }
    let same = |other: &str| std::fs::read(place(other)).unwrap() == std::fs::read(&gguf).unwrap();
    assert!(!same("c.gguf"), "merged twice");
    let (ours, theirs) = (
        ModelFiles::open(&gguf).unwrap(),
        ModelFiles::open(model.path()).unwrap(),
    );
    assert_eq!(ours.config.eos, theirs.config.eos);
    assert_eq!(ours.config.windows, theirs.config.windows, "{family}");
}

#[test]
fn the_report_tells_a_model_that_answers_otherwise() {
    let model = directory_with_text("llama_tied");
    let adapter = adapter_of("llama_tied", model.path());
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("lora.gguf");
    let exported = run(&request(model.path(), Some(&adapter), Target::GgufLora, &out));
    // The base's own values under the adapter instead of NF4: measurably another model.
    let difference = exported.difference.unwrap();
    assert!(
        difference.logits_max > 1e-2 && difference.kl_mean > 1e-6,
        "{difference:?}"
    );
    let plain = Request {
        quant: BaseQuant::None,
        ..request(model.path(), Some(&adapter), Target::GgufLora, &out)
    };
    assert_eq!(run(&plain).difference, None);
}

#[test]
fn a_lora_file_holds_the_pairs_in_the_order_of_the_bases_rows() {
    let model = directory_with_text("llama3");
    let adapter = adapter_of("llama3", model.path());
    let config = ModelFiles::open(model.path()).unwrap().config;
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("lora.gguf");
    run(&request(model.path(), Some(&adapter), Target::GgufLora, &out));
    let file = GgufFile::open(&out).unwrap();
    assert_eq!(file.string("general.architecture").unwrap(), Some("llama"));
    assert_eq!(file.string("general.type").unwrap(), Some("adapter"));
    assert_eq!(file.string("adapter.type").unwrap(), Some("lora"));
    let alpha = file.float("adapter.lora.alpha").unwrap().unwrap();
    assert_eq!(alpha as f32, adapter.config().alpha);
    assert_eq!(file.names().count(), 2 * adapter.layout().slots().count());
    let values = |name: &str, shape: &[usize]| {
        let tensor = file.tensor(name).unwrap();
        assert_eq!(tensor.shape, shape, "{name}");
        let bytes = file.bytes();
        let bytes = &(*bytes).as_ref()[tensor.offset..tensor.offset + tensor.size];
        crate::weights::floats(bytes, llamaduo_kernels::Format::F32)
    };
    for (layer, linear, slot) in adapter.layout().slots() {
        let base = TensorName::Layer(layer, linear.tensor()).gguf();
        let params = adapter.params();
        let a = values(&format!("{base}.lora_a"), &[slot.rank, slot.n_in]);
        assert_eq!(a, params[slot.a_offset..slot.b_offset]);
        let b = values(&format!("{base}.lora_b"), &[slot.n_out, slot.rank]);
        let b_end = slot.b_offset + slot.n_out * slot.rank;
        let ours = &params[slot.b_offset..b_end];
        let half = config.heads.head_dim / 2;
        match linear.module() {
            // Row 1 in the file is the one that row 0 pairs with.
            "q_proj" | "k_proj" => {
                assert_eq!(
                    b[slot.rank..2 * slot.rank],
                    ours[half * slot.rank..(half + 1) * slot.rank]
                )
            }
            _ => assert_eq!(b, ours, "{base}"),
        }
    }
}

#[test]
fn an_adapter_survives_peft_and_nothing_is_left_of_a_failed_export() {
    let model = directory_with_text("mistral");
    let adapter = adapter_of("mistral", model.path());
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("peft");
    run(&request(model.path(), Some(&adapter), Target::Peft, &out));
    let config = ModelFiles::open(model.path()).unwrap().config;
    assert_eq!(peft::load(&out, &config).unwrap().params(), adapter.params());
    // Into a directory that is there: what is ours is replaced, what is not is kept.
    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    std::fs::write(out.join(peft::TENSORS_FILE), "old").unwrap();
    run(&request(model.path(), Some(&adapter), Target::Peft, &out));
    assert_eq!(peft::load(&out, &config).unwrap().params(), adapter.params());
    assert_eq!(std::fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");

    let other = directory_with_text("llama_tied");
    let gguf = root.path().join("x.gguf");
    let refused = refusal(&request(
        other.path(),
        Some(&adapter),
        Target::Gguf(StoredType::F16),
        &gguf,
    ));
    assert!(refused.contains("does not fit"), "{refused}");
    let refused = refusal(&request(
        model.path(),
        None,
        Target::Safetensors(StoredType::Q8_0),
        &root.path().join("hf"),
    ));
    assert!(refused.contains("bf16"), "{refused}");
    assert!(
        refusal(&request(model.path(), None, Target::Peft, &root.path().join("p"))).contains("--adapter")
    );
    // No tokenizer at all.
    let bare = golden("mistral");
    let refused = refusal(&request(&bare, None, Target::Gguf(StoredType::F16), &gguf));
    assert!(refused.contains("no tokenizer"), "{refused}");
    let left: Vec<PathBuf> = std::fs::read_dir(root.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(left, [out]);
}

#[test]
fn a_directory_for_ollama_names_its_files_and_what_ends_an_answer() {
    let model = directory_with_text("llama_tied");
    let adapter = adapter_of("llama_tied", model.path());
    let root = tempfile::tempdir().unwrap();
    for separate_adapter in [false, true] {
        let out = root.path().join(separate_adapter.to_string());
        let target = Target::Ollama {
            stored: StoredType::F32,
            separate_adapter,
        };
        let difference = run(&request(model.path(), Some(&adapter), target, &out))
            .difference
            .unwrap();
        assert!(difference.logits_max <= EXACT, "{difference:?}");
        let text = std::fs::read_to_string(out.join("Modelfile")).unwrap();
        let (from, named) = match separate_adapter {
            true => (
                "FROM ./base.gguf\nADAPTER ./adapter.gguf\n",
                ["base.gguf", "adapter.gguf"],
            ),
            false => ("FROM ./model.gguf\nTEMPLATE", ["model.gguf", "Modelfile"]),
        };
        assert!(text.starts_with(from), "{text}");
        assert!(named.iter().all(|name| out.join(name).is_file()));
        assert!(
            text.contains("\"\"\"{{- $before") && text.contains("PARAMETER stop \"<|im_end|>\"\n"),
            "{text}"
        );
        assert_eq!(text.matches("PARAMETER stop").count(), 1, "{text}");
    }
}
