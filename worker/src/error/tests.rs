use super::*;

#[test]
fn a_full_disk_is_told_from_other_trouble() {
    let full = Error::Io {
        action: "write",
        path: "spool".into(),
        source: io::Error::from(io::ErrorKind::StorageFull),
    };
    assert_eq!(full.failure_kind(), FailureKind::Retryable);
    assert!(full.message().contains("space"), "{}", full.message());
    let inner = io::Error::from(io::ErrorKind::StorageFull);
    let digest = Digest::of(b"x");
    let nested = Error::Content {
        digest,
        expected: "text",
        source: Box::new(inner),
    };
    assert_eq!(nested.failure_kind(), FailureKind::Retryable);
    assert!(
        nested.message().starts_with("the disk is full"),
        "{}",
        nested.message()
    );
}

#[test]
fn every_stop_has_its_kind() {
    let kind = |stop| Error::Stopped(stop).failure_kind();
    assert_eq!(
        kind(Stop::Cancelled("by hand".to_owned())),
        FailureKind::Cancelled
    );
    assert_eq!(kind(Stop::LeaseLost), FailureKind::LeaseExpired);
    assert_eq!(kind(Stop::Draining), FailureKind::Released);
}

#[test]
fn a_refused_service_ends_the_run_and_a_damaged_artifact_is_named() {
    let refused = Error::Service(CallFailure::unbilled(FailureClass::Refused, "no"));
    assert_eq!(refused.failure_kind(), FailureKind::ServiceRefused);
    let missing = Error::Artifact(llamaduo_artifacts::Error::Missing {
        digest: Digest::of(b"x"),
    });
    assert_eq!(missing.failure_kind(), FailureKind::CorruptInput);
    assert!(missing.message().contains(&Digest::of(b"x").to_string()));
}

#[test]
fn what_one_worker_lacks_another_may_have() {
    let absent = io::Error::from(io::ErrorKind::NotFound);
    let unread = llamaduo_engine::Error::Read {
        path: "model.safetensors".into(),
        source: absent,
    };
    assert_eq!(Error::Engine(unread).failure_kind(), FailureKind::Retryable);
    let missing = crate::models::Error::NotFound {
        reference: "./nowhere.gguf".to_owned(),
        tried: Vec::new(),
        retryable: false,
    };
    assert_eq!(Error::Model(missing).failure_kind(), FailureKind::Retryable);
    let keyless = Error::Service(CallFailure::unbilled(FailureClass::Unequipped, "no key"));
    assert_eq!(keyless.failure_kind(), FailureKind::ServiceUnavailable);
}
