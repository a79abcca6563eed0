//! The flush mark: one record that tells how much of the engine's history is durable (docs/durability.md, "Apply").
//!
//! Every so often the store writes the count of its changes so far as `00 mark`. Once the flushed tier shows that record,
//! everything written before it is flushed too, because the engine loses only from the end (law 1). One read per store
//! replaces one per range. The count starts anew at each boot, so the record names the boot.

use bytes::Bytes;
use flotilla_types::{RecordReader, RecordWriter};

use crate::engine::{Engine, EngineError, WriteBatch};
use crate::keys;

const VERSION: u8 = 1;

/// Marks that `count` changes of this boot were written.
///
/// # Errors
/// The disk failed or is full.
pub fn put(engine: &dyn Engine, boot: u32, count: u64) -> Result<(), EngineError> {
    let mut batch = WriteBatch::default();
    batch.put(keys::flush_mark(), Bytes::from(RecordWriter::new(VERSION).u32(boot).u64(count).finish()));
    engine.write(&batch)
}

/// How many changes of this boot would survive a crash now, as far as marks tell.
///
/// # Errors
/// The mark cannot be read.
pub fn flushed(engine: &dyn Engine, boot: u32) -> Result<u64, EngineError> {
    let Some(bytes) = engine.get_flushed(&keys::flush_mark())? else { return Ok(0) };
    let read = || {
        let mut record = RecordReader::new("flush mark", VERSION, &bytes)?;
        let found = (record.u32()?, record.u64()?);
        record.end()?;
        Ok(found)
    };
    let (of, count) = read().map_err(|error: flotilla_types::RecordError| EngineError::Corrupt {
        action: "read the flush mark",
        cause: error.to_string(),
    })?;
    Ok(if of == boot { count } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryEngine;

    #[test]
    fn a_mark_counts_once_it_is_flushed_and_only_in_its_own_boot() {
        let engine = MemoryEngine::new();
        assert_eq!(flushed(&engine, 1), Ok(0));
        put(&engine, 1, 7).unwrap();
        assert_eq!(flushed(&engine, 1), Ok(0), "not flushed yet");
        engine.flush().unwrap();
        put(&engine, 1, 9).unwrap();
        assert_eq!(flushed(&engine, 1), Ok(7));
        assert_eq!(flushed(&engine, 2), Ok(0), "the count of another boot says nothing");
    }
}
