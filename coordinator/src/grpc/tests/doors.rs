//! What the coordinator lets in.

use llamaduo_proto::ids::RequestId;
use llamaduo_proto::run::RunSpec;
use llamaduo_proto::view::SubmitRun;
use llamaduo_proto::wire;
use llamaduo_proto::wire::artifact_service_client::ArtifactServiceClient;
use llamaduo_proto::wire::run_service_client::RunServiceClient;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use super::harness::{Cluster, reason};
use crate::{Coordinator, Error, Options, StateLocation, serve};

fn in_memory(directory: &tempfile::TempDir) -> Options {
    Options::new(StateLocation::Memory, directory.path())
}

#[tokio::test]
async fn an_address_beyond_this_machine_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("a free port");
    let refused = serve(in_memory(&directory), listener, CancellationToken::new()).await;
    assert!(matches!(refused, Err(Error::NotLoopback { .. })));
}

#[tokio::test]
async fn a_directory_in_use_is_refused_by_name_before_anything_is_served() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let state = StateLocation::Redb(directory.path().join("state.redb"));
    let options = || Options::new(state.clone(), directory.path().join("artifacts"));
    let first = Coordinator::open(options()).await.expect("it is free");
    let refused = Coordinator::open(options()).await.expect_err("it is in use");
    let message = refused.to_string();
    for part in [
        directory.path().display().to_string(),
        format!("process {}", std::process::id()),
    ] {
        assert!(message.contains(&part), "no {part} in: {message}");
    }
    let stop = CancellationToken::new();
    stop.cancel();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    first.serve(listener, stop).await.expect("it ends well");
    Coordinator::open(options()).await.expect("it is free again");
}

#[tokio::test]
async fn durations_and_tokens_without_sense_are_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let bind = || TcpListener::bind("127.0.0.1:0");
    let mut options = in_memory(&directory);
    options.heartbeat = options.lease;
    let refused = serve(
        options,
        bind().await.expect("a free port"),
        CancellationToken::new(),
    )
    .await;
    assert!(matches!(refused, Err(Error::Timing { .. })));
    for token in ["", "with space", "ü"] {
        let options = Options {
            token: Some(token.to_owned()),
            ..in_memory(&directory)
        };
        let refused = serve(
            options,
            bind().await.expect("a free port"),
            CancellationToken::new(),
        )
        .await;
        assert!(matches!(refused, Err(Error::Token)), "{token:?}");
    }
}

#[tokio::test]
async fn a_token_is_asked_for_where_one_is_set() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let stop = CancellationToken::new();
    let mut serving = JoinSet::new();
    let options = Options {
        token: Some("secret".to_owned()),
        ..in_memory(&directory)
    };
    assert!(!format!("{options:?}").contains("secret"), "a token never shows");
    serving.spawn(serve(options, listener, stop.clone()));
    let channel = Channel::from_shared(url)
        .expect("a valid URL")
        .connect()
        .await
        .expect("it listens");
    let mut client = RunServiceClient::new(channel.clone());
    for (header, expected) in [
        (None, Some("BAD_TOKEN")),
        (Some("Bearer wrong!"), Some("BAD_TOKEN")),
        (Some("Bearer secre"), Some("BAD_TOKEN")),
        (Some("secret"), Some("BAD_TOKEN")),
        (Some("Bearer secret"), None),
    ] {
        let mut request = Request::new(wire::ListRunsRequest::default());
        if let Some(header) = header {
            request
                .metadata_mut()
                .insert("authorization", header.parse().expect("a valid header"));
        }
        let refused = client.list_runs(request).await.err();
        assert_eq!(refused.as_ref().map(reason).as_deref(), expected, "{header:?}");
    }
    let health = tonic_health::pb::health_client::HealthClient::new(channel)
        .check(tonic_health::pb::HealthCheckRequest {
            service: "llamaduo.v1.RunService".to_owned(),
        })
        .await;
    assert_eq!(health.expect("health needs no token").into_inner().status, 1);
    stop.cancel();
    serving
        .join_all()
        .await
        .into_iter()
        .for_each(|ended| ended.expect("it ends well"));
}

