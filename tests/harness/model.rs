//! The real model of the demo, found or fetched as the product does it.
//!
//! Invariant: a machine that cannot have the model fails the test and says which places were tried.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use llamaduo_worker::models::{Places, resolve};
use tokio_util::sync::CancellationToken;

/// The model's known name.
pub const SMOLLM2: &str = "smollm2-135m-instruct";

/// The GGUF of SmolLM2-135M-Instruct, fetched into the user's cache when it is not there.
pub fn smollm2() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime starts");
        let found = runtime.block_on(resolve(
            SMOLLM2,
            &Places::from_env(),
            &CancellationToken::new(),
            &|_| {},
        ));
        found.unwrap_or_else(|error| panic!("{error}"))
    })
}
