use clap::CommandFactory;

use super::*;

fn parse(words: &str) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(words.split(' '))
}

#[test]
fn definition_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn every_command_of_the_manual_parses() {
    for words in [
        "llamaduo demo --seed 3 --out there",
        "llamaduo init",
        "llamaduo init there",
        "llamaduo run -c llamaduo.toml --resume --out there --set a.b=c --set d=e",
        "llamaduo coordinator --listen 127.0.0.1:7400 --data there",
        "llamaduo worker --coordinator http://127.0.0.1:7400",
        "llamaduo submit -c llamaduo.toml --coordinator http://127.0.0.1:7400",
        "llamaduo status",
        "llamaduo status run-1 -o json",
        "llamaduo watch run-1 --from 7",
        "llamaduo cancel run-1",
        "llamaduo train -c llamaduo.toml --out adapter",
        "llamaduo infer --adapter adapter",
        "llamaduo infer --service",
        "llamaduo judge --responses responses.jsonl",
        "llamaduo synth --coordinator http://127.0.0.1:7400",
        "llamaduo eval --model m --data rows.jsonl -o json",
        "llamaduo eval --model m --adapter a --data rows.jsonl --quant none",
        "llamaduo generate --model m --prompt p --greedy --max-tokens 8 -o json",
        "llamaduo generate --model m --messages file.json",
        "llamaduo report there",
        "llamaduo -o json stand-in-service --listen 127.0.0.1:0",
    ] {
        assert!(parse(words).is_ok(), "{words}: {}", parse(words).unwrap_err());
    }
}

#[test]
fn contradictions_are_refused() {
    for words in [
        "llamaduo",
        "llamaduo demo --seed -1",
        "llamaduo generate --model m",
        "llamaduo generate --model m --prompt p --messages f",
        "llamaduo generate --model m --prompt p --greedy --temperature 1",
        "llamaduo generate --model m --prompt p --max-tokens 0",
        "llamaduo infer --service --adapter a",
        "llamaduo eval --model m --data d --quant q4",
        "llamaduo status -o yaml",
    ] {
        assert!(parse(words).is_err(), "{words}");
    }
}

#[test]
fn output_is_json_wherever_the_flag_stands() {
    for words in [
        "llamaduo -o json status",
        "llamaduo status -o json",
        "llamaduo status --output json",
    ] {
        assert_eq!(parse(words).unwrap().output, Format::Json, "{words}");
    }
}
