//! Single stages against a service LLM on this machine, by way of the coordinator and worker that users get.

use std::sync::{Arc, Mutex};

use llamaduo_data::curate::curate;
use llamaduo_data::synthesis::Candidate;
use llamaduo_data::verdict::Outcome as Graded;
use llamaduo_data::{Provenance, Response, Verdict};
use llamaduo_worker::stand_in::{self, tickets};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::args::{Format, TokenFile};
use crate::config::settings::curation_settings;

const GRADES: &str = r#"{"similarity_assessment": {"score": 80, "reason": "a"}, "precision_assessment": {"score": 70, "reason": "b"}}"#;

/// A user's directory with the sample dataset.
fn site() -> tempfile::TempDir {
    let site = tempfile::tempdir().unwrap();
    std::fs::write(site.path().join("coverage.jsonl"), tickets::coverage_dataset(0)).unwrap();
    let config = "service.model = \"stand-in-1\"\ndata.coverage = \"coverage.jsonl\"\ndata.test_count = 90\n\
                  judge.gradings_per_response = 1\nsynthesis.samples_per_cycle = 60\n\
                  synthesis.curation.response_json = true\n";
    std::fs::write(site.path().join("llamaduo.toml"), config).unwrap();
    site
}

fn config_of(site: &Path, address: std::net::SocketAddr) -> ConfigArguments {
    ConfigArguments {
        config: site.join("llamaduo.toml"),
        set: vec![format!("service.base_url=http://{address}/v1")],
    }
}

fn here() -> StageArguments {
    StageArguments {
        device: llamaduo_kernels::Device::Cpu,
        coordinator: None,
        token: TokenFile { token_file: None },
    }
}

/// The test prompt at `index`, and the reference to it, as the stages split them.
fn test_sample(site: &Path, index: usize) -> Sample {
    let config = config::load(&site.join("llamaduo.toml"), &[]).unwrap();
    let (split, _) = plan::coverage_split(&config.data, site).unwrap();
    split.test[index].clone()
}

/// Judges one answer to the first test prompt; the verdict.
async fn judged(site: &Path, name: &str, address: std::net::SocketAddr, answer: &str) -> Verdict {
    judged_with(site, name, config_of(site, address), answer).await
}

async fn judged_with(site: &Path, name: &str, config: ConfigArguments, answer: &str) -> Verdict {
    let response = Response {
        prompt_index: 0,
        sample: Some(test_sample(site, 0).id()),
        k: 0,
        text: answer.to_owned(),
        tokens: 1,
        complete: true,
        logprobs: None,
        call: None,
    };
    let folder = site.join(name);
    std::fs::create_dir(&folder).unwrap();
    let responses = folder.join("responses.jsonl");
    std::fs::write(&responses, jsonl::write(&[response]).unwrap()).unwrap();
    let out = folder.join("verdicts.jsonl");
    let arguments = Judge {
        config,
        stage: here(),
        responses,
        out: out.clone(),
    };
    judge(&arguments, &Output::new(Format::Json)).await.unwrap();
    let verdicts: Vec<Verdict> = jsonl::read("verdicts", &std::fs::read_to_string(out).unwrap()).unwrap();
    verdicts.into_iter().next().unwrap()
}

/// Answers every chat request with [`GRADES`], keeping what was asked.
async fn record(listener: TcpListener, asked: Arc<Mutex<Vec<String>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        if let Some(body) = answer(stream).await.unwrap() {
            asked.lock().unwrap().push(body);
        }
    }
}

/// The body of what is asked; `None` of who connects and asks nothing.
async fn answer(mut stream: TcpStream) -> std::io::Result<Option<String>> {
    let mut request = Vec::new();
    let body = loop {
        let mut part = [0; 4096];
        let n = stream.read(&mut part).await?;
        request.extend_from_slice(&part[..n]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            if n == 0 {
                return Ok(None);
            }
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse::<usize>().ok())?
        });
        if n == 0 || body.len() >= length.unwrap_or(0) {
            break body.to_owned();
        }
    };
    let reply = serde_json::json!({
        "id": "1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": GRADES}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    })
    .to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        reply.len()
    );
    stream.write_all((head + &reply).as_bytes()).await?;
    stream.shutdown().await?;
    Ok(Some(body))
}

