//! The whole coordinator over gRPC with scripted workers.
