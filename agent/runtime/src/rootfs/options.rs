//! What the words of a mount's `options` mean. Pure.
//!
//! One sorted table holds every word that the runtime knows itself; `features` lists the same. Every other word is the
//! file system's own. Of opposites the last one counts, and a word for a whole tree (`rro`) counts after one for its
//! top (`ro`). Sources: config.md of the runtime-spec ("Linux mount options"), mount(8), mount_setattr(2).
//!
//! `iversion`, `silent` and their opposites are known but do nothing: the mount API by descriptor has no words for
//! them. File systems with change counters keep them always, and what the kernel has to say goes to the descriptor.

use nix::mount::MsFlags;

use crate::sys::{
    MOUNT_ATTR_ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_RELATIME, MOUNT_ATTR_STRICTATIME,
};

/// Every mount option that means something to the runtime, for the `features` document.
pub const MOUNT_OPTIONS: &[&str] = &names();

#[derive(Clone, Copy)]
enum Meaning {
    Nothing,
    /// The kernel knows it for every file system, which is told like one of its own words.
    Word,
    Set(Reach, u64),
    Clear(Reach, u64),
    Atime(Reach, u64),
    NotAtime(Reach, u64),
    Propagation(Propagation),
    Bind(Reach),
    IdMap(Reach),
    Remount,
    CopyUp,
}

/// Whether a word is about one mount or also about those below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Top,
    Tree,
}

use Meaning::{Atime, Bind, Clear, CopyUp, IdMap, NotAtime, Nothing, Propagation as Propagate, Remount, Set, Word};
use Reach::{Top, Tree};

const PRIVATE: MsFlags = MsFlags::MS_PRIVATE;
const SHARED: MsFlags = MsFlags::MS_SHARED;
const SLAVE: MsFlags = MsFlags::MS_SLAVE;
const UNBINDABLE: MsFlags = MsFlags::MS_UNBINDABLE;

/// Sorted by name.
const TABLE: [(&str, Meaning); 62] = [
    ("async", Word),
    ("atime", NotAtime(Top, MOUNT_ATTR_NOATIME)),
    ("bind", Bind(Top)),
    ("defaults", Nothing),
    ("dev", Clear(Top, MOUNT_ATTR_NODEV)),
    ("diratime", Clear(Top, MOUNT_ATTR_NODIRATIME)),
    ("dirsync", Word),
    ("exec", Clear(Top, MOUNT_ATTR_NOEXEC)),
    ("idmap", IdMap(Top)),
    ("iversion", Nothing),
    ("lazytime", Word),
    ("loud", Nothing),
    ("mand", Word),
    ("noatime", Atime(Top, MOUNT_ATTR_NOATIME)),
    ("nodev", Set(Top, MOUNT_ATTR_NODEV)),
    ("nodiratime", Set(Top, MOUNT_ATTR_NODIRATIME)),
    ("noexec", Set(Top, MOUNT_ATTR_NOEXEC)),
    ("noiversion", Nothing),
    ("nolazytime", Word),
    ("nomand", Word),
    ("norelatime", NotAtime(Top, MOUNT_ATTR_RELATIME)),
    ("nostrictatime", NotAtime(Top, MOUNT_ATTR_STRICTATIME)),
    ("nosuid", Set(Top, MOUNT_ATTR_NOSUID)),
    ("nosymfollow", Set(Top, MOUNT_ATTR_NOSYMFOLLOW)),
    ("private", Propagate(Propagation { kind: PRIVATE, reach: Top })),
    ("ratime", NotAtime(Tree, MOUNT_ATTR_NOATIME)),
    ("rbind", Bind(Tree)),
    ("rdev", Clear(Tree, MOUNT_ATTR_NODEV)),
    ("rdiratime", Clear(Tree, MOUNT_ATTR_NODIRATIME)),
    ("relatime", Atime(Top, MOUNT_ATTR_RELATIME)),
    ("remount", Remount),
    ("rexec", Clear(Tree, MOUNT_ATTR_NOEXEC)),
    ("ridmap", IdMap(Tree)),
    ("rnoatime", Atime(Tree, MOUNT_ATTR_NOATIME)),
    ("rnodev", Set(Tree, MOUNT_ATTR_NODEV)),
    ("rnodiratime", Set(Tree, MOUNT_ATTR_NODIRATIME)),
    ("rnoexec", Set(Tree, MOUNT_ATTR_NOEXEC)),
    ("rnorelatime", NotAtime(Tree, MOUNT_ATTR_RELATIME)),
    ("rnostrictatime", NotAtime(Tree, MOUNT_ATTR_STRICTATIME)),
    ("rnosuid", Set(Tree, MOUNT_ATTR_NOSUID)),
    ("rnosymfollow", Set(Tree, MOUNT_ATTR_NOSYMFOLLOW)),
    ("ro", Set(Top, MOUNT_ATTR_RDONLY)),
    ("rprivate", Propagate(Propagation { kind: PRIVATE, reach: Tree })),
    ("rrelatime", Atime(Tree, MOUNT_ATTR_RELATIME)),
    ("rro", Set(Tree, MOUNT_ATTR_RDONLY)),
    ("rrw", Clear(Tree, MOUNT_ATTR_RDONLY)),
    ("rshared", Propagate(Propagation { kind: SHARED, reach: Tree })),
    ("rslave", Propagate(Propagation { kind: SLAVE, reach: Tree })),
    ("rstrictatime", Atime(Tree, MOUNT_ATTR_STRICTATIME)),
    ("rsuid", Clear(Tree, MOUNT_ATTR_NOSUID)),
    ("rsymfollow", Clear(Tree, MOUNT_ATTR_NOSYMFOLLOW)),
    ("runbindable", Propagate(Propagation { kind: UNBINDABLE, reach: Tree })),
    ("rw", Clear(Top, MOUNT_ATTR_RDONLY)),
    ("shared", Propagate(Propagation { kind: SHARED, reach: Top })),
    ("silent", Nothing),
    ("slave", Propagate(Propagation { kind: SLAVE, reach: Top })),
    ("strictatime", Atime(Top, MOUNT_ATTR_STRICTATIME)),
    ("suid", Clear(Top, MOUNT_ATTR_NOSUID)),
    ("symfollow", Clear(Top, MOUNT_ATTR_NOSYMFOLLOW)),
    ("sync", Word),
    ("tmpcopyup", CopyUp),
    ("unbindable", Propagate(Propagation { kind: UNBINDABLE, reach: Top })),
];

