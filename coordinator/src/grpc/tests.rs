//! A whole coordinator over real gRPC, with a scripted worker that makes up the artifacts of every task.

mod calls;
mod doors;
mod harness;
mod leases;
mod made_up;
mod migration;
