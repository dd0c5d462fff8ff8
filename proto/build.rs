//! Compiles the `.proto` files without protoc, and keeps their descriptors for gRPC reflection.

use std::path::PathBuf;

use prost::Message;

const SERVICES: [&str; 3] = [
    "llamaduo/v1/run_service.proto",
    "llamaduo/v1/worker_service.proto",
    "llamaduo/v1/artifact_service.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(SERVICES, ["proto"])?;
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out_dir.join("llamaduo.fds"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