const fn names() -> [&'static str; TABLE.len()] {
    let mut names = [""; TABLE.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = TABLE[index].0;
        index += 1;
    }
    names
}

fn meaning(option: &str) -> Option<Meaning> {
    TABLE.binary_search_by_key(&option, |(name, _)| name).ok().map(|index| TABLE[index].1)
}

/// Which mounts learn of a mount made below this one: mount_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Propagation {
    pub(super) kind: MsFlags,
    pub(super) reach: Reach,
}

impl Propagation {
    /// Also the values of `linux.rootfsPropagation`.
    pub(super) fn named(name: &str) -> Option<Self> {
        match meaning(name)? {
            Propagate(propagation) => Some(propagation),
            _ => None,
        }
    }
}

/// `MOUNT_ATTR_*` to put on a mount and to take off it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    set: u64,
    clear: u64,
    atime: Option<u64>,
}

impl Attributes {
    fn put(&mut self, bit: u64) {
        self.set |= bit;
        self.clear &= !bit;
    }

    fn take(&mut self, bit: u64) {
        self.set &= !bit;
        self.clear |= bit;
    }

    /// Not to have one way of keeping access times is to have the kernel's default, unless another was asked for.
    fn not_atime(&mut self, mode: u64) {
        if self.atime.is_none_or(|present| present == mode) {
            self.atime = Some(MOUNT_ATTR_RELATIME);
        }
    }

    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }

    pub(super) fn to_set(self) -> u64 {
        self.set | self.atime.unwrap_or_default()
    }

    /// A new way of keeping access times replaces the old: mount_setattr(2) wants all its bits cleared.
    pub(super) fn to_clear(self) -> u64 {
        self.clear | self.atime.map_or(0, |_| MOUNT_ATTR_ATIME)
    }
}

/// A mount's options, understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MountOptions<'a> {
    pub(super) top: Attributes,
    pub(super) tree: Attributes,
    pub(super) propagation: Option<Propagation>,
    pub(super) bind: Option<Reach>,
    pub(super) id_map: Option<Reach>,
    pub(super) remount: bool,
    pub(super) copy_up: bool,
    /// For the file system itself.
    pub(super) words: Vec<&'a str>,
}

impl<'a> MountOptions<'a> {
    pub(super) fn of(options: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all = Self::default();
        for option in options.into_iter().filter(|option| !option.is_empty()) {
            match meaning(option) {
                Some(Nothing) => {}
                Some(Word) | None => all.words.push(option),
                Some(Set(reach, bit)) => all.attributes(reach).put(bit),
                Some(Clear(reach, bit)) => all.attributes(reach).take(bit),
                Some(Atime(reach, mode)) => all.attributes(reach).atime = Some(mode),
                Some(NotAtime(reach, mode)) => all.attributes(reach).not_atime(mode),
                Some(Propagate(propagation)) => all.propagation = Some(propagation),
                Some(Bind(reach)) => all.bind = Some(reach),
                Some(IdMap(reach)) => all.id_map = Some(reach),
                Some(Remount) => all.remount = true,
                Some(CopyUp) => all.copy_up = true,
            }
        }
        all
    }

