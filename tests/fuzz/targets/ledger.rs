//! An agent's memory of before, torn and damaged: what is believed of it once is believed the next time too.

#![no_main]

use std::{fs, sync::LazyLock};

use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use roster_agent::ledger;
use roster_fuzz::Place;
use sha2::{Digest, Sha256};

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);

#[derive(Arbitrary, Debug)]
struct Files {
    set: File,
    journal: Vec<File>,
}

#[derive(Arbitrary, Debug)]
enum File {
    Raw(Vec<u8>),
    /// With the checksum that it is believed by.
    Sealed(String),
}

fn checksum(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fuzz_target!(|files: Files| {
    let directory = PLACE.empty();
    let set = match files.set {
        File::Raw(bytes) => bytes,
        File::Sealed(body) => format!("roster-ledger 1 {}\n{body}", checksum(&body)).into_bytes(),
    };
    let lines = files.journal.into_iter().flat_map(|line| match line {
        File::Raw(bytes) => bytes,
        File::Sealed(body) => format!("{} {body}\n", &checksum(&body)[..16]).into_bytes(),
    });
    fs::write(directory.join("set"), set).expect("written");
    fs::write(directory.join("journal"), lines.collect::<Vec<u8>>()).expect("written");
    let (set_file, _, first) = ledger::open(&directory).expect("damage is no error");
    let journal = fs::read(directory.join("journal")).expect("the journal");
    if let Some(set) = &first.set {
        set_file.write(set).expect("written");
    }
    let (_, _, second) = ledger::open(&directory).expect("damage is no error");
    assert_eq!(first.set, second.set);
    let journal_is_damaged = second.damage.iter().any(|damage| damage.to_string().contains("unreadable lines"));
    assert!(!journal_is_damaged, "it was written anew");
    assert_eq!(journal, fs::read(directory.join("journal")).expect("the journal"));
});
