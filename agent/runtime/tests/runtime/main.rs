//! `roster-runtime` by its command line, on the real kernel: needs root, busybox-static and perl.

mod escapes;
mod exhaustion;
mod harness;
mod hooks;
mod life;
mod privileges;
mod programs;
mod swaps;
mod terminals;