/// A stand-in without faults, until the set is dropped.
async fn stand_in(tasks: &mut JoinSet<()>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut options = stand_in::Options::new(0);
    options.faults = stand_in::FaultRates::NONE;
    tasks.spawn(async move {
        stand_in::serve(options, listener, CancellationToken::new())
            .await
            .unwrap();
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_judge_is_shown_the_standing_instructions() {
    let (site, mut tasks) = (site(), JoinSet::new());
    let sample = test_sample(site.path(), 0);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(record(listener, Arc::clone(&asked)));
    let verdict = judged(site.path(), "recorded", address, sample.response()).await;
    assert!(matches!(verdict.outcome, Graded::Graded(_)), "{verdict:?}");
    let bodies = asked.lock().unwrap().clone();
    assert_eq!(bodies.len(), 1);
    let body: serde_json::Value = serde_json::from_str(&bodies[0]).unwrap();
    let said = body["messages"].as_array().unwrap().iter();
    let said: Vec<&str> = said.filter_map(|message| message["content"].as_str()).collect();
    let shown = |text: &str| said.iter().any(|message| message.contains(text));
    assert!(shown(sample.system().unwrap()), "{said:?}");
    assert!(shown(&sample.instruction()) && shown(sample.response()));

    // The stand-in still finds what to compare in such a prompt.
    let address = stand_in(&mut tasks).await;
    let right = judged(site.path(), "right", address, sample.response()).await;
    let wrong = judged(site.path(), "wrong", address, "Please call us.").await;
    let similarity = |verdict: &Verdict| verdict.outcome.judgement().unwrap().similarity.score.get();
    assert!(
        similarity(&right) > 80 && similarity(&wrong) < 30,
        "{right:?} {wrong:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_of_the_users_own_is_what_the_judge_gets() {
    let (site, mut tasks) = (site(), JoinSet::new());
    let page = include_str!("../../../../docs/prompts.md");
    let example = page
        .split("```toml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    std::fs::write(site.path().join("own.toml"), example).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config_of(site.path(), listener.local_addr().unwrap());
    config.set.push("judge.prompt=own.toml".to_owned());
    tasks.spawn(record(listener, Arc::clone(&asked)));
    let verdict = judged_with(site.path(), "own", config, "Please call us.").await;
    assert!(matches!(verdict.outcome, Graded::Graded(_)), "{verdict:?}");
    let own = llamaduo_prompts::Prompt::from_toml(example).unwrap();
    assert_eq!(verdict.call.prompt_hash, own.hash());
    let bodies = asked.lock().unwrap().clone();
    assert_eq!(bodies.len(), 1);
    assert!(bodies[0].contains("style does not count") && bodies[0].contains("Please call us."));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_synth_writes_is_curated_and_can_be_trained_on() {
    let (site, mut tasks) = (site(), JoinSet::new());
    let address = stand_in(&mut tasks).await;
    let out = site.path().join("more/samples.jsonl");
    let arguments = Synth {
        config: config_of(site.path(), address),
        stage: here(),
        out: out.clone(),
    };
    synth(&arguments, &Output::new(Format::Json)).await.unwrap();
    let kept = samples_in(&out).unwrap();
    assert!(!kept.is_empty());
    assert!(
        kept.iter()
            .all(|sample| matches!(sample.provenance(), Provenance::Synthetic { .. })),
        "where they came from is not lost"
    );
    let rows = |path: &Path| std::fs::read_to_string(path).unwrap().lines().count();
    let dropped = site.path().join("more/samples.dropped.jsonl");
    assert!(
        rows(&dropped) > 0 && rows(&out) + rows(&dropped) >= 60,
        "{} {}",
        rows(&out),
        rows(&dropped)
    );

    // Curating them again against both splits drops none: nothing close to a test prompt is among them.
    let config = config::load(&site.path().join("llamaduo.toml"), &[]).unwrap();
    let (split, _) = plan::coverage_split(&config.data, site.path()).unwrap();
    let settings = curation_settings(&config.synthesis.curation).unwrap();
    let curation = llamaduo_coordinator::curation_config(&settings, &split.train);
    let again = kept.into_iter().map(Candidate::Sample).collect();
    let curated = curate(again, &split.train, &split.test, &curation);
    assert_eq!(curated.dropped, []);
}

#[test]
fn rows_of_a_coverage_dataset_can_be_trained_on_too() {
    let site = site();
    assert_eq!(
        samples_in(&site.path().join("coverage.jsonl")).unwrap().len(),
        150
    );
    assert!(samples_in(&site.path().join("llamaduo.toml")).is_err());
}
