//! Routing, retries, cutting by range. Async, tied to no runtime.
