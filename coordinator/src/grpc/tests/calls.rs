//! Calls to service LLMs: paid for once, within the budget.

use std::sync::atomic::{AtomicU32, Ordering};

use llamaduo_proto::Digest;
use llamaduo_proto::ids::ReservationId;
use llamaduo_proto::run::{Budget, RunStatus};
use llamaduo_proto::session::*;
use llamaduo_proto::task::{FailureKind, TaskSpec};
use llamaduo_proto::view::ResumeRun;
use llamaduo_proto::wire;
use tonic::Status;

use super::harness::{Cluster, Worker, reason};

/// An assignment of the service lane; the others are done on the way.
async fn service_task(worker: &mut Worker) -> Assignment {
    loop {
        let assignment = worker.assignment().await;
        match assignment.spec {
            TaskSpec::Judge(_) | TaskSpec::Synthesize(_) => return assignment,
            TaskSpec::Train(_) | TaskSpec::Infer(_) => {
                worker.complete(&assignment).await.expect("the lease is current");
            }
        }
    }
}

/// A name for a leave that nobody had before.
fn new_reservation() -> ReservationId {
    static N_NAMED: AtomicU32 = AtomicU32::new(0);
    let text = format!("reservation-{}", N_NAMED.fetch_add(1, Ordering::Relaxed));
    ReservationId::new(&text).expect("letters, digits and a hyphen")
}

async fn begin(
    worker: &mut Worker,
    of: &Assignment,
    call: &str,
    most: Option<u64>,
) -> Result<CallLeave, Status> {
    begin_under(worker, of, call, most, new_reservation()).await
}

async fn begin_under(
    worker: &mut Worker,
    of: &Assignment,
    call: &str,
    most: Option<u64>,
    reservation: ReservationId,
) -> Result<CallLeave, Status> {
    let begin = BeginCall {
        attempt: of.attempt.clone(),
        call: Digest::of(call.as_bytes()),
        nano_usd_max: most,
        reservation,
    };
    let answer = worker
        .client
        .begin_call(wire::BeginCallRequest::from(begin))
        .await?
        .into_inner();
    Ok(CallLeave::try_from(answer).expect("a valid answer"))
}

async fn go(worker: &mut Worker, of: &Assignment, call: &str, most: Option<u64>) -> ReservationId {
    match begin(worker, of, call, most).await.expect("the lease is current") {
        CallLeave::Go(reservation) => reservation,
        other => panic!("leave to call, not {other:?}"),
    }
}

/// The next attempt of the same task; other tasks are done on the way.
async fn next_attempt(worker: &mut Worker, of: &Assignment) -> Assignment {
    loop {
        let next = service_task(worker).await;
        if next.attempt.task == of.attempt.task {
            return next;
        }
        worker.complete(&next).await.expect("the lease is current");
    }
}

async fn end(
    worker: &mut Worker,
    of: &Assignment,
    call: &str,
    reservation: &ReservationId,
    outcome: CallOutcome,
) -> Result<(), Status> {
    let end = EndCall {
        attempt: of.attempt.clone(),
        call: Digest::of(call.as_bytes()),
        reservation: reservation.clone(),
        outcome,
    };
    worker
        .client
        .end_call(wire::EndCallRequest::from(end))
        .await
        .map(|_| ())
}

fn reply(worker: &Worker, text: &str, nano_usd: Option<u64>) -> CallOutcome {
    let reply = worker.artifacts.put(text.as_bytes()).expect("stored");
    CallOutcome::Answered(CallReply {
        reply,
        input_tokens: 100,
        output_tokens: 10,
        nano_usd,
    })
}

