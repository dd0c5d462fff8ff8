//! Tests of the safetensors reader and writer.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn open(bytes: Vec<u8>) -> Result<SafetensorsFile> {
    SafetensorsFile::from_bytes(Path::new("test.safetensors"), Arc::new(bytes))
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn small() -> Vec<u8> {
    serialize(&[
        Named {
            name: "b",
            shape: &[2, 2],
            values: &[1.0, -2.0, 3.5, 0.0],
        },
        Named {
            name: "a",
            shape: &[1],
            values: &[f32::MIN_POSITIVE],
        },
        Named {
            name: "empty",
            shape: &[0, 4],
            values: &[],
        },
    ])
}

#[test]
fn what_is_written_is_read() {
    let bytes = small();
    let file = open(bytes.clone()).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b", "empty"]);
    assert_eq!(
        file.f32_values("b").unwrap(),
        (vec![2, 2], vec![1.0, -2.0, 3.5, 0.0])
    );
    assert_eq!(file.f32_values("empty").unwrap(), (vec![0, 4], Vec::new()));
    assert_eq!(file.metadata()["format"], "pt");
    assert_eq!(file.header().len() % 8, 0);
    let reversed = serialize(&[
        Named {
            name: "empty",
            shape: &[0, 4],
            values: &[],
        },
        Named {
            name: "a",
            shape: &[1],
            values: &[f32::MIN_POSITIVE],
        },
        Named {
            name: "b",
            shape: &[2, 2],
            values: &[1.0, -2.0, 3.5, 0.0],
        },
    ]);
    assert_eq!(reversed, bytes);
}

#[test]
fn a_file_written_piece_by_piece_is_that_of_one_go() {
    let values = [1.0, 2.0, -3.0, f32::NAN, 0.5, 6.0];
    let mut bytes = header_of_one("logits", &[1, 3, 2]).unwrap();
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let (name, shape) = ("logits", &[1, 3, 2][..]);
    assert_eq!(
        bytes,
        serialize(&[Named {
            name,
            shape,
            values: &values
        }])
    );
    assert_eq!(header_of_one("logits", &[usize::MAX, 3, 2]), None);
}

#[test]
fn files_of_the_reference_implementation_are_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llama_tied");
    let file = SafetensorsFile::open(&path.join("reference.safetensors")).unwrap();
    let (shape, ids) = file.i64_values("input_ids").unwrap();
    assert_eq!(shape, [2, 40]);
    assert!(ids.iter().all(|id| (3..384).contains(id)));
    assert_eq!(file.f32_values("logits").unwrap().0, [2, 40, 384]);
    assert!(
        file.f32_values("input_ids")
            .unwrap_err()
            .to_string()
            .contains("stored as I64")
    );
}

#[test]
fn half_precision_is_widened() {
    let header = r#"{"h":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]}}"#;
    let file = open(with_header(header, &[0x00, 0x3c, 0x00, 0xc0, 0x80, 0x3f])).unwrap();
    assert_eq!(file.f32_values("h").unwrap().1, [1.0, -2.0]);
    assert_eq!(file.f32_values("b").unwrap().1, [1.0]);
}

#[test]
fn a_truncated_file_is_refused_at_every_length() {
    let bytes = small();
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
    for (header, data_len, expected) in [
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            4,
            "claims 4 bytes",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            8,
            "tensors end at",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            8,
            "begins at",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
            8,
            "claims bytes 4..0",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,40]}}"#,
            8,
            "claims bytes 0..40",
        ),
        (
            r#"{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}"#,
            4,
            "unknown type",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
            4,
            "in its header",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,16]}}"#,
            16,
            "claims 16 bytes",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
            1,
            "twice",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
            3,
            "begins at",
        ),
    ] {
        let error = open(with_header(header, &vec![0; data_len]))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = open(u64::MAX.to_le_bytes().to_vec()).unwrap_err().to_string();
    assert!(error.contains("header claims"), "{error}");
}

mod checkpoint {
    use super::*;

    fn write(directory: &Path, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(directory.join(name), contents).unwrap();
    }

    #[test]
    fn shards_are_found_by_their_index() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        assert!(Shards::open(at).unwrap().is_none());
        write(
            at,
            "model-1.safetensors",
            serialize(&[Named {
                name: "a",
                shape: &[1],
                values: &[1.0],
            }]),
        );
        write(
            at,
            "model-2.safetensors",
            serialize(&[Named {
                name: "b",
                shape: &[1],
                values: &[2.0],
            }]),
        );
        let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
        write(at, "model.safetensors.index.json", index);
        let shards = Shards::open(at).unwrap().unwrap();
        let (file, _) = shards.tensor("b").unwrap();
        assert_eq!(file.f32_values("b").unwrap().1, [2.0]);
        assert!(matches!(shards.tensor("c"), Err(Error::TensorMissing { .. })));
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        write(
            at,
            "model-1.safetensors",
            serialize(&[Named {
                name: "a",
                shape: &[1],
                values: &[1.0],
            }]),
        );
        write(
            at,
            "model-2.safetensors",
            serialize(&[Named {
                name: "b",
                shape: &[1],
                values: &[2.0],
            }]),
        );
        for (index, expected) in [
            (
                r#"{"weight_map":{"a":"../model-1.safetensors"}}"#,
                "name of a file beside it",
            ),
            (r#"{"weight_map":{"c":"model-1.safetensors"}}"#, "`c` is missing"),
            (
                r#"{"weight_map":{"b":"model-1.safetensors","a":"model-2.safetensors"}}"#,
                "is not in",
            ),
            (
                r#"{"weight_map":{"a":"absent.safetensors"}}"#,
                "absent.safetensors",
            ),
            (r#"{"weights":{}}"#, "index.json"),
        ] {
            write(at, "model.safetensors.index.json", index);
            let error = Shards::open(at).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        write(
            at,
            "model-2.safetensors",
            serialize(&[Named {
                name: "a",
                shape: &[1],
                values: &[2.0],
            }]),
        );
        let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
        write(at, "model.safetensors.index.json", index);
        assert!(
            Shards::open(at)
                .unwrap_err()
                .to_string()
                .contains("another shard")
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = open(bytes);
    }

    #[test]
    fn no_mutation_makes_the_reader_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = small();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Ok(file) = open(bytes) {
            for name in file.names() {
                let _ = file.f32_values(name);
            }
        }
    }
}
