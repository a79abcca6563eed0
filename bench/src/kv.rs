//! `flotilla-bench kv`: puts and gets of single keys.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_client::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::Failure;
use crate::args::Kv;
use crate::keys::{Chooser, Values, key};
use crate::load::{Rows, load};
use crate::record::Kind;
use crate::report::Run;
use crate::run::{Done, Turn, Workload, connect, measure};

/// Runs the workload once for each number of clients.
pub(crate) async fn run(args: &Kv) -> Result<Vec<Run>, Failure> {
    let client = connect(&args.run.cluster).await?;
    let mut random = StdRng::seed_from_u64(args.run.seed);
    let values = Arc::new(Values::new(args.value_size, &mut random));
    if args.load {
        load(&client, Arc::new(Numbered(Arc::clone(&values))), args.keys).await?;
    }
    let mut runs = Vec::new();
    for clients in &args.run.clients {
        let chooser = Chooser::new(args.distribution, args.keys);
        let work = SingleKeys { chooser, values: Arc::clone(&values), read_share: args.read_share };
        runs.push(Run::new(&measure(&client, work, &args.run, *clients).await?.0, None));
    }
    Ok(runs)
}

/// The rows that are loaded.
struct Numbered(Arc<Values>);

impl Rows for Numbered {
    fn row(&self, number: u64) -> (Bytes, Bytes) {
        (key(number), self.0.next(&mut StdRng::seed_from_u64(number)))
    }

    fn value_size(&self) -> u32 {
        self.0.size()
    }
}

struct SingleKeys {
    chooser: Chooser,
    values: Arc<Values>,
    read_share: f64,
}

impl Workload for SingleKeys {
    async fn operate(&self, client: &Client, turn: Turn<'_>) -> Done {
        let key = key(self.chooser.choose(turn.random));
        if turn.random.random_bool(self.read_share) {
            Done::plain(Kind::Get, client.get(key).await)
        } else {
            Done::plain(Kind::Put, client.put(key, self.values.next(turn.random)).await)
        }
    }
}