#[tokio::test]
async fn a_call_is_paid_for_once_and_replayed() {
    let cluster = Cluster::start().await;
    let run = cluster.submit(cluster.spec()).await;
    let mut worker = cluster.worker("w1").await;
    let task = service_task(&mut worker).await;
    let reservation = go(&mut worker, &task, "a", None).await;
    let answer = reply(&worker, "the reply", Some(7));
    end(&mut worker, &task, "a", &reservation, answer.clone())
        .await
        .expect("the reservation is open");
    end(&mut worker, &task, "a", &reservation, answer)
        .await
        .expect("a repetition is accepted");
    let cached = begin(&mut worker, &task, "a", None)
        .await
        .expect("the lease is current");
    assert_eq!(cached, CallLeave::Cached(Digest::of(b"the reply")));
    let other = reply(&worker, "another reply", Some(7));
    let refused = end(&mut worker, &task, "a", &reservation, other)
        .await
        .expect_err("it is used up");
    assert_eq!(reason(&refused), "UNKNOWN_RESERVATION");
    let cost = cluster.details(&run).await.run.cost;
    assert_eq!(
        (cost.n_calls, cost.input_tokens, cost.output_tokens, cost.nano_usd),
        (1, 100, 10, 7)
    );
}

#[tokio::test]
async fn what_was_begun_and_never_ended_counts_as_unknown_and_may_be_called_again() {
    let mut cluster = Cluster::start().await;
    let run = cluster.submit(cluster.spec()).await;
    let mut worker = cluster.worker("w1").await;
    let task = service_task(&mut worker).await;
    go(&mut worker, &task, "a", Some(5)).await;
    assert_eq!(
        cluster.details(&run).await.run.cost.n_calls_unknown,
        0,
        "it is still under way"
    );
    let unknown = go(&mut worker, &task, "b", Some(5)).await;
    let lost = CallOutcome::Unknown("timed out".to_owned());
    end(&mut worker, &task, "b", &unknown, lost)
        .await
        .expect("the reservation is open");
    let free = go(&mut worker, &task, "c", Some(5)).await;
    let refused = CallOutcome::NotBilled("429".to_owned());
    end(&mut worker, &task, "c", &free, refused)
        .await
        .expect("the reservation is open");
    assert_eq!(cluster.details(&run).await.run.cost.n_calls_unknown, 1);
    cluster.restart().await;
    let mut worker = cluster.worker_with("w1", 2, vec![]).await.expect("it may attach");
    let again = next_attempt(&mut worker, &task).await;
    assert_eq!(
        cluster.details(&run).await.run.cost.n_calls_unknown,
        2,
        "its process died"
    );
    let stale = begin(&mut worker, &task, "a", Some(5))
        .await
        .expect_err("its attempt is over");
    assert_eq!(reason(&stale), "STALE_FENCING_TOKEN");
    let reservation = go(&mut worker, &again, "a", Some(5)).await;
    let answer = reply(&worker, "second time", None);
    end(&mut worker, &again, "a", &reservation, answer)
        .await
        .expect("the reservation is open");
    let cost = cluster.details(&run).await.run.cost;
    assert_eq!(
        (cost.n_calls, cost.n_calls_unknown, cost.n_calls_unpriced),
        (1, 2, 1)
    );
}

#[tokio::test]
async fn a_reply_that_comes_after_the_lease_is_kept() {
    let cluster = Cluster::start().await;
    let run = cluster.submit(cluster.spec()).await;
    let mut worker = cluster.worker("w1").await;
    let task = service_task(&mut worker).await;
    let reservation = go(&mut worker, &task, "a", None).await;
    worker
        .fail(&task, FailureKind::Retryable)
        .await
        .expect("the lease is current");
    let answer = reply(&worker, "late", Some(3));
    end(&mut worker, &task, "a", &reservation, answer)
        .await
        .expect("what is paid for is kept");
    assert_eq!(cluster.details(&run).await.run.cost.nano_usd, 3);
}

