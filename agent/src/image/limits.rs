//! What an image may cost at most. Far above any image in use: they stop bombs, not people.

use roster_tree::read::Bounds;

/// Bytes all layers of one image may unpack to.
const UNPACKED_BYTES: u64 = 64 << 30;
/// Bytes of one archive given to `load`, after decompression.
const ARCHIVE_BYTES: u64 = 128 << 30;
/// Bytes of the layer that a container is made into.
const COMMIT_BYTES: u64 = 32 << 30;
/// Files, directories and links in one layer.
const LAYER_ENTRIES: u64 = 2_000_000;
/// Files in an archive given to `load`: a handful for each layer.
const ARCHIVE_ENTRIES: u64 = 10_000;
/// As the kernel's own limit on overlay's lower directories leaves room for, and as Docker's.
const LAYERS: usize = 127;
/// Bytes of one manifest, index or configuration. Parsed in memory, so it also bounds that.
const DOCUMENT_BYTES: u64 = 1 << 20;
/// Images in one archive.
const ARCHIVE_IMAGES: usize = 100;
/// PATH_MAX.
const PATH_BYTES: usize = 4096;
/// NAME_MAX.
const NAME_BYTES: usize = 255;
/// Directories within each other.
const PATH_DEPTH: usize = 256;
/// Bytes of one extended header: holds a path, a link target and extended attributes of at most 64 KiB each.
const EXTENSION_BYTES: u64 = 1 << 20;
/// Bytes of the paths of one layer's directories, which are kept in memory until their times can be set.
const DIRECTORY_PATH_BYTES: usize = 16 << 20;
/// Indexes that lead to indexes.
const INDEX_DEPTH: usize = 4;
/// Base-2 logarithm of the window a zstd stream may ask for: 8 MiB, which RFC 8878 recommends every decoder to take.
pub(super) const ZSTD_WINDOW_LOG: u32 = 23;

#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) unpacked_bytes: u64,
    pub(super) archive_bytes: u64,
    pub(super) commit_bytes: u64,
    pub(super) layer_entries: u64,
    pub(super) archive_entries: u64,
    pub(super) layers: usize,
    pub(super) document_bytes: u64,
    pub(super) archive_images: usize,
    pub(super) path_bytes: usize,
    pub(super) name_bytes: usize,
    pub(super) path_depth: usize,
    pub(super) extension_bytes: u64,
    pub(super) directory_path_bytes: usize,
    pub(super) index_depth: usize,
}

impl Limits {
    pub(super) fn tar(&self, entries: u64) -> Bounds {
        Bounds { entries, extension_bytes: self.extension_bytes }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpacked_bytes: UNPACKED_BYTES,
            archive_bytes: ARCHIVE_BYTES,
            commit_bytes: COMMIT_BYTES,
            layer_entries: LAYER_ENTRIES,
            archive_entries: ARCHIVE_ENTRIES,
            layers: LAYERS,
            document_bytes: DOCUMENT_BYTES,
            archive_images: ARCHIVE_IMAGES,
            path_bytes: PATH_BYTES,
            name_bytes: NAME_BYTES,
            path_depth: PATH_DEPTH,
            extension_bytes: EXTENSION_BYTES,
            directory_path_bytes: DIRECTORY_PATH_BYTES,
            index_depth: INDEX_DEPTH,
        }
    }
}
