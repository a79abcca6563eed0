//! Checks of the workspace itself; see `tests/`.