#[tokio::test]
async fn the_budget_stops_a_run_and_a_larger_one_resumes_it() {
    let cluster = Cluster::start().await;
    let mut spec = cluster.spec();
    spec.budget = Budget {
        nano_usd_max: Some(100),
        calls_max: Some(3),
    };
    let run = cluster.submit(spec).await;
    let mut worker = cluster.worker("w1").await;
    let task = service_task(&mut worker).await;
    let unpriced = begin(&mut worker, &task, "x", None)
        .await
        .expect("the lease is current");
    assert!(matches!(unpriced, CallLeave::BudgetSpent(why) if why.contains("price")));
    let first = go(&mut worker, &task, "a", Some(60)).await;
    let room_later = begin(&mut worker, &task, "b", Some(60))
        .await
        .expect("the lease is current");
    assert!(matches!(room_later, CallLeave::Wait(why) if why.contains("raise budget.max_usd")));
    let over = begin(&mut worker, &task, "b", Some(101))
        .await
        .expect("the lease is current");
    assert!(matches!(over, CallLeave::BudgetSpent(why) if why.contains("raise budget.max_usd")));
    let cheap = reply(&worker, "cheap", Some(10));
    end(&mut worker, &task, "a", &first, cheap)
        .await
        .expect("the reservation is open");
    for (call, most) in [("b", 60), ("c", 1)] {
        let lost = go(&mut worker, &task, call, Some(most)).await;
        let unknown = CallOutcome::Unknown("timed out".to_owned());
        end(&mut worker, &task, call, &lost, unknown)
            .await
            .expect("the reservation is open");
    }
    let over = begin(&mut worker, &task, "d", Some(1))
        .await
        .expect("the lease is current");
    assert!(matches!(over, CallLeave::BudgetSpent(why) if why.contains("3 of 3 calls")));
    worker
        .fail(&task, FailureKind::BudgetSpent)
        .await
        .expect("the lease is current");
    let events = worker.work_until(cluster.events(&run, 0)).await;
    let details = cluster.details(&run).await;
    assert_eq!(details.run.status, RunStatus::BudgetSpent);
    assert_eq!(details.run.cost.nano_usd, 10, "what was paid for is kept");
    let resume = ResumeRun {
        run: run.clone(),
        budget: Some(Budget {
            nano_usd_max: None,
            calls_max: None,
        }),
        service_llm: None,
        judge_llm: None,
        cycles_max: None,
        overrides: Vec::new(),
    };
    cluster.resume(resume).await.expect("it may go on");
    worker
        .work_until(cluster.events(&run, events.len() as u64 + 1))
        .await;
    assert_eq!(cluster.details(&run).await.run.status, RunStatus::Passed);
}

#[tokio::test]
async fn calls_begun_side_by_side_never_exceed_the_budget() {
    let cluster = Cluster::start().await;
    let mut spec = cluster.spec();
    spec.budget = Budget {
        nano_usd_max: None,
        calls_max: Some(10),
    };
    cluster.submit(spec).await;
    let mut worker = cluster.worker("w1").await;
    let task = service_task(&mut worker).await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..40 {
        let mut client = worker.client.clone();
        let begin = BeginCall {
            attempt: task.attempt.clone(),
            // Half of them are the same call.
            call: Digest::of(format!("{}", n % 20).as_bytes()),
            nano_usd_max: None,
            reservation: new_reservation(),
        };
        calls.spawn(async move { client.begin_call(wire::BeginCallRequest::from(begin)).await });
    }
    let mut n_granted = 0;
    for answer in calls.join_all().await {
        let leave = CallLeave::try_from(answer.expect("the lease is current").into_inner());
        n_granted += u32::from(matches!(leave, Ok(CallLeave::Go(_))));
    }
    assert_eq!(n_granted, 10);
}

#[tokio::test]
async fn a_reply_of_unknown_cost_counts_as_the_most_it_may_have_cost() {
    let cluster = Cluster::start().await;
    let mut spec = cluster.spec();
    spec.budget = Budget {
        nano_usd_max: Some(100),
        calls_max: None,
    };
    let run = cluster.submit(spec).await;
    let mut worker = cluster.worker("w1").await;
    let task = service_task(&mut worker).await;
    let reservation = go(&mut worker, &task, "a", Some(60)).await;
    let answer = reply(&worker, "no usage", None);
    end(&mut worker, &task, "a", &reservation, answer)
        .await
        .expect("the reservation is open");
    let over = begin(&mut worker, &task, "b", Some(60))
        .await
        .expect("the lease is current");
    assert!(matches!(over, CallLeave::BudgetSpent(_)), "{over:?}");
    let cost = cluster.details(&run).await.run.cost;
    assert_eq!((cost.nano_usd, cost.n_calls_unpriced), (0, 1));
}

