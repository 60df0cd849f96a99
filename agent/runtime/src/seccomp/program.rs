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

/// Written from its end: how far a jump leads is known once what it leads over is there.
pub(super) fn assemble(plan: Plan) -> Vec<sock_filter> {
    let mut reversed = Vec::new();
    put_search(&plan.ranges, &mut reversed);
    reversed.extend([
        load(offset_of!(libc::seccomp_data, nr)),
        answer(plan.foreign),
        jump(libc::BPF_JEQ, NATIVE as u32, 1, 0),
        load(offset_of!(libc::seccomp_data, arch)),
    ]);
    reversed.reverse();
    reversed
}

/// A binary tree, the lower half first: its root jumps over that.
fn put_search(ranges: &[Range], reversed: &mut Vec<sock_filter>) {
    if let [range] = ranges {
        return put_verdict(&range.verdict, reversed);
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let Some(first) = upper.first() else { return };
    put_search(upper, reversed);
    let over = reversed.len();
    put_search(lower, reversed);
    let over = reversed.len() - over;
    // Only the unconditional jump reaches farther than a byte.
    match u8::try_from(over) {
        Ok(over) => reversed.push(jump(libc::BPF_JGE, first.from, over, 0)),
        Err(_) => reversed.extend([always_jump(over as u32), jump(libc::BPF_JGE, first.from, 0, 1)]),
    }
}

fn put_verdict(verdict: &Verdict, reversed: &mut Vec<sock_filter>) {
    match verdict {
        Verdict::Answer(value) => reversed.push(answer(*value)),
        Verdict::ByArguments { rules, otherwise } => {
            reversed.push(answer(*otherwise));
            for (rule, value) in rules.iter().rev() {
                // Runs on into the answer if the arguments obey, and past it if they do not.
                reversed.push(answer(*value));
                reversed.extend(BpfProgram::from(rule.clone()).into_iter().rev().map(for_kernel));
            }
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
