//! Transactions of the client against nodes that fail on order.

#![allow(clippy::unwrap_used)]

mod fake;

use std::time::{Duration, Instant};

use bytes::Bytes;
use fake::{Cluster, Fault};
use flotilla_client::{
    Branch, Client, Compared, Error, Outcome, Reason, Span, Transact, Txn, TxnHandle, TxnOptions, Wait,
};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn default() -> TxnOptions {
    TxnOptions::default()
}

/// Adds one to a number in words, with a get and a put.
async fn bump(txn: &Txn, key: &str) -> Result<u32, Error> {
    let found = txn.get(bytes(key)).await?;
    let next = found.map_or(0, |found| std::str::from_utf8(&found.value).unwrap().parse().unwrap()) + 1;
    txn.put(bytes(key), next.to_string()).await?;
    Ok(next)
}

#[tokio::test]
async fn what_a_transaction_does_is_seen_by_it_at_once_and_by_others_after_its_commit() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await;
    client.put("old", "1").await.unwrap();
    let txn = client.begin(default()).await.unwrap();
    assert!(txn.get("old").await.unwrap().is_some());
    assert!(txn.handle().await.is_none(), "nothing is locked yet");
    for i in 0..5 {
        txn.put(format!("k{i}"), "v").await.unwrap();
    }
    txn.delete("old").await.unwrap();
    assert_eq!(txn.increment("n", 7).await.unwrap(), 7);
    assert_eq!(txn.compare_and_set("k0", Some(bytes("v")), Some(bytes("w"))).await.unwrap(), Compared::Set);
    assert_eq!(txn.compare_and_set("k0", None, None).await.unwrap(), Compared::Met(Some(bytes("w"))));
    assert_eq!(txn.get_for_update("k0").await.unwrap().unwrap().value, bytes("w"));
    assert_eq!(txn.get_for_share("old").await.unwrap(), None);
    let keys = |rows: Vec<flotilla_client::Row>| rows.into_iter().map(|row| row.key).collect::<Vec<_>>();
    let all: Vec<_> = (0..5).map(|i| bytes(&format!("k{i}"))).collect();
    assert_eq!(keys(txn.scan(Span::prefix("k")).collect().await.unwrap()), all);
    let last: Vec<_> = all.iter().rev().take(3).cloned().collect();
    assert_eq!(keys(txn.scan(Span::prefix("k")).reverse().rows_max(3).collect().await.unwrap()), last);
    assert_eq!(txn.delete_range(Span::prefix("k4")).await.unwrap(), 1);
    assert_eq!(client.get("k0").await.unwrap(), None, "others see nothing yet");
    let handle = txn.handle().await.unwrap();
    let at = txn.commit().await.unwrap();
    assert_eq!(client.get("k0").await.unwrap().unwrap().written, at);
    assert_eq!(client.get("k4").await.unwrap(), None);
    let handle = TxnHandle::new(handle.as_bytes().clone());
    assert_eq!(client.outcome(&handle).await.unwrap(), Outcome::Committed(at));
}

#[tokio::test]
async fn savepoints_take_back_and_a_transaction_goes_on_after_a_lock_it_did_not_get() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let txn = client.begin(default()).await.unwrap();
    txn.put("a", "1").await.unwrap();
    txn.savepoint("s").await.unwrap();
    txn.put("a", "2").await.unwrap();
    cluster.will_at([("txn put", Fault::Refuse(Reason::Locked)), ("txn put", Fault::Refuse(Reason::DiskFull))]);
    let Error::Refused { reason: Reason::Locked, conflict: Some(conflict), .. } =
        txn.with_wait(Wait::Error).put("b", "1").await.unwrap_err()
    else {
        panic!("not told about the lock")
    };
    assert_eq!(conflict.key, Some(bytes("met")));
    assert!(txn.get("a").await.is_ok(), "a lock that is held leaves it as it was");
    txn.put("b", "1").await.unwrap_err();
    assert_eq!(txn.get("a").await.unwrap_err().reason(), Some(Reason::TxnFailed));
    txn.rollback_to("s").await.unwrap();
    txn.release("s").await.unwrap();
    assert_eq!(txn.rollback_to("s").await.unwrap_err().reason(), Some(Reason::Invalid));
    txn.commit().await.unwrap();
    assert_eq!(cluster.world().value(b"a"), Some(bytes("1")));
    assert_eq!(cluster.world().value(b"b"), None);
}

