//! Container roots made on the real kernel, each by a child of the test in its own mount namespace.

mod containers;
mod devices;
mod hostile;
mod mounting;
