//! `RunService`: what clients ask.

use std::pin::Pin;
use std::sync::Arc;

use llamaduo_proto::convert::{self, InvalidMessage};
use llamaduo_proto::ids::{RunId, TaskId, WorkerId};
use llamaduo_proto::view::{ResumeRun, SubmitRun, SubmitTask};
use llamaduo_proto::wire;
use llamaduo_proto::wire::run_service_server::RunService;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::{Services, status, views};
use crate::actors::events::Watcher;
use crate::actors::scheduler::Message;
use crate::aggregate::check_coverage;
use crate::error::in_words;
use crate::machine::{Amendment, Event, Run, Work, check_work};
use crate::store::keys;

/// Tasks on one page, whatever was asked: with their specifications they stay within a message.
const TASKS_PER_PAGE_MAX: usize = 200;
/// Events on their way to one watcher; beyond it the watcher reads at its own pace from the store.
const EVENTS_IN_FLIGHT: usize = 64;

type Answer<T> = Result<Response<T>, Status>;

impl Services {
    async fn find(&self, id: &RunId) -> Result<Arc<Run>, Status> {
        let found = self.runs.find(id).await.map_err(status::of_commit)?;
        found.ok_or_else(|| status::unknown_run(id))
    }

    async fn step(&self, id: &RunId, event: Event) -> Result<Arc<Run>, Status> {
        self.runs.step(id, event).await.map_err(status::of_step)
    }

    async fn view(&self, run: &Run) -> Result<wire::Run, Status> {
        let cost = self
            .runs
            .shared()
            .ledger
            .cost(run)
            .await
            .map_err(status::of_ledger)?;
        Ok(views::run(run, cost).into())
    }

    async fn submit(
        &self,
        request: llamaduo_proto::ids::RequestId,
        work: Work,
    ) -> Result<(Arc<Run>, bool), Status> {
        self.runs.submit(request, work).await.map_err(status::of_submit)
    }

    /// Reads the coverage dataset before a run may spend anything on it.
    async fn check_submission(&self, work: &Work) -> Result<(), Status> {
        check_work(work).map_err(|error| status::invalid_field("spec.coverage", error.to_string()))?;
        let Work::Migration(spec) = work else {
            return Ok(());
        };
        let (artifacts, coverage) = (self.runs.shared().artifacts.clone(), spec.coverage.clone());
        let checked = tokio::task::spawn_blocking(move || check_coverage(&artifacts, &coverage)).await;
        match checked {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(status::invalid_field("spec.coverage", in_words(&error))),
            Err(_) => Err(status::stopping()),
        }
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        self.scheduler
            .send(message(reply))
            .await
            .map_err(|_| status::stopping())?;
        answer.await.map_err(|_| status::stopping())
    }
}

fn parse<W, D: TryFrom<W, Error = InvalidMessage>>(request: Request<W>) -> Result<D, Status> {
    D::try_from(request.into_inner()).map_err(|error| status::invalid(&error))
}

fn run_id(text: &str) -> Result<RunId, Status> {
    convert::id("run_id", text).map_err(|error| status::invalid(&error))
}

fn task_id(text: &str) -> Result<TaskId, Status> {
    convert::id("task_id", text).map_err(|error| status::invalid(&error))
}

fn task_view(run: &Run, id: &TaskId) -> Result<wire::Task, Status> {
    let view = run.tasks.get(id).and_then(|task| views::task(run, id, task));
    view.map(Into::into).ok_or_else(|| status::unknown_task(id))
}

#[tonic::async_trait]
impl RunService for Services {
    async fn submit_run(&self, request: Request<wire::SubmitRunRequest>) -> Answer<wire::SubmitRunResponse> {
        let SubmitRun { request, spec } = parse(request)?;
        let work = Work::Migration(Box::new(spec));
        // A known request is answered even if its artifacts were removed since.
        self.check_submission_of_new(&request, &work).await?;
        let (run, created) = self.submit(request, work).await?;
        Ok(Response::new(wire::SubmitRunResponse {
            run_id: run.id.to_string(),
            created,
        }))
    }

