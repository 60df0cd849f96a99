//! The filter's meaning on a BPF machine of the tests' own, and its effect in the kernel.

mod default;
mod effect;
mod meaning;

use std::str::FromStr;

use nix::libc::{self, sock_filter};
use oci_spec::runtime::LinuxSeccomp;
use syscalls::Sysno;

use super::{Filter, compile, program::NATIVE};
use crate::error::StartError;

const I386: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;

fn profile(json: serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(json).unwrap()
}

fn filter(json: serde_json::Value) -> Filter {
    compile(&profile(json)).unwrap()
}

/// Why a profile is refused.
fn refusal(json: serde_json::Value) -> String {
    let error = compile(&profile(json)).unwrap_err();
    assert!(matches!(error, StartError::Impossible { .. }), "{error}");
    error.to_string()
}

fn number(name: &str) -> u32 {
    Sysno::from_str(name).unwrap().id() as u32
}

fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

impl Filter {
    /// What the kernel would get for a native call.
    fn answer(&self, number: u32, args: [u64; 6]) -> u32 {
        run(&self.program, NATIVE as u32, number, args)
    }

    fn answer_to(&self, name: &str) -> u32 {
        self.answer(number(name), [0; 6])
    }
}

/// The kernel's machine, as far as filters use it: bpf_check_classic in the kernel's net/core/filter.c.
fn run(program: &[sock_filter], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = vec![number, arch, 0, 0];
    data.extend(args.iter().flat_map(|arg| [*arg as u32, (arg >> 32) as u32]));
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let mut branch = |condition: bool| at += usize::from(if condition { jt } else { jf });
        match u32::from(code) {
            code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => accumulator = data[k as usize / 4],
            code if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => accumulator &= k,
            code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => branch(accumulator == k),
            code if code == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => branch(accumulator > k),
            code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => branch(accumulator >= k),
            code if code == libc::BPF_JMP | libc::BPF_JA | libc::BPF_K => at += k as usize,
            code if code == libc::BPF_RET | libc::BPF_K => return k,
            code => panic!("instruction {code:#x} at {}", at - 1),
        }
    }
}
