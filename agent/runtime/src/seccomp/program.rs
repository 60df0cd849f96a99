//! From answers by number to BPF: the search of the number is ours, the checks of arguments are seccompiler's.
//!
//! Pure, and blind to what profiles mean. Source: the kernel's Documentation/userspace-api/seccomp_filter.rst.

use std::mem::offset_of;

use nix::libc::{self, sock_filter};
use oci_spec::runtime::Arch;
use seccompiler::{BpfProgram, SeccompRule};

/// The number is at the same time the kernel's `AUDIT_ARCH_*`.
#[cfg(target_arch = "x86_64")]
pub(super) const NATIVE: Arch = Arch::ScmpArchX86_64;
#[cfg(target_arch = "aarch64")]
pub(super) const NATIVE: Arch = Arch::ScmpArchAarch64;

/// What a filter returns to the kernel: `SECCOMP_RET_*` with data.
pub(super) type Answer = u32;

/// What a call gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Answer(Answer),
    /// The answer of the first rule that its arguments obey.
    ByArguments {
        rules: Vec<(SeccompRule, Answer)>,
        otherwise: Answer,
    },
}

/// Calls with numbers from `from` to the next range's.
#[derive(Debug)]
pub(super) struct Range {
    pub(super) from: u32,
    pub(super) verdict: Verdict,
}

#[derive(Debug)]
pub(super) struct Plan {
    /// The answer to a call of another architecture than the native.
    pub(super) foreign: Answer,
    /// Ascending, the first from 0.
    pub(super) ranges: Vec<Range>,
}

pub(super) fn assemble(plan: Plan) -> Vec<sock_filter> {
    let mut program = vec![
        load(offset_of!(libc::seccomp_data, arch)),
        jump(libc::BPF_JEQ, NATIVE as u32, 1, 0),
        answer(plan.foreign),
        load(offset_of!(libc::seccomp_data, nr)),
    ];
    append_search(plan.ranges, &mut program);
    program
}

/// A binary tree, the lower half first: its root jumps over that.
fn append_search(mut ranges: Vec<Range>, program: &mut Vec<sock_filter>) {
    if ranges.len() < 2 {
        return ranges.into_iter().for_each(|range| append_verdict(range.verdict, program));
    }
    let upper = ranges.split_off(ranges.len() / 2);
    let from = upper[0].from;
    let mut lower_half = Vec::new();
    append_search(ranges, &mut lower_half);
    // Only the unconditional jump reaches farther than a byte.
    match u8::try_from(lower_half.len()) {
        Ok(length) => program.push(jump(libc::BPF_JGE, from, length, 0)),
        Err(_) => program.extend([jump(libc::BPF_JGE, from, 0, 1), always_jump(lower_half.len() as u32)]),
    }
    program.append(&mut lower_half);
    append_search(upper, program);
}

fn append_verdict(verdict: Verdict, program: &mut Vec<sock_filter>) {
    match verdict {
        Verdict::Answer(value) => program.push(answer(value)),
        Verdict::ByArguments { rules, otherwise } => {
            for (rule, value) in rules {
                // Runs on into the next instruction if the arguments obey, and past it if they do not.
                program.extend(BpfProgram::from(rule).into_iter().map(for_kernel));
                program.push(answer(value));
            }
            program.push(answer(otherwise));
        }
    }
}

/// The same struct by another name.
fn for_kernel(instruction: seccompiler::sock_filter) -> sock_filter {
    let seccompiler::sock_filter { code, jt, jf, k } = instruction;
    sock_filter { code, jt, jf, k }
}

fn load(offset: usize) -> sock_filter {
    sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset as u32 }
}

fn jump(condition: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | condition | libc::BPF_K) as u16, jt, jf, k }
}

fn always_jump(over: u32) -> sock_filter {
    jump(libc::BPF_JA, over, 0, 0)
}

fn answer(value: Answer) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: value }
}
