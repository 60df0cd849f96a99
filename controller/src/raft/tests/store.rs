//! The whole store, on sled.

use std::path::Path;

use roster_proto::id::PeerId;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{
    super::{Alone, MAX_COMMAND_BYTES, OpenError, ProposeError, Store, StoreConfig, StoreTask},
    Words,
};

struct Running {
    store: Store<Words>,
    task: StoreTask,
    shutdown: CancellationToken,
}

impl Running {
    async fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_with(StoreConfig::new(dir)).await
    }

    async fn open_with(config: StoreConfig) -> Result<Self, OpenError> {
        let shutdown = CancellationToken::new();
        let (store, task) = Store::open(config, Alone, shutdown.clone()).await?;
        Ok(Self { store, task, shutdown })
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.ended().await.unwrap();
    }

    async fn say(&self, word: impl Into<String>) -> u64 {
        self.store.propose(word.into()).await.unwrap().0.0
    }
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let first = Running::open(dir.path()).await.unwrap();
    let mut watch = first.store.watch();
    let (version, count) = first.store.propose("one".to_owned()).await.unwrap();
    assert_eq!(count, 1);
    assert_eq!(first.store.read().0.back(), Some(&(version.0, "one".to_owned())));
    assert!(watch.has_changed().unwrap());
    assert_eq!(watch.borrow_and_update().list(), ["one"]);
    assert!(first.say("two").await > version.0);
    assert!(first.store.leadership().borrow().is_self);
    let before = first.store.read();
    first.stop().await;

    let second = Running::open(dir.path()).await.unwrap();
    assert_eq!(second.store.read(), before);
    second.say("three").await;
    assert_eq!(second.store.read().list(), ["one", "two", "three"]);
    second.stop().await;
}

#[tokio::test]
async fn snapshots_replace_the_entries_they_cover() {
    let dir = TempDir::new().unwrap();
    let config = || StoreConfig { snapshot_entries: 10, ..StoreConfig::new(dir.path()) };
    let mut words = Vec::new();
    for round in 0..4 {
        let running = Running::open_with(config()).await.unwrap();
        assert_eq!(running.store.read().list(), words);
        for word in 0..57 {
            words.push(format!("{round} {word} {}", "x".repeat(3000)));
            running.say(words.last().unwrap().clone()).await;
        }
        running.stop().await;
    }
    // A page that outgrew its place would have been moved to a file that nobody flushes.
    assert_eq!(std::fs::read_dir(dir.path().join("log/blobs")).unwrap().count(), 0);
}

/// What a disk that was full, or SIGKILL, left of one of sled's own snapshots.
#[tokio::test]
async fn a_snapshot_that_sled_could_not_finish_is_no_damage() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(dir.path()).await.unwrap();
    running.say("kept").await;
    running.stop().await;
    for written in ["", "some of it, and no checksum"] {
        let unfinished = dir.path().join("log/snap.FFFFFFFFFFFFFFFF.generating");
        std::fs::write(&unfinished, written).unwrap();
        let running = Running::open(dir.path()).await.unwrap();
        assert_eq!(running.store.read().list(), ["kept"]);
        assert!(!unfinished.exists());
        running.stop().await;
    }
}

#[tokio::test]
async fn many_at_once_are_each_answered_once() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(dir.path()).await.unwrap();
    let proposals = (0..500).map(|word| {
        let store = running.store.clone();
        async move { (word, store.propose(word.to_string()).await.unwrap()) }
    });
    let answers = futures::future::join_all(proposals).await;
    let state = running.store.read();
    for (word, (version, count)) in answers {
        assert_eq!(state.0[count - 1], (version.0, word.to_string()));
    }
    running.stop().await;
}

#[tokio::test]
async fn commands_are_bounded_in_size() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(dir.path()).await.unwrap();
    let largest = "x".repeat(MAX_COMMAND_BYTES);
    running.say(largest.clone()).await;
    let refused = running.store.propose(largest + "x").await;
    assert!(matches!(refused, Err(ProposeError::TooLarge { .. })), "{refused:?}");
    running.stop().await;
    let again = Running::open(dir.path()).await.unwrap();
    assert_eq!(again.store.read().0.len(), 1);
    assert_eq!(std::fs::read_dir(dir.path().join("log/blobs")).unwrap().count(), 0);
    again.stop().await;
}

#[tokio::test]
async fn a_directory_has_one_user_at_a_time() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(dir.path()).await.unwrap();
    let second = Running::open(dir.path()).await.err();
    assert!(matches!(second, Some(OpenError::InUse { .. })), "{second:?}");
    running.stop().await;
    Running::open(dir.path()).await.unwrap().stop().await;
}

/// sled drops its files on a thread of its own, so the lock may be held for a moment after the handle is gone.
#[tokio::test]
async fn a_file_that_sled_still_holds_is_waited_for() {
    let dir = TempDir::new().unwrap();
    let first = Running::open(dir.path()).await.unwrap();
    first.say("one").await;
    first.stop().await;
    let file = std::fs::File::options().write(true).open(dir.path().join("log/db")).unwrap();
    let held = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    let (open, ()) = tokio::join!(Running::open(dir.path()), async {
        // Time is the subject here: long enough for an open that does not wait to have failed.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        drop(held);
    });
    let again = open.unwrap();
    assert_eq!(again.store.read().list(), ["one"]);
    again.stop().await;
}

#[tokio::test]
async fn a_store_belongs_to_its_peer() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(dir.path()).await.unwrap();
    let drawn = running.store.status().borrow().id;
    running.stop().await;
    let config = |peer| StoreConfig { peer, ..StoreConfig::new(dir.path()) };
    let other = Running::open_with(config(Some(PeerId(2)))).await.err();
    assert!(
        matches!(other, Some(OpenError::OtherPeer { found, wanted: PeerId(2), .. }) if found == drawn),
        "{other:?}"
    );
    let again = Running::open_with(config(None)).await.unwrap();
    assert_eq!(again.store.status().borrow().id, drawn);
    again.stop().await;
}

#[tokio::test]
async fn after_the_end_proposals_say_so() {
    let dir = TempDir::new().unwrap();
    let running = Running::open(dir.path()).await.unwrap();
    let store = running.store.clone();
    running.stop().await;
    let late = store.propose("late".to_owned()).await;
    assert!(matches!(late, Err(ProposeError::ShuttingDown)), "{late:?}");
}