    fn attributes(&mut self, reach: Reach) -> &mut Attributes {
        match reach {
            Top => &mut self.top,
            Tree => &mut self.tree,
        }
    }

    /// What a mount with nothing below it is to have.
    pub(super) fn of_new_mount(&self) -> u64 {
        let (top, tree) = (self.top, self.tree);
        let atime = tree.atime.or(top.atime).unwrap_or_default();
        (top.set & !tree.clear) | tree.set | atime
    }

    /// Whether the top is to be read-only; from now on these options no longer say so.
    pub(super) fn take_read_only(&mut self) -> bool {
        let read_only = self.of_new_mount() & MOUNT_ATTR_RDONLY != 0;
        self.top.set &= !MOUNT_ATTR_RDONLY;
        self.tree.set &= !MOUNT_ATTR_RDONLY;
        read_only
    }

    /// The value of a file system's own `key=value`, the last one where there are several.
    pub(super) fn value(&self, key: &str) -> Option<&'a str> {
        self.words.iter().rev().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<'a>(options: &[&'a str]) -> MountOptions<'a> {
        MountOptions::of(options.iter().copied())
    }

    #[test]
    fn the_table_is_sorted_and_listed_whole() {
        assert!(TABLE.is_sorted_by_key(|(name, _)| name));
        assert_eq!(MOUNT_OPTIONS.len(), TABLE.len());
        assert!(MOUNT_OPTIONS.iter().all(|name| meaning(name).is_some()));
    }

    #[test]
    fn of_opposites_the_last_one_counts() {
        assert_eq!(of(&["ro", "rw"]).top, Attributes { clear: MOUNT_ATTR_RDONLY, ..Attributes::default() });
        assert_eq!(of(&["rw", "ro"]).top, Attributes { set: MOUNT_ATTR_RDONLY, ..Attributes::default() });
        assert_eq!(of(&["private", "rshared"]).propagation, Propagation::named("rshared"));
        assert_eq!(of(&["rnoexec", "rexec"]).tree.to_set(), 0);
    }

    #[test]
    fn a_word_for_the_tree_counts_after_one_for_its_top() {
        assert_eq!(of(&["rro", "rw"]).of_new_mount(), MOUNT_ATTR_RDONLY);
        assert_eq!(of(&["rrw", "ro"]).of_new_mount(), 0);
        assert_eq!(of(&["rnoatime", "strictatime"]).of_new_mount(), MOUNT_ATTR_NOATIME);
    }

    #[test]
    fn a_way_of_keeping_access_times_replaces_the_other() {
        assert_eq!(of(&["noatime", "strictatime"]).top.to_set(), MOUNT_ATTR_STRICTATIME);
        assert_eq!(of(&["noatime", "norelatime"]).top.to_set(), MOUNT_ATTR_NOATIME);
        let back = of(&["noatime", "atime"]).top;
        assert_eq!((back.to_set(), back.to_clear()), (0, MOUNT_ATTR_ATIME));
        assert_eq!(of(&["nodev"]).top.to_clear(), 0);
    }

    #[test]
    fn what_is_not_known_goes_to_the_file_system_in_its_order() {
        let options = of(&["mode=700", "ro", "size=1m", "sync", "newinstance", "mode=755"]);
        assert_eq!(options.words, ["mode=700", "size=1m", "sync", "newinstance", "mode=755"]);
        assert_eq!(options.value("mode"), Some("755"));
        assert_eq!(options.value("mod"), None);
    }

    #[test]
    fn read_only_can_be_put_off() {
        let mut options = of(&["rro", "nosuid"]);
        assert!(options.take_read_only());
        assert_eq!(options.of_new_mount(), MOUNT_ATTR_NOSUID);
        assert!(!options.take_read_only());
    }

    #[test]
    fn binding_and_mapping_reach_as_far_as_their_words_say() {
        assert_eq!(of(&["bind", "rbind"]).bind, Some(Tree));
        assert_eq!(of(&["idmap"]).id_map, Some(Top));
        assert_eq!(of(&["ridmap"]).id_map, Some(Tree));
        assert!(of(&["remount"]).remount && of(&["tmpcopyup"]).copy_up);
    }

    #[test]
    fn only_a_kind_of_propagation_names_one() {
        assert!(Propagation::named("slave").is_some_and(|slave| slave.reach == Top));
        assert_eq!(Propagation::named("ro"), None);
        assert_eq!(Propagation::named(""), None);
    }
}
