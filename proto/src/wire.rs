//! The generated protobuf types, clients and servers. Nothing outside this crate's `convert` builds on their shape
//! beyond passing them to tonic.

#![expect(
    clippy::all,
    clippy::allow_attributes,
    reason = "generated from the commented .proto files"
)]

tonic::include_proto!("llamaduo.v1");

/// Descriptors of every service, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/llamaduo.fds"));
