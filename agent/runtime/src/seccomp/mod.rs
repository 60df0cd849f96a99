//! The container's system call filter: `linux.seccomp` of config.json made into one BPF program, and loaded.
//!
//! [`compile()`] is pure; [`Filter::load`] is one system call. The meaning of a
//! profile is that of libseccomp as runc drives it (see `compile.rs`). Whatever the profile, there is one program:
//! the system call's number is looked up in a binary tree of ranges that share an answer, so that a profile of
//! hundreds of names costs some ten instructions a call, and the kernel's own cache of numbers that are always
//! allowed (since 5.11) is filled quickly.
//!
//! Calls in a foreign convention are refused: on x86-64 both the 32-bit ones (`int 0x80`) and the x32 ones (numbers
//! with bit 30), even if the profile lists `SCMP_ARCH_X86` and `SCMP_ARCH_X32`. They get the profile's default action
//! if that is a refusal, and EPERM if it is not: such a call is never mistaken for the native one of the same number.
//! So 32-bit programs do not run under a filter.
//!
//! Deliberately absent: `SCMP_ACT_NOTIFY` and its listener, and filters for foreign architectures. Profiles that need
//! the former are refused.

mod compile;
mod profile;
mod program;
#[cfg(test)]
mod tests;

use nix::libc;
use oci_spec::runtime::{LinuxSeccomp, Seccomp};

pub use self::profile::default_profile;
use crate::{
    error::{StartError, Step},
    sys,
};

/// A compiled profile, for as many processes as wanted.
#[derive(Clone, Debug)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
}

impl Filter {
    /// Puts the calling thread, and all that it executes and forks, under the filter, for good.
    ///
    /// Needs the no_new_privs attribute or `CAP_SYS_ADMIN` in the thread's user namespace: seccomp(2). The caller
    /// orders that: with `noNewPrivileges` this is the very last step before execve(2), without it the last one that
    /// still has the capability.
    ///
    /// From here on the caller lives by the profile too. It still needs execve (once for each directory of PATH);
    /// write, close and exit_group, to tell why execve failed; and what its own allocations take, brk, mmap and
    /// munmap. Where privileges are dropped afterwards: capget, capset, prctl, setgroups, setresgid and setresuid.
    /// Under a profile that refuses one of these the step fails, and says so if write is among the allowed.
    pub fn load(&self) -> Result<(), StartError> {
        sys::set_seccomp_filter(&self.program, self.flags)
            .step(|| "load the seccomp filter (takes noNewPrivileges or CAP_SYS_ADMIN)".to_owned())
    }

    /// Its flags, then its instructions.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.flags.to_ne_bytes().to_vec();
        for libc::sock_filter { code, jt, jf, k } in &self.program {
            bytes.extend_from_slice(&code.to_ne_bytes());
            bytes.extend_from_slice(&[*jt, *jf]);
            bytes.extend_from_slice(&k.to_ne_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (flags, instructions) = bytes.split_first_chunk()?;
        let (instructions, rest) = instructions.as_chunks::<{ size_of::<libc::sock_filter>() }>();
        let instruction = |[code1, code2, jt, jf, k @ ..]: &[u8; 8]| libc::sock_filter {
            code: u16::from_ne_bytes([*code1, *code2]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes(*k),
        };
        let program = instructions.iter().map(instruction).collect();
        rest.is_empty().then(|| Self { program, flags: libc::c_ulong::from_ne_bytes(*flags) })
    }
}

/// Makes the filter of a profile, or says what in it cannot be done.
///
/// Best not called in a process that was just forked: there, most of its time goes into page faults.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, StartError> {
    let flags = compile::flags(profile)?;
    let program = program::assemble(compile::plan(profile)?);
    // The kernel's limit, and far from what a profile of sense needs.
    let most = libc::BPF_MAXINSNS as usize;
    if program.len() > most {
        let reason =
            format!("its rules make {} instructions, the kernel takes {most}: use fewer `args`", program.len());
        return Err(compile::refused("syscalls", reason));
    }
    Ok(Filter { program, flags })
}

/// What [`compile()`] understands, for the runtime's `features` document.
pub fn features() -> Seccomp {
    let flags: Vec<String> = compile::FLAGS.iter().map(|(flag, _)| flag.to_string()).collect();
    let mut features = Seccomp::default();
    features
        .set_enabled(Some(true))
        .set_actions(Some(compile::ACTIONS.to_vec()))
        .set_operators(Some(compile::OPERATORS.iter().map(ToString::to_string).collect()))
        .set_archs(Some(vec![program::NATIVE]))
        .set_known_flags(Some(flags.clone()))
        .set_supported_flags(Some(flags));
    features
}
