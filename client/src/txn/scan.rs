//! Reading many rows within a transaction, chunk by chunk.

use flotilla_proto::v1::{self, txn_request::Step, txn_response::Answer};

use super::Txn;
use crate::kv::timestamp;
use crate::{Error, Row, Span};

/// A scan within a transaction. Drop it to end it early.
#[must_use = "a scan reads nothing before it is asked for rows"]
pub struct TxnScan {
    txn: Txn,
    /// What is still to be read; `None` after the last chunk.
    rest: Option<Span>,
    reverse: bool,
    /// Rows that may still be asked for; 0 for no bound.
    rows_max: u64,
    rows: Option<std::vec::IntoIter<v1::Row>>,
}

impl TxnScan {
    pub(super) fn new(txn: Txn, span: Span) -> Self {
        Self { txn, rest: Some(span), reverse: false, rows_max: 0, rows: None }
    }

    /// From the end to the start.
    pub fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// At most so many rows; 0 for all.
    pub fn rows_max(mut self, rows: u64) -> Self {
        self.rows_max = rows;
        self
    }

    /// The next row; `None` after the last.
    ///
    /// # Errors
    /// See [`Txn`] and [`Error`].
    pub async fn next(&mut self) -> Result<Option<Row>, Error> {
        loop {
            if let Some(row) = self.rows.as_mut().and_then(Iterator::next) {
                let written = timestamp(row.timestamp.as_ref());
                return Ok(Some(Row { key: row.key, value: row.value, written }));
            }
            // It stays until its chunk is there: a step that failed may be asked again after a rollback to a savepoint.
            let Some(rest) = self.rest.clone() else { return Ok(None) };
            self.more(rest).await?;
        }
    }

    /// All rows that are left.
    ///
    /// # Errors
    /// As `next`.
    pub async fn collect(mut self) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::new();
        while let Some(row) = self.next().await? {
            rows.push(row);
        }
        Ok(rows)
    }

    /// Fetches the next chunk.
    async fn more(&mut self, rest: Span) -> Result<(), Error> {
        let step = v1::TxnScan {
            start: rest.start.clone(),
            end: rest.end.clone(),
            reverse: self.reverse,
            rows_max: self.rows_max,
            chunk_bytes: 0,
        };
        let rows_max = if self.rows_max == 0 { u64::MAX } else { self.rows_max };
        let take = |answer| match answer {
            Answer::Scan(chunk) if chunk.rows.len() as u64 <= rows_max => Some(chunk),
            _ => None,
        };
        let chunk = self.txn.ask(Step::Scan(step), take).await?;
        let count = chunk.rows.len() as u64;
        let full = self.rows_max > 0 && count == self.rows_max;
        self.rows_max = self.rows_max.saturating_sub(count);
        self.rest = chunk.resume.filter(|_| !full).map(|resume| match self.reverse {
            true => Span { end: Some(resume), ..rest },
            false => Span { start: resume, ..rest },
        });
        self.rows = Some(chunk.rows.into_iter());
        Ok(())
    }
}
