//! What several targets need: a place of their own, and archives that are worth reading.

pub mod archive;
mod place;

pub use self::place::Place;