#[tokio::test]
async fn a_transaction_that_met_others_is_run_again_as_a_whole() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await;
    cluster.will_at([
        ("txn get", Fault::Refuse(Reason::RetryTxn)),
        ("txn put", Fault::Refuse(Reason::TxnAborted)),
        ("txn put", Fault::Refuse(Reason::RangeUnavailable)),
        ("commit", Fault::Refuse(Reason::RetryTxn)),
    ]);
    let done = client.run(default(), |txn| async move { bump(&txn, "a").await }).await.unwrap();
    assert_eq!((done.value, done.attempts), (1, 5));
    assert_eq!(client.get("a").await.unwrap().unwrap().written, done.timestamp);
    assert_eq!(cluster.world().count("outcome"), 0, "nothing was in doubt");

    // A closure that takes the failure for its own, or for none, is run again all the same.
    cluster.will_at([("txn put", Fault::Refuse(Reason::RetryTxn)), ("txn put", Fault::Refuse(Reason::RetryTxn))]);
    let mut runs = 0;
    let done = client.run(default(), |txn| {
        runs += 1;
        async move {
            match bump(&txn, "a").await {
                Err(_) if runs == 1 => Err(Error::BadAnswer { what: "of the closure's own" }),
                Err(_) => Ok(0),
                done => done,
            }
        }
    });
    assert_eq!(done.await.unwrap().value, 2);
    assert_eq!(runs, 3);
}

#[tokio::test]
async fn those_who_add_to_one_number_all_count() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let one = |client: Client| async move {
        for _ in 0..10 {
            client.run(default(), |txn| async move { bump(&txn, "a").await }).await.unwrap();
        }
    };
    let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(one(client.clone()))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(cluster.world().value(b"a"), Some(bytes("80")));
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_but_that_was_done_is_not_done_again() {
    for fault in [Fault::LoseAnswer, Fault::Hang] {
        let cluster = Cluster::start(3).await;
        let client = cluster.client().await;
        cluster.will_at([("commit", fault)]);
        let done = client.run(default(), |txn| async move { bump(&txn, "a").await }).await.unwrap();
        assert_eq!((done.value, done.attempts), (1, 1), "{fault:?}");
        let found = client.get("a").await.unwrap().unwrap();
        assert_eq!((found.value, found.written), (bytes("1"), done.timestamp));
        let world = cluster.world();
        let node_of = |what: &str| world.asked.iter().find(|(_, asked, _)| *asked == what).unwrap().0;
        assert_ne!(node_of("commit"), node_of("outcome"), "the node that fell silent is not the one that is asked");
    }
}

#[tokio::test]
async fn a_commit_that_was_lost_on_its_way_is_known_to_be_undone_before_it_is_done_again() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await;
    cluster.will_at([("commit", Fault::LoseRequest), ("commit", Fault::Refuse(Reason::Ambiguous))]);
    let done = client.run(default(), |txn| async move { bump(&txn, "a").await }).await.unwrap();
    assert_eq!((done.value, done.attempts), (1, 3));
    assert_eq!(cluster.world().count("outcome"), 2);

    // Told to who commits by himself as well.
    cluster.will_at([("commit", Fault::LoseRequest)]);
    let txn = client.begin(default()).await.unwrap();
    txn.put("a", "9").await.unwrap();
    assert_eq!(txn.commit().await.unwrap_err().reason(), Some(Reason::TxnAborted));
    assert_eq!(cluster.world().value(b"a"), Some(bytes("1")));
}

