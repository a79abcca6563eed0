//! Tables over kv. So far the order-preserving encoding of keys.
//!
//! A row's key is `08`, table, index, columns, family (docs/durability.md, key map). The bytes of a key compare as the
//! values in it do, column by column, so that a range of values is a span of keys. Every part is prefix-free: no value's
//! bytes begin with another value's, so what follows a part never disturbs its order.
//!
//! What is written stays readable: `golden/` holds keys of every version, and files are only added to it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod decimal;
mod decode;
mod encode;
mod table;
mod value;

pub use decimal::{Decimal, DecimalError};
pub use decode::{Decoder, KeyError};
pub use encode::encode;
pub use table::{FamilyId, IndexId, RowKey, TableId, decode_row_key, index_prefix, index_span, row_key, table_span};
pub use value::{Direction, Value};
