//! Aggregates of made-up artifacts.
