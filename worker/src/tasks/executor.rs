//! The threads that own loaded models. Everything the engine does on this worker is done on one of them.
//!
//! Invariant: a model is loaded, used and dropped by one thread, and the async side never computes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use llamaduo_engine::local_model::{BaseQuant, LoadOptions, LocalModel};
use llamaduo_engine::memory::{self, Base};
use llamaduo_engine::{Device, ModelFiles};
use llamaduo_proto::run::{Compute, Quantization};
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, chain};

/// Work that waits: the coordinator never assigns more than there are slots, so one each is enough.
const WAITING_MAX: usize = 64;

/// Under a name of its own: no event of a run tells what becomes of a device, so it is shown where the worker's log is not.
pub(super) const DEVICE_LOG: &str = "llamaduo::device";

type Work = Box<dyn FnOnce(&mut Loaded) + Send>;

/// Threads for the local model, one for each slot.
#[derive(Debug)]
pub(crate) struct Executor {
    work: Mutex<Option<mpsc::Sender<Work>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Which model a thread holds, and how.
type Held = (PathBuf, Quantization, Compute);

/// The model that a thread holds, kept for the next task that asks for the same one.
pub(crate) struct Loaded {
    n_compute_threads: Option<usize>,
    device: Device,
    model: Option<(Held, LocalModel)>,
}

impl Loaded {
    /// The model at `path`, loaded if it is not the one at hand.
    pub(crate) fn model(
        &mut self,
        path: &Path,
        quantization: Quantization,
        compute: Compute,
    ) -> Result<&LocalModel, Error> {
        let key = (path.to_owned(), quantization, compute);
        let at_hand = self.model.take().filter(|(held, _)| *held == key);
        let model = match at_hand {
            Some((_, model)) => model,
            None => {
                let quant = base_quant(quantization);
                let options = LoadOptions {
                    quant,
                    threads: self.n_compute_threads,
                    compute: match compute {
                        Compute::F32 => llamaduo_engine::Compute::F32,
                        Compute::Bf16 => llamaduo_engine::Compute::Bf16,
                        Compute::Int16 => llamaduo_engine::Compute::Int16,
                    },
                    device: self.device,
                };
                let files = ModelFiles::open(path)?;
                if let Some(room) = self.room()? {
                    let config = &files.config;
                    memory::fit_base(Base { config, quant }, room)?;
                }
                let model = LocalModel::open(files, &options)?;
                let kernels_load_seconds = model.kernels_load_time().map(|time| time.as_secs_f64());
                tracing::debug!(device = model.device(), kernels_load_seconds, "model loaded");
                if let Some(reason) = model.kernels_left_out() {
                    tracing::warn!(
                        device = model.device(),
                        reason,
                        "Hopper's own kernels are left out, those for every card are used in their place"
                    );
                }
                model
            }
        };
        Ok(&self.model.insert((key, model)).1)
    }

    /// Bytes of memory of a device that has its own.
    pub(crate) fn room(&self) -> Result<Option<u64>, Error> {
        let room = self.device.memory_bytes();
        room.map_err(|source| Error::Device {
            device: self.device,
            source,
        })
    }

    /// After the device was lost: lets go of all that was on it, opens it anew and says how that went. The task is tried
    /// again by whoever gave it, with a pause that grows; its model is loaded anew then.
    fn recover_device(&mut self) {
        // First: a process has one context on a device, and is given the same again for as long as anybody holds it.
        self.model = None;
        let device = self.device;
        match device.try_open() {
            Ok(()) => {
                tracing::warn!(target: DEVICE_LOG, %device, "the device was lost and is open again; models are loaded anew");
            }
            Err(error) => {
                let reason = chain(&error);
                tracing::error!(target: DEVICE_LOG, %device, reason, "the device was lost and does not open; attempts fail until it does");
            }
        }
    }
}

/// The engine's word for how a base is held.
pub(super) fn base_quant(quantization: Quantization) -> BaseQuant {
    match quantization {
        Quantization::None => BaseQuant::None,
        Quantization::Nf4 => BaseQuant::Nf4 { double: false },
        Quantization::Nf4Double => BaseQuant::Nf4 { double: true },
    }
}

impl Executor {
    /// Starts `n_threads` threads, each computing on `device`, the CPU with `n_compute_threads`.
    pub(crate) fn start(
        n_threads: u32,
        n_compute_threads: Option<usize>,
        device: Device,
    ) -> Result<Self, Error> {
        let (sender, receiver) = mpsc::channel::<Work>(WAITING_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        let mut threads = Vec::new();
        for idx in 0..n_threads {
            let receiver = Arc::clone(&receiver);
            let serve = move || {
                let mut loaded = Loaded {
                    n_compute_threads,
                    device,
                    model: None,
                };
                loop {
                    let work = receiver
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .blocking_recv();
                    match work {
                        Some(work) => work(&mut loaded),
                        None => return,
                    }
                }
            };
            let thread = std::thread::Builder::new()
                .name(format!("model-{idx}"))
                .spawn(serve);
            threads.push(thread.map_err(Error::io("start a thread in", Path::new(".")))?);
        }
        Ok(Self {
            work: Mutex::new(Some(sender)),
            threads: Mutex::new(threads),
        })
    }

    /// Does `work` on a model thread.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Loaded) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let gone = Error::Gone("model thread");
        let (sender, done) = oneshot::channel();
        let work: Work = Box::new(move |loaded| {
            let result = catch_unwind(AssertUnwindSafe(|| work(loaded))).unwrap_or_else(|_| {
                // Whatever the model was in the middle of, it is not trusted again.
                loaded.model = None;
                Err(Error::Gone("model thread"))
            });
            if result.as_ref().is_err_and(Error::has_lost_device) {
                loaded.recover_device();
            }
            // Nobody listens any more when the attempt was dropped with the worker.
            let _nobody_listens = sender.send(result);
        });
        let queue = self.work.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(queue) = queue else { return Err(gone) };
        if queue.send(work).await.is_err() {
            return Err(gone);
        }
        done.await.unwrap_or(Err(gone))
    }

    /// Takes no more work and waits until the threads have ended.
    pub(crate) async fn close(&self) {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                // A panic inside work was caught; one outside has nothing left to tell.
                let _panicked = thread.join();
            }
        });
        let _cancelled_at_shutdown = joined.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_runs_a_panic_is_an_error_and_the_thread_goes_on() {
        let executor = Executor::start(1, Some(1), Device::Cpu).unwrap();
        assert_eq!(executor.run(|_| Ok(1)).await.unwrap(), 1);
        let panicked = executor.run::<()>(|_| panic!("made for the test")).await;
        assert!(matches!(panicked, Err(Error::Gone(_))));
        assert_eq!(executor.run(|_| Ok(2)).await.unwrap(), 2);
        let missing = executor.run(|loaded| {
            loaded
                .model(Path::new("/no/such/model"), Quantization::None, Compute::F32)
                .map(drop)
        });
        assert!(matches!(missing.await, Err(Error::Engine(_))));
        executor.close().await;
        assert!(matches!(executor.run(|_| Ok(3)).await, Err(Error::Gone(_))));
    }
}