#[tokio::test]
async fn leave_asked_for_twice_under_one_name_is_one_leave() {
    let cluster = Cluster::start().await;
    let mut spec = cluster.spec();
    spec.budget = Budget {
        nano_usd_max: None,
        calls_max: Some(2),
    };
    cluster.submit(spec).await;
    let mut worker = cluster.worker("w1").await;
    let task = service_task(&mut worker).await;
    let name = new_reservation();
    for _ in 0..3 {
        let leave = begin_under(&mut worker, &task, "a", None, name.clone()).await;
        assert_eq!(leave.expect("the lease is current"), CallLeave::Go(name.clone()));
    }
    // The answer to this one is lost, and meanwhile the other is answered.
    let unheard = go(&mut worker, &task, "a", None).await;
    let answer = reply(&worker, "the reply", None);
    end(&mut worker, &task, "a", &name, answer)
        .await
        .expect("the reservation is open");
    let cached = begin_under(&mut worker, &task, "a", None, unheard).await;
    assert!(matches!(cached, Ok(CallLeave::Cached(_))), "{cached:?}");
    go(&mut worker, &task, "b", None).await;
}

#[tokio::test]
async fn a_reply_that_was_written_off_is_taken_when_it_comes() {
    let cluster = Cluster::start().await;
    let run = cluster.submit(cluster.spec()).await;
    let mut worker = cluster.worker("w1").await;
    let task = service_task(&mut worker).await;
    let late = go(&mut worker, &task, "a", Some(5)).await;
    worker
        .fail(&task, FailureKind::Retryable)
        .await
        .expect("the lease is current");
    let again = next_attempt(&mut worker, &task).await;
    go(&mut worker, &again, "a", Some(5)).await;
    assert_eq!(cluster.details(&run).await.run.cost.n_calls_unknown, 1);
    let answer = reply(&worker, "late", Some(3));
    for _ in 0..2 {
        end(&mut worker, &task, "a", &late, answer.clone())
            .await
            .expect("what is paid for is kept");
    }
    let cost = cluster.details(&run).await.run.cost;
    assert_eq!((cost.n_calls, cost.n_calls_unknown, cost.nano_usd), (1, 0, 3));
    let cached = begin(&mut worker, &again, "a", Some(5)).await;
    assert_eq!(
        cached.expect("the lease is current"),
        CallLeave::Cached(Digest::of(b"late"))
    );
}

#[tokio::test]
async fn of_too_many_leaves_for_one_call_the_oldest_is_written_off() {
    let cluster = Cluster::start().await;
    let run = cluster.submit(cluster.spec()).await;
    let mut worker = cluster.worker("w1").await;
    let task = service_task(&mut worker).await;
    let mut leaves = Vec::new();
    // Names that sort in another order than they are given in.
    for n in (0..20).rev() {
        let name = ReservationId::new(&format!("{n}-z")).expect("digits, a hyphen and a letter");
        begin_under(&mut worker, &task, "a", None, name.clone())
            .await
            .expect("the lease is current");
        leaves.push(name);
    }
    assert_eq!(cluster.details(&run).await.run.cost.n_calls_unknown, 4);
    // Told twice: a repetition is no error and changes nothing.
    for _ in 0..2 {
        for leave in &leaves[4..] {
            end(
                &mut worker,
                &task,
                "a",
                leave,
                CallOutcome::NotBilled("429".to_owned()),
            )
            .await
            .expect("it changes nothing");
        }
    }
    assert_eq!(cluster.details(&run).await.run.cost.n_calls_unknown, 4);
    let answer = reply(&worker, "late", None);
    end(&mut worker, &task, "a", &leaves[0], answer)
        .await
        .expect("what is paid for is kept");
    assert_eq!(cluster.details(&run).await.run.cost.n_calls_unknown, 3);
}
