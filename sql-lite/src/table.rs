//! Where the rows of tables and indexes lie in the keyspace.
//!
//! ```text
//!  08  table  index  column … column  family
//! ```
//!
//! Table, index and family are integers as `encode` writes them. The primary index has number 1.

use flotilla_types::{Key, KeySpan, keys};

use crate::encode::encode_int;
use crate::{Decoder, Direction, KeyError, Value, encode};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);
    };
}

number! {
    /// Names a table; never reused.
    TableId
}
number! {
    /// Names an index of a table; never reused within it.
    IndexId
}
number! {
    /// A family of columns that are stored together.
    FamilyId
}

/// What a row's key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowKey {
    /// Whose row.
    pub table: TableId,
    /// In which index.
    pub index: IndexId,
    /// The values of the index's columns.
    pub columns: Vec<Value>,
    /// Which of the row's column families.
    pub family: FamilyId,
}

/// Where the keys of an index begin.
#[must_use]
pub fn index_prefix(table: TableId, index: IndexId) -> Key {
    Key::new(prefix_bytes(table, Some(index)))
}

/// All keys of an index.
#[must_use]
pub fn index_span(table: TableId, index: IndexId) -> KeySpan {
    span_of(index_prefix(table, index))
}

/// All keys of a table.
#[must_use]
pub fn table_span(table: TableId) -> KeySpan {
    span_of(Key::new(prefix_bytes(table, None)))
}

/// The key of one family of a row. Columns that were left out at the end make the prefix of all rows that begin so, but
/// for the family: use it with `Key::prefix_end` only on whole columns.
#[must_use]
pub fn row_key(
    table: TableId,
    index: IndexId,
    columns: impl IntoIterator<Item = (Value, Direction)>,
    family: FamilyId,
) -> Key {
    let mut bytes = prefix_bytes(table, Some(index));
    for (value, direction) in columns {
        encode(&value, direction, &mut bytes);
    }
    encode_int(i64::from(family.0), &mut bytes);
    Key::new(bytes)
}

/// Reads a row's key; `directions` has one for each column of the index.
///
/// # Errors
/// The key is none of that index.
pub fn decode_row_key(key: &Key, directions: &[Direction]) -> Result<RowKey, KeyError> {
    let body = key.as_bytes().strip_prefix(keys::SQL.as_bytes());
    let mut decoder = Decoder::new(body.ok_or(KeyError::Malformed("no SQL table's row"))?);
    let table = TableId(number(&mut decoder)?);
    let index = IndexId(number(&mut decoder)?);
    let columns = directions.iter().map(|direction| decoder.value(*direction)).collect::<Result<_, _>>()?;
    let family = FamilyId(number(&mut decoder)?);
    decoder.finish()?;
    Ok(RowKey { table, index, columns, family })
}

fn number(decoder: &mut Decoder<'_>) -> Result<u32, KeyError> {
    u32::try_from(decoder.int()?).map_err(|_| KeyError::Malformed("an id out of bounds"))
}

fn prefix_bytes(table: TableId, index: Option<IndexId>) -> Vec<u8> {
    let mut bytes = keys::SQL.as_bytes().to_vec();
    encode_int(i64::from(table.0), &mut bytes);
    if let Some(index) = index {
        encode_int(i64::from(index.0), &mut bytes);
    }
    bytes
}

fn span_of(start: Key) -> KeySpan {
    let end = start.prefix_end();
    KeySpan { start, end }
}
