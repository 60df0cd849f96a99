//! The planner against a model of the world: scenarios as text with golden output, and properties.

mod properties;
mod scenario;
mod scenarios;
pub(crate) mod world;
