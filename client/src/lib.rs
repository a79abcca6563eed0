//! The Rust SDK, and what the command line is made of.

pub mod cli;
