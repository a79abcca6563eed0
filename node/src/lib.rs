//! The process: sockets, timers, threads, services, and the command line.