#[tokio::test]
async fn a_commit_of_which_nobody_knows_is_told_as_doubt_and_not_done_again() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await;
    cluster.world().forgetful = true;
    cluster.will_at([("commit", Fault::LoseAnswer)]);
    let error = client.run(default(), |txn| async move { bump(&txn, "a").await }).await.unwrap_err();
    let Error::CommitUnknown { handle, .. } = &error else { panic!("{error:?}") };
    assert!(error.is_ambiguous());
    assert_eq!(cluster.world().count("begin"), 1);
    cluster.world().forgetful = false;
    assert!(matches!(client.outcome(handle).await.unwrap(), Outcome::Committed(_)));

    // So it is if nobody can be asked until the deadline.
    cluster.will_at([("commit", Fault::LoseRequest)]);
    cluster.will([Fault::Refuse(Reason::RangeUnavailable); 1000]);
    let hurried = client.with_timeout(Duration::from_millis(500));
    let began = Instant::now();
    let error = hurried.run(default(), |txn| async move { bump(&txn, "b").await }).await.unwrap_err();
    assert!(matches!(error, Error::CommitUnknown { .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(cluster.world().count("begin"), 2);
}

#[tokio::test]
async fn a_stream_that_breaks_before_the_commit_is_no_doubt() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    cluster.will_at([("txn put", Fault::LoseAnswer), ("begin", Fault::Hang), ("txn get", Fault::LoseRequest)]);
    let done = client.run(default(), |txn| async move { bump(&txn, "a").await }).await.unwrap();
    assert_eq!((done.value, done.attempts), (1, 3), "a begin that fails is not an attempt");
    assert_eq!(cluster.world().count("outcome"), 0);

    // A node that dies in the middle is left for another.
    let lives = std::sync::Mutex::new(cluster);
    let done = client.run(default(), |txn| {
        let lives = &lives;
        async move {
            let next = bump(&txn, "a").await?;
            {
                let mut cluster = lives.lock().unwrap();
                let node = cluster.world().asked.last().unwrap().0;
                if cluster.alive() == 3 {
                    cluster.kill(node);
                }
            }
            txn.put("b", "1").await?;
            Ok::<_, Error>(next)
        }
    });
    let done = done.await.unwrap();
    let cluster = lives.into_inner().unwrap();
    assert_eq!((done.value, done.attempts), (2, 2));

    // One that only read has nothing to lose.
    cluster.will_at([("commit", Fault::LoseAnswer)]);
    let read = client.run(default(), |txn| async move { txn.get("a").await }).await.unwrap();
    assert_eq!((read.value.unwrap().value, read.attempts), (bytes("2"), 2));
    assert_eq!(cluster.world().count("outcome"), 0);
}

#[tokio::test]
async fn errors_of_the_closures_own_roll_back_and_are_returned() {
    #[derive(Debug)]
    enum Own {
        Poor,
        Cluster,
    }
    impl From<Error> for Own {
        fn from(_: Error) -> Self {
            Self::Cluster
        }
    }
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let mut runs = 0;
    let error = client.run(default(), |txn| {
        runs += 1;
        async move {
            txn.put("a", "1").await?;
            Err::<(), _>(Own::Poor)
        }
    });
    assert!(matches!(error.await, Err(Own::Poor)));
    assert_eq!(runs, 1);
    rolled_back(&cluster, &client, 1).await;
    assert_eq!(cluster.world().value(b"a"), None);

    // What is not worth another try is not tried again.
    cluster.will_at([("txn put", Fault::Refuse(Reason::TooLarge))]);
    let error = client.run(default(), |txn| async move { Ok::<_, Own>(txn.put("a", "1").await?) });
    assert!(matches!(error.await, Err(Own::Cluster)));
    assert_eq!(cluster.world().count("begin"), 2);
}

/// Waits until so many transactions have ended, and sees that they were rolled back.
async fn rolled_back(cluster: &Cluster, client: &Client, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while cluster.world().ended.len() < count {
        assert!(Instant::now() < deadline, "a transaction goes on without its client");
        client.get("a").await.unwrap();
    }
    assert!(cluster.world().ended.values().all(Option::is_none));
}

#[tokio::test]
async fn a_transaction_that_is_dropped_or_left_in_the_middle_of_a_step_is_rolled_back() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let txn = client.begin(default()).await.unwrap();
    txn.put("a", "1").await.unwrap();
    drop(txn);
    rolled_back(&cluster, &client, 1).await;

    let txn = client.begin(default()).await.unwrap();
    txn.put("a", "1").await.unwrap();
    txn.rollback().await.unwrap();
    rolled_back(&cluster, &client, 2).await;

    // Whoever does not wait for a step does not know what it did.
    cluster.will_at([("txn put", Fault::Hang)]);
    let txn = client.begin(default()).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), txn.put("a", "1")).await.is_err());
    assert_eq!(txn.get("a").await.unwrap_err().reason(), Some(Reason::TxnFailed));
    assert_eq!(txn.commit().await.unwrap_err().reason(), Some(Reason::TxnFailed));
    rolled_back(&cluster, &client, 3).await;
    assert_eq!(cluster.world().count("commit"), 0);
}

