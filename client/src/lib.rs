//! The Rust SDK, and what the command line is made of.
//!
//! A [`Client`] knows nothing of ranges: it asks any node, and that node finds out where the keys live. It spreads its
//! calls over the nodes it was given and those it learns of, and turns to another one when one fails. Writes carry a
//! request id, the same on every retry, so that they take effect once; an outcome that stays unknown is told as
//! [`Error::Ambiguous`], never as a failure.
//!
//! ```no_run
//! use flotilla_client::{Batch, Client, ScanOptions, Span, Swap};
//!
//! # async fn example() -> Result<(), flotilla_client::Error> {
//! let client = Client::connect(["127.0.0.1:26251", "127.0.0.1:26252"]).await?;
//! client.put("fruit/apple", "red").await?;
//! client.batch(Batch::new().put("fruit/lime", "green").delete("fruit/apple")).await?;
//!
//! if let Some(found) = client.get("fruit/lime").await? {
//!     println!("{:?}, since {}", found.value, found.written);
//! }
//! match client.compare_and_swap("fruit/lime", Some("green".into()), Some("yellow".into())).await? {
//!     Swap::Swapped(when) => println!("ripe at {when}"),
//!     Swap::Met(actual) => println!("somebody was faster: {actual:?}"),
//! }
//!
//! let mut rows = client.scan(Span::prefix("fruit/"), ScanOptions::default());
//! while let Some(row) = rows.next().await? {
//!     println!("{:?} = {:?}", row.key, row.value);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Transactions are closures that are run again until they pass, and never while an earlier run may have been committed
//! ([`Client::run`]); [`Client::begin`] is for those who want each step in their own hands.
//!
//! ```no_run
//! # async fn example(client: flotilla_client::Client) -> Result<(), flotilla_client::Error> {
//! use flotilla_client::{Error, TxnOptions};
//!
//! let moved = client
//!     .run(TxnOptions::default(), |txn| async move {
//!         let Some(apple) = txn.get_for_update("fruit/apple").await? else { return Ok::<_, Error>(false) };
//!         txn.put("basket/apple", apple.value).await?;
//!         txn.delete("fruit/apple").await?;
//!         Ok(true)
//!     })
//!     .await?;
//! println!("{} at {}", moved.value, moved.timestamp);
//! # Ok(())
//! # }
//! ```
//!
//! What it leaves out: it does not go straight to the leaseholder, which costs a hop between nodes; TLS.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod admin;
mod births;
mod call;
pub mod cli;
mod client;
mod error;
mod kv;
mod options;
mod pool;
mod scan;
mod transact;
mod txn;

pub use client::Client;
pub use error::{Conflict, Error};
/// Why a node refused, in words that stay.
pub use flotilla_proto::reason::Reason;
/// The messages of the API.
pub use flotilla_proto::v1 as messages;
pub use kv::{Batch, Swap, Value};
pub use options::Options;
pub use scan::{Row, Scan, ScanOptions, Span};
pub use transact::{Branch, Transact, Transacted};
pub use txn::{Committed, Compared, Lock, OpenTxn, Outcome, Past, Txn, TxnHandle, TxnOptions, TxnScan, Wait};

/// The nouns that transactions are described with.
pub use flotilla_types::{Isolation, Priority, Timestamp};