    async fn submit_task(
        &self,
        request: Request<wire::SubmitTaskRequest>,
    ) -> Answer<wire::SubmitTaskResponse> {
        let SubmitTask {
            request,
            name,
            spec,
            budget,
        } = parse(request)?;
        let (run, created) = self
            .submit(
                request,
                Work::Single {
                    name,
                    spec: Box::new(spec),
                    budget,
                },
            )
            .await?;
        let task_id = run.tasks.keys().next().map(TaskId::to_string).unwrap_or_default();
        Ok(Response::new(wire::SubmitTaskResponse {
            run_id: run.id.to_string(),
            task_id,
            created,
        }))
    }

    async fn get_run(&self, request: Request<wire::GetRunRequest>) -> Answer<wire::GetRunResponse> {
        let run = self.find(&run_id(&request.get_ref().run_id)?).await?;
        let cost = self
            .runs
            .shared()
            .ledger
            .cost(&run)
            .await
            .map_err(status::of_ledger)?;
        Ok(Response::new(views::details(&run, cost).into()))
    }

    async fn list_runs(&self, request: Request<wire::ListRunsRequest>) -> Answer<wire::ListRunsResponse> {
        let wire::ListRunsRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let size = convert::page_size(page_size).map_err(|error| status::invalid(&error))?;
        let after = (!page_token.is_empty()).then_some(page_token.as_str());
        if after.is_some_and(|token| keys::submitted_run(token).is_none()) {
            return Err(status::invalid_field(
                "page_token",
                "page_token is not one that a response gave",
            ));
        }
        let page = self.runs.shared().store.range(keys::SUBMITTED, after, size).await;
        let page = page.map_err(|error| status::of_commit(error.into()))?;
        let mut runs = Vec::new();
        for id in page
            .entries
            .iter()
            .filter_map(|entry| keys::submitted_run(&entry.key))
        {
            runs.push(self.view(&*self.find(&id).await?).await?);
        }
        let last = page
            .entries
            .last()
            .filter(|_| page.more)
            .map(|entry| entry.key.clone());
        Ok(Response::new(wire::ListRunsResponse {
            runs,
            next_page_token: last.unwrap_or_default(),
        }))
    }

    async fn cancel_run(&self, request: Request<wire::CancelRunRequest>) -> Answer<wire::CancelRunResponse> {
        let wire::CancelRunRequest {
            run_id: id,
            mut reason,
        } = request.into_inner();
        if reason.is_empty() {
            "cancelled by request".clone_into(&mut reason);
        }
        let run = self.step(&run_id(&id)?, Event::Cancel { reason }).await?;
        Ok(Response::new(wire::CancelRunResponse {
            run: Some(self.view(&run).await?),
        }))
    }

    async fn resume_run(&self, request: Request<wire::ResumeRunRequest>) -> Answer<wire::ResumeRunResponse> {
        let ResumeRun {
            run,
            budget,
            service_llm,
            judge_llm,
            cycles_max,
            overrides,
        } = parse(request)?;
        let amendment = Amendment {
            budget,
            service_llm,
            judge_llm,
            cycles_max,
            overrides,
        };
        let run = self.step(&run, Event::Resume(amendment)).await?;
        Ok(Response::new(wire::ResumeRunResponse {
            run: Some(self.view(&run).await?),
        }))
    }

    async fn get_task(&self, request: Request<wire::GetTaskRequest>) -> Answer<wire::GetTaskResponse> {
        let wire::GetTaskRequest {
            run_id: run,
            task_id: task,
        } = request.into_inner();
        let run = self.find(&run_id(&run)?).await?;
        Ok(Response::new(wire::GetTaskResponse {
            task: Some(task_view(&run, &task_id(&task)?)?),
        }))
    }

