//! sql-lite
