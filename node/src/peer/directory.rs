//! Which nodes there are, as this one knows, and the newest descriptor of meta1's range: what a node needs to find the
//! cluster before it can read anything from it. Kept in a small file of the store's directory, so that a cluster that
//! stopped as a whole finds itself again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_storage::log::LogSeq;
use flotilla_types::{Generation, Locality, RangeDescriptor, StoreId, StoreUuid};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use super::member::{Contact, Member};

/// The file's name.
const FILE: &str = "peers.json";
const VERSION: u32 = 1;

/// The file cannot be used.
#[derive(Debug, Error)]
#[error(
    "{path} cannot be read: {why}. Restore it, or remove it and start the node with --join and the peer addresses of other nodes"
)]
pub struct DirectoryError {
    path: PathBuf,
    why: String,
}

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    member: Member,
    /// The highest start number it presented.
    boot: u32,
    /// What the process of that start drew; 0 if none presented itself.
    nonce: u64,
    /// The most batches of its log that it said were synced.
    synced: LogSeq,
}

/// Why a node that presents itself is not believed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Stranger {
    /// The registry has not told of it (yet).
    #[error("node {0} is not known here: it was removed, or it joined a moment ago; it may ask again")]
    Unknown(StoreId),
    /// Two directories claim one number.
    #[error(
        "store {store} belongs to the directory {known}, and {presented} presents itself as it: a node that was set up \
         by hand or restored under another name must join as a new node, with an empty store directory"
    )]
    OtherDirectory {
        /// The number.
        store: StoreId,
        /// Whose it is.
        known: StoreUuid,
        /// Who claims it.
        presented: StoreUuid,
    },
    /// A start that holds less than an earlier one had synced.
    #[error(
        "the log of {store} holds {recovered} batches, and it said before that {synced} were synced: its disk was set back \
         to an older state (a restored image or snapshot), so it has forgotten votes and writes that it acknowledged. Do \
         not start it as itself: wipe the store directory and let the node join as a new one"
    )]
    Rewound {
        /// The store.
        store: StoreId,
        /// What it had.
        synced: u64,
        /// What it has.
        recovered: u64,
    },
    /// Another process uses a copy of the directory.
    #[error(
        "{store} presents its start number {presented}, and start {known} of another process was seen already: the store \
         directory was copied, or restored from a backup. Never start two copies of a store directory; wipe this one and \
         let the node join as a new one"
    )]
    Copy {
        /// The store.
        store: StoreId,
        /// The highest start seen.
        known: u32,
        /// What is presented.
        presented: u32,
    },
}

/// See the module's page.
pub struct Directory {
    state: Mutex<State>,
    /// Told when anything changed that must be written.
    changed: watch::Sender<u64>,
    file: PathBuf,
}

#[derive(Default)]
struct State {
    members: BTreeMap<StoreId, Known>,
    root: Option<RangeDescriptor>,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    /// The record of meta1's descriptor, hexadecimal.
    root: Option<String>,
    nodes: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    store: u64,
    uuid: String,
    boot: u32,
    nonce: u64,
    #[serde(default)]
    synced: u64,
    peer_address: String,
    client_address: String,
    http_address: String,
    locality: String,
    version: String,
}