async fn submit(
    cluster: &Cluster,
    request: &str,
    spec: RunSpec,
) -> Result<wire::SubmitRunResponse, tonic::Status> {
    let request = RequestId::new(request).expect("a valid id");
    let message = wire::SubmitRunRequest::from(SubmitRun { request, spec });
    let submitted = cluster.client().submit_run(message).await;
    submitted.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_submission_is_made_once() {
    let cluster = Cluster::start().await;
    let first = submit(&cluster, "a", cluster.spec()).await.expect("accepted");
    let again = submit(&cluster, "a", cluster.spec()).await.expect("accepted");
    assert_eq!(
        (first.created, again.created, &first.run_id),
        (true, false, &again.run_id)
    );
    let mut limited = cluster.spec();
    limited.budget.calls_max = Some(7);
    let again = submit(&cluster, "a", limited)
        .await
        .expect("a resume may change limits");
    assert_eq!((again.created, &again.run_id), (false, &first.run_id));
    let mut spec = cluster.spec();
    spec.seed += 1;
    let refused = submit(&cluster, "a", spec).await.expect_err("it is another run");
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::AlreadyExists, "REQUEST_REUSED")
    );
    assert!(refused.message().contains(&first.run_id), "{}", refused.message());
    let other = submit(&cluster, "b", cluster.spec()).await.expect("accepted");
    assert_ne!(first.run_id, other.run_id);
}

#[tokio::test]
async fn a_submission_is_checked_before_anything_is_spent() {
    let cluster = Cluster::start().await;
    let mut spec = cluster.spec();
    spec.coverage.n_test += 1;
    let refused = submit(&cluster, "a", spec)
        .await
        .expect_err("the number of rows is wrong");
    assert!(
        refused
            .message()
            .contains("has 6 rows where the submission says 7"),
        "{}",
        refused.message()
    );
    let mut spec = cluster.spec();
    spec.coverage.train = spec.coverage.test;
    let refused = submit(&cluster, "b", spec)
        .await
        .expect_err("it would train on the test split");
    let field = refused
        .get_details_bad_request()
        .expect("names the field")
        .field_violations;
    assert_eq!(
        (refused.code(), field[0].field.as_str()),
        (Code::InvalidArgument, "spec.coverage")
    );
    let mut spec = cluster.spec();
    spec.coverage.train = cluster
        .artifacts
        .put(b"{\"messages\": []}\nnot JSON\n")
        .expect("stored");
    let refused = submit(&cluster, "c", spec).await.expect_err("a row is malformed");
    assert!(refused.message().contains("line 1"), "{}", refused.message());
}

