//! A layer of an image is unpacked. Whatever it is, nothing outside its directory changes, and no device comes of it.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use roster_agent::image::unpack_layer;
use roster_fuzz::{Place, archive::Archive};

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);

fuzz_target!(|archive: Archive| {
    let target = PLACE.empty();
    let unpacked = unpack_layer(&archive.bytes()[..], &target);
    PLACE.check();
    if let Err(error) = unpacked {
        assert!(!error.to_string().is_empty());
    }
});
