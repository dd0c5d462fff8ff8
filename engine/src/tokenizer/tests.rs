//! Tests of tokenizers built from small vocabularies.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::gguf::GgufFile;
use crate::gguf::tests::Builder;

/// GPT-2's table: bytes that print stand for themselves, the others for characters from U+0100 on.
fn byte_alphabet() -> Vec<String> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte).to_string(),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap().to_string()
            }
        })
        .collect()
}

const MERGES: [&str; 6] = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2"];

/// All bytes, six merged tokens, then `<|im_start|>` (262), `<|im_end|>` (263) and a plain added token (264).
fn byte_level(pre: &str) -> Builder {
    let mut tokens = byte_alphabet();
    tokens.extend(MERGES.map(|merge| merge.replace(' ', "")));
    tokens.extend(["<|im_start|>", "<|im_end|>", "<tool>"].map(str::to_owned));
    let mut kinds = vec![1; tokens.len()];
    kinds[262..].copy_from_slice(&[3, 3, 4]);
    Builder::default()
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", pre)
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strings("tokenizer.ggml.merges", &MERGES)
        .u32("tokenizer.ggml.bos_token_id", 262)
        .u32("tokenizer.ggml.eos_token_id", 263)
}

/// Pieces of SentencePiece with scores, then bytes.
fn sentence_piece() -> Builder {
    let pieces = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
        ("▁", -9.0),
        ("h", -8.0),
        ("i", -7.0),
    ];
    let pieces = pieces
        .into_iter()
        .chain([("hi", -1.0), ("▁hi", -2.0), ("▁h", -3.0)]);
    let (mut tokens, mut scores): (Vec<String>, Vec<f32>) =
        pieces.map(|(piece, score)| (piece.to_owned(), score)).unzip();
    let mut kinds = vec![2, 3, 3, 1, 1, 1, 1, 1, 1];
    for byte in 0..=255 {
        tokens.push(format!("<0x{byte:02X}>"));
        scores.push(0.0);
        kinds.push(6);
    }
    Builder::default()
        .string("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &tokens)
        .f32s("tokenizer.ggml.scores", &scores)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .u32("tokenizer.ggml.unknown_token_id", 0)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
}

fn build(builder: &Builder) -> Tokenizer {
    Tokenizer::from_gguf(&builder.open().unwrap()).unwrap().unwrap()
}

fn texts(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer
        .encode(text)
        .unwrap()
        .into_iter()
        .map(|id| tokenizer.token_text(id).unwrap())
        .collect()
}

/// The text of `ids` given one by one, in pieces.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut decoder = StreamDecoder::default();
    let mut pieces: Vec<String> = ids
        .iter()
        .map(|&id| decoder.push(tokenizer, id).unwrap())
        .collect();
    pieces.push(decoder.finish(tokenizer).unwrap());
    pieces
}

#[test]
fn byte_level_vocabularies_merge_and_split() {
    let smollm = build(&byte_level("smollm"));
    assert_eq!(texts(&smollm, "hello world"), ["hello", "Ġw", "o", "r", "l", "d"]);
    assert_eq!(texts(&smollm, "12"), ["1", "2"], "each digit stands alone");
    assert_eq!(texts(&build(&byte_level("gpt-2")), "12"), ["12"]);
    assert_eq!(texts(&build(&byte_level("llama-bpe")), "12"), ["12"]);
    assert_eq!(texts(&build(&byte_level("qwen2")), "12"), ["1", "2"]);
    assert_eq!((smollm.bos(), smollm.eos()), (Some(262), &[263][..]));
    assert_eq!(smollm.vocab_size(), 265);
}

#[test]
fn special_tokens_are_recognised_and_not_spoken() {
    let tokenizer = build(&byte_level("smollm"));
    let ids = tokenizer.encode("<|im_start|>hello<|im_end|><tool>").unwrap();
    assert_eq!(ids, [262, 259, 263, 264]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "hello<tool>");
    assert_eq!(tokenizer.decode(&[259, 4_000_000]).unwrap(), "hello");
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(263));
    let special: Vec<_> = tokenizer.special_texts();
    assert!(special.contains(&("bos_token", "<|im_start|>".to_owned())));
}

