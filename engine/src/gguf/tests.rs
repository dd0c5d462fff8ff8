//! Tests of the GGUF reader, and a writer of small files for the tests of others.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// Writes GGUF files for tests.
#[derive(Default)]
pub(crate) struct Builder {
    n_metadata: u64,
    n_tensors: u64,
    metadata: Vec<u8>,
    infos: Vec<u8>,
    data: Vec<u8>,
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

impl Builder {
    fn key(&mut self, key: &str, type_id: u32) {
        self.n_metadata += 1;
        text(&mut self.metadata, key);
        self.metadata.extend(type_id.to_le_bytes());
    }

    pub(crate) fn u32(mut self, key: &str, value: u32) -> Self {
        self.key(key, 4);
        self.metadata.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn f32(mut self, key: &str, value: f32) -> Self {
        self.key(key, 6);
        self.metadata.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn flag(mut self, key: &str, value: bool) -> Self {
        self.key(key, 7);
        self.metadata.push(u8::from(value));
        self
    }

    pub(crate) fn string(mut self, key: &str, value: &str) -> Self {
        self.key(key, 8);
        text(&mut self.metadata, value);
        self
    }

    pub(crate) fn strings(mut self, key: &str, values: &[impl AsRef<str>]) -> Self {
        self.key(key, 9);
        self.metadata.extend(8u32.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        values
            .iter()
            .for_each(|value| text(&mut self.metadata, value.as_ref()));
        self
    }

    pub(crate) fn i32s(mut self, key: &str, values: &[i32]) -> Self {
        self.key(key, 9);
        self.metadata.extend(5u32.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        values
            .iter()
            .for_each(|value| self.metadata.extend(value.to_le_bytes()));
        self
    }

    pub(crate) fn f32s(mut self, key: &str, values: &[f32]) -> Self {
        self.key(key, 9);
        self.metadata.extend(6u32.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        values
            .iter()
            .for_each(|value| self.metadata.extend(value.to_le_bytes()));
        self
    }

    /// `shape` outermost first.
    pub(crate) fn tensor(mut self, name: &str, shape: &[usize], type_id: u32, bytes: &[u8]) -> Self {
        self.n_tensors += 1;
        text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        shape
            .iter()
            .rev()
            .for_each(|&dim| self.infos.extend((dim as u64).to_le_bytes()));
        self.infos.extend(type_id.to_le_bytes());
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
        self
    }

    pub(crate) fn f32_tensor(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, shape, 0, &bytes)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(self.n_tensors.to_le_bytes());
        bytes.extend(self.n_metadata.to_le_bytes());
        bytes.extend(&self.metadata);
        bytes.extend(&self.infos);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    pub(crate) fn open(&self) -> Result<GgufFile> {
        open(self.bytes())
    }
}

fn open(bytes: Vec<u8>) -> Result<GgufFile> {
    GgufFile::from_bytes(Path::new("test.gguf"), Arc::new(bytes))
}

fn small() -> Builder {
    Builder::default()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .f32("llama.rope.freq_base", 10_000.0)
        .flag("tokenizer.ggml.add_bos_token", false)
        .strings("tokenizer.ggml.tokens", &["a", "b"])
        .i32s("tokenizer.ggml.token_type", &[1, 3])
        .f32_tensor("norm.weight", &[3], &[1.0, 2.0, 3.0])
        .tensor("matrix.weight", &[2, 32], 8, &[7; 68])
}

/// What a refused file is refused for.
fn refusal(bytes: Vec<u8>) -> String {
    open(bytes).unwrap_err().to_string()
}

#[test]
fn a_small_file_is_read() {
    let file = small().open().unwrap();
    assert_eq!(file.string("general.architecture").unwrap(), Some("llama"));
    assert_eq!(file.unsigned("llama.block_count").unwrap(), Some(2));
    assert_eq!(file.flag("tokenizer.ggml.add_bos_token").unwrap(), Some(false));
    let tokens = file
        .array("tokenizer.ggml.tokens", "strings", Value::as_str)
        .unwrap();
    assert_eq!(tokens, Some(vec!["a", "b"]));
    let matrix = file.tensor("matrix.weight").unwrap();
    assert_eq!((matrix.shape.as_slice(), matrix.size), (&[2, 32][..], 68));
    assert_eq!(file.format("matrix.weight", matrix).unwrap(), Format::Q8_0);
    let all = file.bytes();
    assert_eq!((*all).as_ref()[matrix.offset..matrix.offset + 68], [7; 68]);
    assert!(
        file.unsigned("general.architecture")
            .unwrap_err()
            .to_string()
            .contains("found a string")
    );
    assert!(matches!(file.tensor("absent"), Err(Error::TensorMissing { .. })));
}

#[test]
fn a_truncated_file_is_refused_at_every_length() {
    let bytes = small().bytes();
    for len in 0..bytes.len() {
        assert!(
            open(bytes[..len].to_vec()).is_err(),
            "{len} of {} bytes",
            bytes.len()
        );
    }
}

#[test]
fn lies_are_named() {
    let mut bytes = small().bytes();
    bytes[0] = b'X';
    assert!(refusal(bytes).contains("GGUF"));

    let mut bytes = small().bytes();
    bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(refusal(bytes).contains("big-endian"));

    let mut bytes = small().bytes();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(refusal(bytes).contains("tensors"));

    let mut bytes = small().bytes();
    bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(open(bytes).is_err());

    let twice = small().f32_tensor("norm.weight", &[1], &[0.0]);
    assert!(refusal(twice.bytes()).contains("twice"));
    let huge = small().tensor("huge", &[usize::MAX, usize::MAX], 0, &[]);
    assert!(refusal(huge.bytes()).contains("does not fill"));
    let ragged = small().tensor("ragged", &[2, 31], 8, &[]);
    assert!(refusal(ragged.bytes()).contains("blocks of 32"));
    let unknown = small().tensor("unknown", &[1], 99, &[]);
    assert!(refusal(unknown.bytes()).contains("element type 99"));
    let beyond = small().tensor("beyond", &[1000], 0, &[0; 4]);
    assert!(refusal(beyond.bytes()).contains("reaches beyond"));
    let unaligned = small().u32("general.alignment", 24);
    assert!(refusal(unaligned.bytes()).contains("power of two"));
}

#[test]
fn overlapping_tensors_are_refused() {
    let mut builder = small()
        .f32_tensor("one", &[16], &[0.0; 16])
        .f32_tensor("two", &[16], &[0.0; 16]);
    let len = builder.infos.len();
    let last = u64::from_le_bytes(builder.infos[len - 8..].try_into().unwrap());
    builder.infos[len - 8..].copy_from_slice(&(last - 32).to_le_bytes());
    assert!(refusal(builder.bytes()).contains("overlap"));
}

#[test]
fn a_format_that_cannot_be_read_is_refused_when_asked_for() {
    let file = small().tensor("weight", &[1, 256], 16, &[0; 66]).open().unwrap();
    let error = file
        .format("weight", file.tensor("weight").unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("IQ2_XXS") && error.contains("IQ4_NL"), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = open(bytes);
    }

    #[test]
    fn no_mutation_makes_the_reader_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        words in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..2),
    ) {
        let mut bytes = small().bytes();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        for (place, value) in words {
            let place = place.index(bytes.len() - 8);
            bytes[place..place + 8].copy_from_slice(&value.to_le_bytes());
        }
        if let Ok(file) = open(bytes) {
            for name in file.names() {
                let tensor = file.tensor(name).unwrap();
                prop_assert!(tensor.offset + tensor.size <= (*file.bytes()).as_ref().len());
            }
            let _ = crate::config::ModelConfig::from_gguf(&file);
            let _ = crate::tokenizer::Tokenizer::from_gguf(&file);
        }
    }
}