#[tokio::test]
async fn runs_are_listed_page_by_page() {
    let cluster = Cluster::start().await;
    let mut submitted = Vec::new();
    for request in ["a", "b"] {
        let run = submit(&cluster, request, cluster.spec()).await.expect("accepted");
        submitted.push(run.run_id);
    }
    let list = |page_size, page_token: String| {
        let mut client = cluster.client();
        let request = wire::ListRunsRequest {
            page_size,
            page_token,
        };
        async move { client.list_runs(request).await.map(tonic::Response::into_inner) }
    };
    let page = list(1, String::new()).await.expect("answered");
    let rest = list(1, page.next_page_token.clone()).await.expect("answered");
    let mut listed = vec![page.runs[0].run_id.clone(), rest.runs[0].run_id.clone()];
    listed.sort();
    submitted.sort();
    assert_eq!(listed, submitted);
    assert!(rest.next_page_token.is_empty());
    let refused = list(1, "nonsense".to_owned()).await.expect_err("no such page");
    assert_eq!(reason(&refused), "INVALID_ARGUMENT");
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let cluster = Cluster::start().await;
    let mut client = cluster.client();
    let run_id = "no-such-run".to_owned();
    let refused = client
        .get_run(wire::GetRunRequest {
            run_id: run_id.clone(),
        })
        .await
        .expect_err("unknown");
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::NotFound, "UNKNOWN_RUN")
    );
    let request = wire::CancelRunRequest {
        run_id,
        reason: String::new(),
    };
    assert_eq!(
        client.cancel_run(request).await.expect_err("unknown").code(),
        Code::NotFound
    );
    let refused = client
        .get_run(wire::GetRunRequest {
            run_id: "../etc".to_owned(),
        })
        .await;
    assert_eq!(refused.expect_err("no id").code(), Code::InvalidArgument);
    let request = wire::DrainWorkerRequest {
        worker_id: "nobody".to_owned(),
    };
    assert_eq!(
        client.drain_worker(request).await.expect_err("unknown").code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn artifacts_go_up_and_down_in_chunks() {
    let cluster = Cluster::start().await;
    let mut client = ArtifactServiceClient::new(cluster.channel.clone());
    let bytes: Vec<u8> = (0..3_000_001_u32).map(|i| (i % 251) as u8).collect();
    let digest = llamaduo_proto::Digest::of(&bytes).to_string();
    let upload = |expected: &str| {
        let chunks = bytes.chunks(1 << 20).map(|chunk| wire::UploadArtifactRequest {
            chunk: chunk.to_vec(),
            expected_digest: expected.to_owned(),
        });
        tokio_stream::iter(chunks.collect::<Vec<_>>())
    };
    let stored = client
        .upload_artifact(upload(&digest))
        .await
        .expect("stored")
        .into_inner();
    assert_eq!(stored.digest, digest);
    let refused = client
        .upload_artifact(upload(&"0".repeat(64)))
        .await
        .expect_err("another digest");
    assert_eq!(reason(&refused), "DIGEST_MISMATCH");
    let too_large = wire::UploadArtifactRequest {
        chunk: vec![0; (1 << 20) + 1],
        expected_digest: String::new(),
    };
    let refused = client
        .upload_artifact(tokio_stream::iter([too_large]))
        .await
        .expect_err("too large");
    assert_eq!(reason(&refused), "UPLOAD_BROKEN");
    let request = wire::DownloadArtifactRequest {
        digest: digest.clone(),
    };
    let mut stream = client
        .download_artifact(request)
        .await
        .expect("stored")
        .into_inner();
    let mut received = Vec::new();
    while let Some(message) = stream.message().await.expect("the stream goes on") {
        assert!(message.chunk.len() <= 1 << 20);
        received.extend(message.chunk);
    }
    assert!(received == bytes, "the same bytes come back");
    let digests = vec!["1".repeat(64), digest.clone()];
    let found = client
        .find_artifacts(wire::FindArtifactsRequest { digests })
        .await
        .expect("answered");
    assert_eq!(found.into_inner().found, [digest]);
    let request = wire::DownloadArtifactRequest {
        digest: "1".repeat(64),
    };
    let refused = client.download_artifact(request).await.expect_err("never stored");
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::NotFound, "ARTIFACT_MISSING")
    );
}

#[tokio::test]
async fn an_upload_that_does_not_end_ends_with_the_coordinator() {
    let mut cluster = Cluster::start().await;
    let mut client = ArtifactServiceClient::new(cluster.channel.clone());
    let (sender, chunks) = tokio::sync::mpsc::channel(1);
    let upload = async move {
        client
            .upload_artifact(tokio_stream::wrappers::ReceiverStream::new(chunks))
            .await
    };
    let feed = async {
        // More than a connection takes before the other side reads: the upload is under way after it.
        for _ in 0..16 {
            let chunk = wire::UploadArtifactRequest {
                chunk: vec![1; 1 << 20],
                expected_digest: String::new(),
            };
            sender.send(chunk).await.expect("it is read");
        }
        cluster.shut_down().await;
    };
    let (refused, ()) = tokio::join!(upload, feed);
    assert_eq!(reason(&refused.expect_err("it had no end")), "UPLOAD_BROKEN");
}
