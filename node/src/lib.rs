//! The process: sockets, timers, threads, services, and the command line.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod clock;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod http;
pub mod logs;
pub mod peer;
pub mod ports;
pub mod rpc;
pub mod run;
pub mod store;
