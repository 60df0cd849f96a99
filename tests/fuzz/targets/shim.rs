//! What is said between an agent, its shims and the first processes of containers, and the records they leave.

#![no_main]

use std::{fs, fs::File, os::fd::OwnedFd, sync::LazyLock};

use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use roster_agent::runtime::linux::{
    lease::LeaseFile,
    record::BundleDir,
    report::{ExecReport, LiveReport, Order, StartReport, cause},
};
use roster_fuzz::Place;
use roster_runtime::{
    channel::{Channel, Word},
    store::Store,
};

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);

#[derive(Arbitrary, Debug)]
enum Said<'a> {
    Start(&'a [u8]),
    Exec(&'a [u8]),
    Live(&'a [u8]),
    Order(&'a [u8]),
    Word { packet: &'a [u8], descriptor: bool },
    Record { file: u8, text: &'a [u8] },
}

fuzz_target!(|said: Said<'_>| {
    match said {
        Said::Start(text) => match serde_json::from_slice(text) {
            Ok(StartReport::Failed(error)) => assert!(!cause(error).to_string().is_empty()),
            Ok(StartReport::Running(_)) | Err(_) => {}
        },
        Said::Exec(text) => same_again::<ExecReport>(text),
        Said::Live(text) => same_again::<LiveReport>(text),
        Said::Order(text) => same_again::<Order>(text),
        Said::Word { packet, descriptor } => word(packet, descriptor),
        Said::Record { file, text } => record(file, text),
    }
});

/// What is understood can be said, and means the same then.
fn same_again<T: serde::Serialize + serde::de::DeserializeOwned>(text: &[u8]) {
    let Ok(understood) = serde_json::from_slice::<T>(text) else { return };
    let said = serde_json::to_string(&understood).expect("written");
    let again: T = serde_json::from_str(&said).expect("read");
    assert_eq!(serde_json::to_string(&again).expect("written"), said);
}

fn word(packet: &[u8], descriptor: bool) {
    let descriptor = descriptor.then(|| OwnedFd::from(File::open("/dev/null").expect("opened")));
    let Ok(Some(word)) = Word::parse(packet, descriptor) else { return };
    let (one, other) = Channel::pair().expect("a pair");
    // What is longer than a packet may be is an error of saying it.
    if one.say(&word).is_ok() {
        let heard = other.hear().expect("heard").expect("a word");
        assert_eq!(std::mem::discriminant(&heard), std::mem::discriminant(&word));
    }
}

/// A record that makes no sense is as good as none.
fn record(file: u8, text: &[u8]) {
    let directory = PLACE.empty();
    let bundle = BundleDir(directory.join("one"));
    fs::create_dir(&bundle.0).expect("made");
    let name =
        ["running.json", "exit.json", "runtime.json", "config.json", "state.json", "lease"][usize::from(file) % 6];
    fs::write(bundle.file(name), text).expect("written");
    bundle.running().expect("read");
    bundle.ended().expect("read");
    bundle.foreign().expect("read");
    // Nobody waits for what is not there, and what cannot be understood is told.
    let _ = bundle.spec().map_err(|error| assert!(!error.to_string().is_empty()));
    let container = Store::new(directory).find("one").expect("there");
    let _ = container.record().map_err(|error| assert!(!error.to_string().is_empty()));
    LeaseFile::within(&bundle.0).read();
}
