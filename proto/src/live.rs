//! What both ends of a live call keep to; `live.proto` says the rest.

/// Bytes of input that may be under way before the other end has taken them.
pub const INPUT_WINDOW: u64 = 512 * 1024;

/// Bytes of a program's arguments and environment together. The kernel takes more, a controller's message not much.
pub const MAX_WORDS: usize = 1 << 20;

/// One argument or variable, execve(2).
pub const MAX_WORD: usize = 128 * 1024 - 1;

/// The highest number of a signal, signal(7).
pub const LAST_SIGNAL: u32 = 64;

/// PATH_MAX without its NUL.
pub const MAX_PATH: usize = 4095;