#[tokio::test]
async fn attempts_end_with_the_deadline_and_so_does_a_step_without_an_answer() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await.with_timeout(Duration::from_millis(400));
    cluster.will_at(std::iter::repeat_n(("commit", Fault::Refuse(Reason::RetryTxn)), 100_000));
    let began = Instant::now();
    let error = client.run(default(), |txn| async move { bump(&txn, "a").await }).await.unwrap_err();
    // The deadline comes in a pause, or in the middle of an attempt.
    let in_time = matches!(error, Error::Refused { reason: Reason::RetryTxn, .. } | Error::Unreachable { .. });
    assert!(in_time, "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(2));
    let attempts = cluster.world().count("commit");
    assert!((3..400).contains(&attempts), "{attempts} attempts, with pauses of up to a tenth of a second");

    cluster.world().step_faults.clear();
    cluster.will_at([("txn get", Fault::Hang)]);
    let began = Instant::now();
    client.run(default(), |txn| async move { bump(&txn, "a").await }).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(cluster.world().value(b"a"), None);
}

#[tokio::test]
async fn one_shots_take_effect_once_and_doubt_stays_doubt() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await;
    cluster.will([Fault::LoseAnswer, Fault::LoseRequest]);
    assert_eq!(client.increment("n", 5).await.unwrap(), 5);
    assert_eq!(client.increment("n", -2).await.unwrap(), 3);
    client.put("text", "no counter").await.unwrap();
    assert_eq!(client.increment("text", 1).await.unwrap_err().reason(), Some(Reason::Invalid));

    let take = Transact::new()
        .compare("seat", None)
        .then(Branch::new().put("seat", "ada").increment("n", 1))
        .otherwise(Branch::new().get("seat"));
    let taken = client.transact(take.clone()).await.unwrap();
    assert_eq!((taken.held, taken.results), (true, vec![None, Some(Bytes::copy_from_slice(&4_i64.to_be_bytes()))]));
    let taken = client.transact(take.clone()).await.unwrap();
    assert_eq!((taken.held, taken.results), (false, vec![Some(bytes("ada"))]));

    // The first copy may still be on its way when the second reads: it may yet find the seat free.
    cluster.will([Fault::LoseRequest]);
    assert!(client.transact(take.clone()).await.unwrap_err().is_ambiguous());
    client.delete("seat").await.unwrap();
    cluster.will([Fault::LoseAnswer]);
    let taken = client.transact(take).await.unwrap();
    assert_eq!((taken.held, taken.results), (true, vec![]), "it was done by the first, whose answer was lost");
    assert_eq!(client.increment("n", 0).await.unwrap(), 5);
}

#[tokio::test]
async fn a_key_over_which_a_run_failed_is_locked_by_the_next() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    // The fake says of every failure that it was about the key `met`.
    cluster.will_at([("commit", Fault::Refuse(Reason::RetryTxn))]);
    let work = |txn: Txn| async move {
        txn.get("other").await?;
        txn.get("met").await?;
        txn.put("met", "1").await
    };
    assert_eq!(client.run(default(), work).await.unwrap().attempts, 2);
    let world = cluster.world();
    assert_eq!((world.count("txn get"), world.count("txn get with lock")), (3, 1));
}
