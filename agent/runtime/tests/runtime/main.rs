//! `roster-runtime` by its command line, on the real kernel: needs root and busybox-static.

mod harness;
mod hooks;
mod life;
mod programs;
mod terminals;