#[test]
fn an_image_token_without_a_row_is_spelled() {
    let mut tokenizer = build(&byte_level("smollm"));
    let text = "<image_soft_token>a<image_soft_token><|im_end|>";
    let image = tokenizers::AddedToken::from("<image_soft_token>", true);
    tokenizer.inner.add_special_tokens([image]).unwrap();
    tokenizer.vocab_size += 1;
    assert_eq!(tokenizer.encode(text).unwrap(), [265, 97, 265, 263]);

    let mut config = crate::testing::golden_model("llama_tied").config;
    config.vocab_size = 265;
    tokenizer.leave_out_images(&config);
    assert_eq!(
        tokenizer.vocab_size(),
        266,
        "of another family it stays, and so is refused"
    );
    config.family = Family::Gemma3;
    tokenizer.leave_out_images(&config);
    assert_eq!(tokenizer.vocab_size(), 265);
    let ids = tokenizer.encode(text).unwrap();
    assert!(ids.iter().all(|&id| id < 265));
    let (spoken, _) = text.split_at(text.len() - "<|im_end|>".len());
    assert_eq!(tokenizer.decode(&ids).unwrap(), spoken);
    assert_eq!(tokenizer.encode("hello").unwrap(), [259]);
}

#[test]
fn the_end_of_a_turn_ends_a_response() {
    let tokenizer = build(&byte_level("smollm").u32("tokenizer.ggml.eot_token_id", 262));
    assert_eq!(tokenizer.eos(), [263, 262]);
}

