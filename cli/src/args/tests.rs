use std::collections::BTreeSet;

use super::cluster::coordinator_url;
use super::*;

fn parse(words: &str) -> Result<Arguments, clap::Error> {
    super::parse(words.split(' '))
}

#[test]
fn definition_is_consistent() {
    definition().debug_assert();
}

#[test]
fn a_negative_number_is_a_value_and_no_option() {
    let arguments = parse("llamaduo generate --model m --prompt p --temperature -1 --top-p -0.5").unwrap();
    let Command::Generate(generate) = arguments.command else {
        panic!("{:?}", arguments.command)
    };
    assert_eq!((generate.temperature, generate.top_p), (-1.0, Some(-0.5)));
    let said = parse("llamaduo generate --model m --prompt p --top-k -4")
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("invalid value '-4' for '--top-k <TOP_K>'"),
        "{said}"
    );
    assert!(parse("llamaduo status -1").is_err(), "no run is called so");
}

/// The least that each command takes. Of those that have commands of their own, one of them.
const LEAST: [&str; 21] = [
    "demo",
    "init",
    "run",
    "coordinator --data there",
    "worker",
    "submit",
    "status",
    "watch run-1",
    "cancel run-1",
    "train",
    "infer",
    "judge",
    "synth",
    "eval --model m --data d",
    "generate --model m --prompt p",
    "bench kernels --model m",
    "plan --model m",
    "export --model m --to gguf --out o.gguf",
    "report there",
    "doctor",
    "stand-in-service",
];

#[test]
fn each_command_takes_the_device_and_shows_it_or_is_listed_as_one_without() {
    let name = |words: &'static str| words.split(' ').next().unwrap_or(words);
    let definition = definition();
    let names: BTreeSet<&str> = definition.get_subcommands().map(|it| it.get_name()).collect();
    assert_eq!(names, BTreeSet::from(LEAST.map(name)));
    for words in LEAST {
        let is_useless = device::WITHOUT_DEVICE.contains(&name(words));
        let help = parse(&format!("llamaduo {words} --help"))
            .unwrap_err()
            .to_string();
        assert_eq!(help.contains("--device"), !is_useless, "{words}");
        let Arguments { mut command, .. } = parse(&format!("llamaduo {words}")).unwrap();
        let before = format!("{command:?}");
        command.set_device(Device::Cuda(3));
        // Stages that only call a service LLM hand the device on with what all stages have.
        let is_set = !is_useless || ["judge", "synth"].contains(&words);
        assert_eq!(format!("{command:?}") != before, is_set, "{words}");
    }
}

#[test]
fn the_device_is_taken_by_all_commands() {
    let words = ["llamaduo status --device cpu", "llamaduo --device cpu status"];
    for words in words {
        assert_eq!(parse(words).unwrap().device, Device::Cpu, "{words}");
    }
    assert_eq!(parse("llamaduo run --device cpu").unwrap().device, Device::Cpu);
}

#[test]
fn an_adapter_is_the_base_or_a_directory_that_has_a_name() {
    let adapter = |given: &str| {
        let words = ["llamaduo", "infer", "--adapter", given];
        super::parse(words).map(|arguments| match arguments.command {
            Command::Infer(infer) => infer.adapter,
            other => panic!("{other:?}"),
        })
    };
    let directory = |path: &str| Some(AdapterChoice::Directory(path.into()));
    assert_eq!(adapter("none").unwrap(), Some(AdapterChoice::Base));
    assert_eq!(adapter("./none").unwrap(), directory("./none"));
    assert_eq!(adapter("none/").unwrap(), directory("none/"));
    for words in [
        "infer",
        "eval --model m --data d",
        "generate --model m --prompt p",
        "bench generate --model m",
        "export --model m --to peft --out o",
    ] {
        let words = ["llamaduo"].into_iter().chain(words.split(' '));
        let said = super::parse(words.chain(["--adapter", ""]))
            .unwrap_err()
            .to_string();
        assert!(said.contains("--adapter <DIR>"), "{said}");
    }
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
        "llamaduo generate --model m --adapter a --adapter none --prompt p",
        "llamaduo bench generate --model m --adapter a --adapter b",
        "llamaduo plan --model m --adapters 3",
        "llamaduo generate --model m --prompt p --min-p 0.1 --repetition-penalty 1.1 --stop a --stop b --logprobs 0 -o json",
        "llamaduo eval --model m --ids rows.json --logits out.safetensors",
        "llamaduo report there",
        "llamaduo doctor -o json",
        "llamaduo worker --coordinator http://127.0.0.1:7400 --device cuda:1",
        "llamaduo --device cpu generate --model m --prompt p",
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
        "llamaduo demo --device gpu",
        "llamaduo generate --model m",
        "llamaduo generate --model m --prompt p --messages f",
        "llamaduo eval --model m --adapter a --adapter b --data rows.jsonl",
        "llamaduo generate --model m --prompt p --greedy --temperature 1",
        "llamaduo generate --model m --prompt p --greedy --min-p 0.5",
        "llamaduo generate --model m --prompt p --logprobs 21",
        "llamaduo generate --model m --prompt p --max-tokens 0",
        "llamaduo eval --model m",
        "llamaduo eval --model m --data d --ids i",
        "llamaduo eval --model m --data d --logits l",
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

#[test]
fn a_coordinator_is_named_by_host_and_port() {
    for text in [
        "127.0.0.1:7400",
        "http://127.0.0.1:7400",
        " http://127.0.0.1:7400/ ",
    ] {
        assert_eq!(
            coordinator_url(text).as_deref(),
            Ok("http://127.0.0.1:7400"),
            "{text}"
        );
    }
    assert_eq!(coordinator_url("[::1]:7400").as_deref(), Ok("http://[::1]:7400"));
    for text in [
        "",
        "localhost",
        "http://localhost",
        "http://:7400",
        "http://a:b",
        "http://a:0",
        "http://a/b:1",
        "https://a:1",
        "ftp://a:1",
    ] {
        assert!(coordinator_url(text).is_err(), "{text}");
    }
    assert!(coordinator_url("https://a:1").unwrap_err().contains("TLS"));
    let error = parse("llamaduo status --coordinator https://a:1").unwrap_err();
    assert!(error.to_string().contains("TLS"), "{error}");
}

#[test]
fn a_file_that_stands_alone_is_given_its_option() {
    let tip_on = |words: &str| tip(&parse(words).unwrap_err());
    let model = tip_on("llamaduo eval model.gguf --data rows.jsonl").unwrap();
    assert!(model.contains("put --model before model.gguf"), "{model}");
    let rows = tip_on("llamaduo eval --model m rows.jsonl").unwrap();
    assert!(rows.contains("--data"), "{rows}");
    assert_eq!(tip_on("llamaduo eval --modle m"), None);
    assert_eq!(
        tip_on("llamaduo eval"),
        None,
        "something is missing, nothing is unknown"
    );
}