impl Directory {
    /// Reads the file of a store's directory, if there is one.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn open(dir: &Path) -> Result<Arc<Self>, DirectoryError> {
        let file = dir.join(FILE);
        let failed = |why: String| DirectoryError { path: file.clone(), why };
        let state = match fs::read(&file) {
            Ok(bytes) => parse(&bytes).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(failed(error.to_string())),
        };
        Ok(Arc::new(Self { state: Mutex::new(state), changed: watch::Sender::new(0), file }))
    }

    /// Takes members in as the registry, or a peer, tells of them. Knows better what a node said of itself.
    pub fn learn(&self, members: Vec<Member>) {
        let mut state = self.state();
        let mut new = false;
        for member in members {
            new |= match state.members.get_mut(&member.store) {
                Some(known) if known.member.uuid == member.uuid => {
                    let changed = known.member != member;
                    known.member = member;
                    changed
                }
                _ => {
                    state.members.insert(member.store, Known { member, boot: 0, nonce: 0, synced: LogSeq(0) });
                    true
                }
            };
        }
        drop(state);
        if new {
            self.tell();
        }
    }

    /// A node presents itself: takes its start number, what its process drew, and its addresses in.
    ///
    /// # Errors
    /// It is not who it says.
    pub fn present(&self, member: Member, boot: u32, nonce: u64, recovered: LogSeq) -> Result<(), Stranger> {
        let (store, presented) = (member.store, member.uuid);
        let mut state = self.state();
        let known = state.members.get_mut(&store).ok_or(Stranger::Unknown(store))?;
        if known.member.uuid != presented {
            return Err(Stranger::OtherDirectory { store, known: known.member.uuid, presented });
        }
        let other = boot == known.boot && known.nonce != 0 && known.nonce != nonce;
        if boot < known.boot || other {
            return Err(Stranger::Copy { store, known: known.boot, presented: boot });
        }
        // Only of another start: within one, words overtake each other on different streams.
        if boot > known.boot && recovered < known.synced {
            return Err(Stranger::Rewound { store, synced: known.synced.0, recovered: recovered.0 });
        }
        let new = Known { member, boot, nonce, synced: known.synced.max(recovered) };
        let changed = *known != new;
        *known = new;
        drop(state);
        if changed {
            self.tell();
        }
        Ok(())
    }

    /// A node said how far its log is synced. Kept in memory at once and on the disk with the next save.
    pub fn heard_synced(&self, store: StoreId, boot: u32, synced: LogSeq) {
        if let Some(known) = self.state().members.get_mut(&store).filter(|known| known.boot == boot) {
            known.synced = known.synced.max(synced);
        }
    }

    /// The highest start that a node presented.
    #[must_use]
    pub fn boot(&self, store: StoreId) -> u32 {
        self.state().members.get(&store).map_or(0, |known| known.boot)
    }

    /// All nodes, ascending.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.state().members.values().map(|known| known.member.clone()).collect()
    }

    /// Where a node is.
    #[must_use]
    pub fn contact(&self, store: StoreId) -> Option<Contact> {
        self.state().members.get(&store).map(|known| known.member.contact.clone())
    }

    /// The newest descriptor of meta1's range that is known here.
    #[must_use]
    pub fn root(&self) -> Option<RangeDescriptor> {
        self.state().root.clone()
    }

    /// Takes a descriptor of meta1's range in, if it is newer.
    pub fn learn_root(&self, descriptor: RangeDescriptor) {
        let mut state = self.state();
        let known = state.root.as_ref().map_or(Generation(0), |root| root.generation);
        if descriptor.generation <= known {
            return;
        }
        state.root = Some(descriptor);
        drop(state);
        self.tell();
    }

    /// Hears of changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Writes the file whole, then puts it in place. Blocks on the disk: never on a thread of the runtime.
    ///
    /// # Errors
    /// The disk failed; the old file is still there.
    pub fn save(&self) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(&self.to_file()).map_err(io::Error::other)?;
        let temporary = self.file.with_extension("tmp");
        fs::write(&temporary, bytes)?;
        fs::File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, &self.file)?;
        let dir = self.file.parent().unwrap_or_else(|| Path::new("."));
        fs::File::open(dir)?.sync_all()
    }

    fn to_file(&self) -> File {
        let state = self.state();
        let row = |known: &Known| {
            let Member { store, uuid, contact } = &known.member;
            Row {
                store: store.0,
                uuid: uuid.to_string(),
                boot: known.boot,
                nonce: known.nonce,
                synced: known.synced.0,
                peer_address: contact.peer_address.clone(),
                client_address: contact.client_address.clone(),
                http_address: contact.http_address.clone(),
                locality: contact.locality.to_string(),
                version: contact.version.clone(),
            }
        };
        let hex = |root: &RangeDescriptor| root.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        File { version: VERSION, root: state.root.as_ref().map(hex), nodes: state.members.values().map(row).collect() }
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(bytes: &[u8]) -> Result<State, String> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if file.version != VERSION {
        return Err(format!("it has version {}, and this program knows {VERSION}", file.version));
    }
    let mut state = State::default();
    for row in file.nodes {
        let locality = if row.locality.is_empty() { Ok(Locality::default()) } else { row.locality.parse() };
        let contact = Contact {
            peer_address: row.peer_address,
            client_address: row.client_address,
            http_address: row.http_address,
            locality: locality.map_err(|error: flotilla_types::LocalityError| error.to_string())?,
            version: row.version,
        };
        let uuid = row.uuid.parse().map_err(|error: flotilla_types::IdError| error.to_string())?;
        let store = StoreId(row.store);
        state.members.insert(
            store,
            Known {
                member: Member { store, uuid, contact },
                boot: row.boot,
                nonce: row.nonce,
                synced: LogSeq(row.synced),
            },
        );
    }
    if let Some(hex) = file.root {
        let bytes = unhex(&hex).ok_or("the root is not hexadecimal")?;
        state.root = Some(RangeDescriptor::decode(&bytes).map_err(|error| error.to_string())?);
    }
    Ok(state)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.is_ascii() && text.len().is_multiple_of(2);
    digits.then(|| (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect())?
}

#[cfg(test)]
mod tests {
    use flotilla_types::{Key, KeySpan, RangeId, ReplicaDescriptor, ReplicaId, ReplicaKind};

    use super::*;

    fn member(store: u64, uuid: u8) -> Member {
        let contact = Contact {
            peer_address: format!("127.0.0.1:{}", 100 + store),
            client_address: format!("127.0.0.1:{}", 200 + store),
            http_address: format!("127.0.0.1:{}", 300 + store),
            locality: "region=eu,dc=eu-1".parse().unwrap(),
            version: "1".to_owned(),
        };
        Member { store: StoreId(store), uuid: StoreUuid([uuid; 16]), contact }
    }

    fn root(generation: u64) -> RangeDescriptor {
        let replica = ReplicaDescriptor { replica: ReplicaId(1), store: StoreId(1), kind: ReplicaKind::Voter };
        RangeDescriptor {
            range: RangeId(1),
            span: KeySpan { start: Key::MIN, end: Key::new(&b"\x02"[..]) },
            generation: Generation(generation),
            replicas: [replica].into_iter().collect(),
            next_replica: ReplicaId(2),
        }
    }

    #[test]
    fn what_was_known_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        directory.learn(vec![member(1, 1), member(2, 2)]);
        directory.present(member(2, 2), 7, 70, LogSeq(10)).unwrap();
        directory.learn_root(root(3));
        directory.learn_root(root(2));
        directory.save().unwrap();
        let again = Directory::open(dir.path()).unwrap();
        assert_eq!(again.members(), [member(1, 1), member(2, 2)]);
        assert_eq!((again.boot(StoreId(2)), again.root()), (7, Some(root(3))));
    }

    #[test]
    fn a_number_belongs_to_one_directory_and_to_its_newest_start() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        assert!(matches!(directory.present(member(2, 2), 1, 10, LogSeq(10)), Err(Stranger::Unknown(_))));
        directory.learn(vec![member(2, 2)]);
        directory.present(member(2, 2), 5, 50, LogSeq(10)).unwrap();
        directory.present(member(2, 2), 5, 50, LogSeq(10)).unwrap();
        assert!(matches!(directory.present(member(2, 9), 6, 60, LogSeq(10)), Err(Stranger::OtherDirectory { .. })));
        assert!(matches!(directory.present(member(2, 2), 4, 40, LogSeq(10)), Err(Stranger::Copy { .. })));
        assert!(
            matches!(directory.present(member(2, 2), 5, 51, LogSeq(10)), Err(Stranger::Copy { .. })),
            "the same start twice"
        );
        directory.learn(vec![member(2, 2)]);
        assert_eq!(directory.boot(StoreId(2)), 5, "the registry does not know of starts");
    }

    #[test]
    fn a_start_that_holds_less_than_was_synced_is_of_an_older_disk() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        directory.learn(vec![member(2, 2)]);
        let start = |directory: &Directory, boot, recovered| {
            directory.present(member(2, 2), boot, 10 * u64::from(boot), LogSeq(recovered))
        };
        start(&directory, 1, 5).unwrap();
        directory.heard_synced(StoreId(2), 1, LogSeq(40));
        directory.heard_synced(StoreId(2), 1, LogSeq(30));
        start(&directory, 1, 5).unwrap();
        directory.save().unwrap();
        for directory in [directory, Directory::open(dir.path()).unwrap()] {
            assert_eq!(
                start(&directory, 2, 39),
                Err(Stranger::Rewound { store: StoreId(2), synced: 40, recovered: 39 })
            );
            start(&directory, 2, 41).unwrap();
            directory.heard_synced(StoreId(2), 1, LogSeq(1000));
            start(&directory, 3, 41).unwrap();
        }
    }

    #[test]
    fn a_damaged_file_is_told_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), b"{").unwrap();
        let error = Directory::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("--join"), "{error}");
        fs::write(dir.path().join(FILE), br#"{"version":9,"root":null,"nodes":[]}"#).unwrap();
        assert!(Directory::open(dir.path()).is_err());
    }
}