#[test]
fn sentence_piece_vocabularies_merge_by_score() {
    let tokenizer = build(&sentence_piece());
    assert_eq!(texts(&tokenizer, "hi hi"), ["▁hi", "▁hi"]);
    assert_eq!(texts(&tokenizer, "é"), ["▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(
        tokenizer.decode(&tokenizer.encode("hi é hi").unwrap()).unwrap(),
        "hi é hi"
    );
    assert_eq!(tokenizer.encode("<s>").unwrap(), [1]);
    let bare = build(&sentence_piece().flag("tokenizer.ggml.add_space_prefix", false));
    assert_eq!(texts(&bare, "hi hi"), ["hi", "▁hi"]);
}

#[test]
fn a_stream_never_gives_half_a_character() {
    for tokenizer in [build(&byte_level("smollm")), build(&sentence_piece())] {
        let text = "hi 🙂 é hi";
        let ids = tokenizer.encode(text).unwrap();
        let pieces = streamed(&tokenizer, &ids);
        assert!(
            pieces.iter().all(|piece| !piece.contains('\u{fffd}')),
            "{pieces:?}"
        );
        assert_eq!(pieces.concat(), text);
        // Each byte of the smiley is a token: the first three give nothing.
        assert!(pieces.iter().filter(|piece| piece.is_empty()).count() >= 3);
    }
}

#[test]
fn a_stream_does_not_wait_for_ever() {
    let tokenizer = build(&byte_level("smollm"));
    let broken = tokenizer.encode("é").unwrap()[0];
    let pieces = streamed(&tokenizer, &vec![broken; 100]);
    assert!(pieces[..20].concat().contains('\u{fffd}'));
    let honest = "\u{fffd}\u{fffd}🙂\u{fffd}\u{fffd}\u{fffd}é";
    assert_eq!(
        streamed(&tokenizer, &tokenizer.encode(honest).unwrap()).concat(),
        honest
    );
    let cut = streamed(&tokenizer, &[259, broken]);
    assert_eq!(cut, ["hello", "", "\u{fffd}"]);
    let skipped = streamed(&tokenizer, &[259, 262, 4_000_000, 260]);
    assert_eq!(skipped.concat(), "hello w");
}

#[test]
fn what_is_not_known_exactly_is_refused() {
    let other = || byte_level("smollm");
    for (builder, expected) in [
        (byte_level("viking"), "pre-tokenizer is `viking`; known are"),
        (
            Builder::default()
                .string("tokenizer.ggml.model", "t5")
                .strings("tokenizer.ggml.tokens", &["a"]),
            "`t5`",
        ),
        (other().strings("tokenizer.ggml.merges", &["h e"]), ""),
        (
            Builder::default()
                .string("tokenizer.ggml.model", "gpt2")
                .strings("tokenizer.ggml.tokens", &["a"]),
            "merges` is missing",
        ),
        (
            Builder::default()
                .string("tokenizer.ggml.model", "gpt2")
                .strings("tokenizer.ggml.tokens", &["a", "b", "ab"])
                .strings("tokenizer.ggml.merges", &["a b"]),
            "tokenizer.ggml.pre` is missing",
        ),
        (
            Builder::default()
                .string("tokenizer.ggml.model", "gpt2")
                .strings("tokenizer.ggml.tokens", &["a", "b"])
                .strings("tokenizer.ggml.merges", &["a b"]),
            "merge `a b`",
        ),
        (
            Builder::default()
                .string("tokenizer.ggml.model", "gpt2")
                .strings("tokenizer.ggml.tokens", &["a"])
                .i32s("tokenizer.ggml.token_type", &[1, 1]),
            "1 tokens and 2 token types",
        ),
        (
            Builder::default()
                .string("tokenizer.ggml.model", "llama")
                .strings("tokenizer.ggml.tokens", &["a"]),
            "one score for each",
        ),
        (
            Builder::default()
                .string("tokenizer.ggml.model", "llama")
                .strings("tokenizer.ggml.tokens", &["a", &"a".repeat(4 << 20)])
                .f32s("tokenizer.ggml.scores", &[0.0, 0.0]),
            "a piece of 4194304 bytes",
        ),
    ] {
        let refused = builder.open().and_then(|file| Tokenizer::from_gguf(&file));
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(
        Tokenizer::from_gguf(&Builder::default().open().unwrap())
            .unwrap()
            .is_none()
    );
}

mod files {
    use super::*;
    use serde_json::json;

    /// A `tokenizer.json` with a post-processor that puts BOS first.
    fn definition() -> serde_json::Value {
        json!({
            "version": "1.0",
            "truncation": { "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 },
            "padding": null,
            "added_tokens": [
                { "id": 3, "content": "<s>", "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false },
            ],
            "normalizer": null,
            "pre_tokenizer": null,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
                "special_tokens": { "<s>": { "id": "<s>", "ids": [3], "tokens": ["<s>"] } },
            },
            "decoder": { "type": "Fuse" },
            "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 2 }, "merges": [["a", "b"]] },
        })
    }

    fn open(directory: &Path) -> Result<Option<Tokenizer>> {
        Tokenizer::open(directory, &TokenizerConfig::open(directory)?)
    }

    #[test]
    fn a_tokenizer_json_is_read_with_its_companions() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        assert!(open(at).unwrap().is_none());
        std::fs::write(at.join("tokenizer.json"), definition().to_string()).unwrap();
        std::fs::write(
            at.join("tokenizer_config.json"),
            r#"{"bos_token":{"content":"<s>"},"eos_token":"ab"}"#,
        )
        .unwrap();
        std::fs::write(
            at.join("special_tokens_map.json"),
            r#"{"eos_token":"a","pad_token":"b"}"#,
        )
        .unwrap();
        let tokenizer = open(at).unwrap().unwrap();
        assert_eq!(
            (tokenizer.bos(), tokenizer.eos(), tokenizer.pad()),
            (Some(3), &[2][..], Some(1))
        );
        // Neither BOS is added, nor is the text cut to the two tokens of the definition.
        assert_eq!(tokenizer.encode("ababab").unwrap(), [2, 2, 2]);
    }

    #[test]
    fn a_malformed_tokenizer_json_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokenizer.json");
        let mut hostile = definition();
        // A merge longer than any token makes the library index beyond its buffer.
        hostile["model"]["merges"] = json!([["ab", "ab"]]);
        for contents in ["", "{", "[]", "{}", &hostile.to_string()] {
            std::fs::write(&path, contents).unwrap();
            let error = open(directory.path()).unwrap_err().to_string();
            assert!(error.contains("tokenizer.json"), "{error}");
        }
    }
}

proptest! {
    #[test]
    fn no_mutation_of_a_vocabulary_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        text in "\\PC{0,20}",
        is_byte_level in any::<bool>(),
    ) {
        let mut bytes = if is_byte_level { byte_level("smollm") } else { sentence_piece() }.bytes();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let file = GgufFile::from_bytes(Path::new("test.gguf"), std::sync::Arc::new(bytes));
        if let Ok(Some(tokenizer)) = file.and_then(|file| Tokenizer::from_gguf(&file)) {
            let ids = tokenizer.encode(&text).unwrap_or_default();
            let _ = tokenizer.decode(&ids);
        }
    }

    #[test]
    fn any_text_survives_and_streams_alike(text in "(\\PC|\u{fffd}){0,40}") {
        for tokenizer in [build(&byte_level("smollm")), build(&byte_level("llama-bpe"))] {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.as_str());
            prop_assert_eq!(streamed(&tokenizer, &ids).concat(), text.as_str());
        }
    }
}
