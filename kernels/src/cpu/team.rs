//! The threads of a step. Between two operations of a step there are microseconds, less than a thread needs to fall
//! asleep and be woken, and a decoded token is hundreds of operations: so those who help a step wait for its next
//! operation awake.
//!
//! Invariant: nobody holds a reference to a region of work once [`Team::run`] has returned or unwound: it takes the region
//! back first and then waits for those inside.
#![expect(
    unsafe_code,
    reason = "a region lives on the stack of the thread that shares it out"
)]

use std::hint::spin_loop;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};

/// Looks for work before a waiting thread lets others run: some tens of microseconds, longer than what lies between two
/// operations.
const SPINS_MAX: usize = 1 << 12;

/// Looks after which a waiting thread sees whether the pool has other work.
const SPINS_PER_LOOK: usize = 1 << 6;

/// Work that is shared out: `task(i)` for each `i` below `len`.
struct Region<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    len: usize,
    next: AtomicUsize,
    n_threads: usize,
}

impl Region<'_> {
    /// Does tasks until all are taken.
    fn work(&self) {
        while let Ok(first) = self.next.fetch_update(SeqCst, SeqCst, |next| {
            (next < self.len).then(|| next + self.run_len(next))
        }) {
            for index in first..first + self.run_len(first) {
                (self.task)(index);
            }
        }
    }

    /// How many neighbours are taken at once where `next` is the first that is left: neighbours read memory that lies
    /// together, and the shorter the runs are at the end, the more nearly all end at once.
    fn run_len(&self, next: usize) -> usize {
        ((self.len - next) / (2 * self.n_threads)).max(1)
    }
}

/// Where a step's thread meets its helpers.
#[derive(Debug, Default)]
pub(super) struct Team {
    /// A step is on, and has helpers.
    active: AtomicBool,
    /// Threads of the step, its own included.
    n_threads: AtomicUsize,
    /// A region is being worked on.
    busy: AtomicBool,
    region: AtomicPtr<Region<'static>>,
    /// Helpers that may hold a reference to the region.
    n_inside: AtomicUsize,
}

/// Does something when it goes, also while unwinding.
struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl Team {
    /// Runs `step` while the other threads of this thread's pool help. A step within a step, or beside one, has no helpers.
    pub(super) fn step<R: Send>(&self, n_threads: usize, step: impl FnOnce() -> R + Send) -> R {
        if n_threads < 2 || self.active.swap(true, SeqCst) {
            return step();
        }
        rayon::in_place_scope(|scope| {
            let _over = Finally(|| self.active.store(false, SeqCst));
            self.n_threads.store(n_threads, SeqCst);
            for _ in 1..n_threads {
                scope.spawn(|_| self.help());
            }
            step()
        })
    }

    /// Does `task(i)` for each `i` below `len` together with the helpers, if this is within a step and nothing else is
    /// being shared out; else does nothing and says so.
    pub(super) fn run(&self, len: usize, task: &(dyn Fn(usize) + Sync)) -> bool {
        if !self.active.load(SeqCst) || self.busy.swap(true, SeqCst) {
            return false;
        }
        let next = AtomicUsize::new(0);
        let n_threads = self.n_threads.load(SeqCst).max(1);
        let region = Region {
            task,
            len,
            next,
            n_threads,
        };
        let _over = Finally(|| {
            self.region.store(ptr::null_mut(), SeqCst);
            while self.n_inside.load(SeqCst) > 0 {
                spin_loop();
            }
            self.busy.store(false, SeqCst);
        });
        self.region.store((&raw const region).cast_mut().cast(), SeqCst);
        region.work();
        true
    }

    /// Works on what a step shares out until the step is over.
    fn help(&self) {
        let mut n_spins = 0;
        while self.active.load(SeqCst) {
            if !self.region.load(SeqCst).is_null() {
                n_spins = 0;
                self.work_inside();
                continue;
            }
            n_spins += 1;
            if n_spins > SPINS_MAX {
                std::thread::yield_now();
            }
            if n_spins.is_multiple_of(SPINS_PER_LOOK) && rayon::yield_now() == Some(rayon::Yield::Executed) {
                n_spins = 0;
            }
            spin_loop();
        }
    }

    fn work_inside(&self) {
        self.n_inside.fetch_add(1, SeqCst);
        let _outside = Finally(|| {
            self.n_inside.fetch_sub(1, SeqCst);
        });
        let region = self.region.load(SeqCst);
        // SAFETY: a region that is still to be seen after `n_inside` was raised is there until that is lowered again: its
        // owner takes it back and then waits, and all threads see these four accesses in one order. It is shared only.
        if let Some(region) = unsafe { region.as_ref() } {
            region.work();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap()
    }

    #[test]
    fn each_task_of_many_regions_is_done_once_before_run_returns() {
        let team = Team::default();
        pool().install(|| {
            team.step(3, || {
                for len in 0..300 {
                    let done: Vec<_> = (0..len).map(|_| AtomicUsize::new(0)).collect();
                    assert!(team.run(len, &|i| {
                        done[i].fetch_add(1, SeqCst);
                    }));
                    assert!(done.into_iter().all(|times| times.into_inner() == 1));
                }
            });
        });
    }

    #[test]
    fn helpers_do_work_and_the_pools_other_work_too() {
        let team = Team::default();
        let barrier = std::sync::Barrier::new(3);
        pool().install(|| {
            team.step(3, || {
                // each waits for the other two: nobody does two
                assert!(team.run(3, &|_| {
                    barrier.wait();
                }));
                rayon::join(
                    || barrier.wait(),
                    || rayon::join(|| barrier.wait(), || barrier.wait()),
                );
            });
        });
    }

    #[test]
    fn nothing_is_shared_outside_a_step_or_within_a_task() {
        let team = Team::default();
        assert!(!team.run(1, &|_| ()));
        pool().install(|| {
            team.step(3, || {
                assert!(team.run(5, &|_| assert!(!team.run(1, &|_| ()))));
                team.step(3, || assert!(team.run(1, &|_| ())));
                assert!(team.run(1, &|_| ()));
            });
        });
    }

    #[test]
    fn a_task_that_panics_ends_the_step_and_the_team_goes_on() {
        let team = Team::default();
        let pool = pool();
        for _ in 0..50 {
            let step = || {
                pool.install(|| {
                    team.step(3, || {
                        team.run(20, &|i| assert_ne!(i, 7, "as asked"));
                    })
                })
            };
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(step)).is_err());
            let sum = AtomicUsize::new(0);
            pool.install(|| {
                team.step(3, || {
                    team.run(10, &|i| {
                        sum.fetch_add(i, SeqCst);
                    })
                })
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }
}