    async fn list_tasks(&self, request: Request<wire::ListTasksRequest>) -> Answer<wire::ListTasksResponse> {
        let wire::ListTasksRequest {
            run_id: run,
            page_size,
            page_token,
        } = request.into_inner();
        let size = convert::page_size(page_size).map_err(|error| status::invalid(&error))?;
        let size = size.min(TASKS_PER_PAGE_MAX);
        let from = match page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| {
                status::invalid_field("page_token", "page_token is not one that a response gave")
            })?,
        };
        let run = self.find(&run_id(&run)?).await?;
        let rows = run.tasks_in_order().into_iter().skip(from);
        let tasks: Vec<wire::Task> = rows
            .take(size)
            .filter_map(|(id, task)| views::task(&run, id, task))
            .map(Into::into)
            .collect();
        let next = from.saturating_add(size);
        let next_page_token = if next < run.tasks.len() {
            next.to_string()
        } else {
            String::new()
        };
        Ok(Response::new(wire::ListTasksResponse {
            tasks,
            next_page_token,
        }))
    }

    async fn retry_task(&self, request: Request<wire::RetryTaskRequest>) -> Answer<wire::RetryTaskResponse> {
        let wire::RetryTaskRequest {
            run_id: run,
            task_id: task,
        } = request.into_inner();
        let task = task_id(&task)?;
        let run = self
            .step(&run_id(&run)?, Event::RetryTask { task: task.clone() })
            .await?;
        Ok(Response::new(wire::RetryTaskResponse {
            task: Some(task_view(&run, &task)?),
        }))
    }

    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<wire::WatchEventsResponse, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<wire::WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        let wire::WatchEventsRequest {
            run_id: run,
            from_seq,
            progress,
        } = request.into_inner();
        let run = self.find(&run_id(&run)?).await?;
        let watcher = Watcher::new(Arc::clone(self.runs.shared()), run.id.clone(), from_seq, progress);
        let (sender, events) = mpsc::channel(EVENTS_IN_FLIGHT);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let gone = sender.clone();
            tokio::select! {
                () = forward(watcher, sender) => {}
                () = gone.closed() => {}
                () = stop.cancelled() => {
                    let _ = gone.try_send(Err(status::stopping()));
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }

    async fn list_workers(&self, _: Request<wire::ListWorkersRequest>) -> Answer<wire::ListWorkersResponse> {
        let workers = self.ask(|reply| Message::List { reply }).await?;
        Ok(Response::new(wire::ListWorkersResponse {
            workers: workers.into_iter().map(Into::into).collect(),
        }))
    }

    async fn drain_worker(
        &self,
        request: Request<wire::DrainWorkerRequest>,
    ) -> Answer<wire::DrainWorkerResponse> {
        let worker: WorkerId = convert::id("worker_id", &request.get_ref().worker_id)
            .map_err(|error| status::invalid(&error))?;
        if self
            .ask(|reply| Message::Drain {
                worker: worker.clone(),
                reply,
            })
            .await?
        {
            return Ok(Response::new(wire::DrainWorkerResponse {}));
        }
        let message = format!("worker {worker} has no session; list the workers to see who has");
        Err(status::named(Code::NotFound, "UNKNOWN_WORKER", message))
    }
}

impl Services {
    async fn check_submission_of_new(
        &self,
        request: &llamaduo_proto::ids::RequestId,
        work: &Work,
    ) -> Result<(), Status> {
        let known = self.runs.shared().store.get(&keys::request(request)).await;
        match known.map_err(|error| status::of_commit(error.into()))? {
            Some(_) => Ok(()),
            None => self.check_submission(work).await,
        }
    }
}

/// Sends events until the run has ended, the watcher fails or nobody listens.
async fn forward(mut watcher: Watcher, sender: mpsc::Sender<Result<wire::WatchEventsResponse, Status>>) {
    loop {
        let message = match watcher.next().await {
            Ok(Some(event)) => Ok(wire::WatchEventsResponse {
                event: Some(event.into()),
            }),
            Ok(None) => return,
            Err(error) => Err(status::of_commit(error)),
        };
        let is_last = message.is_err();
        if sender.send(message).await.is_err() || is_last {
            return;
        }
    }
}
