//! Device rules as a program for the kernel's BPF machine: v2 asks it at every opening and making of a node. Pure.
//!
//! The rules are asked from the last to the first. The bits of access that no rule has decided yet stay in a register:
//! a rule that denies one of them ends the program with "no"; one that allows some takes them out, and ends it with
//! "yes" when none is left. What no rule decides is allowed, as it is in a group without a program; rules that begin by
//! denying everything leave nothing undecided. Programs of the groups above are asked too, and each must agree.
//!
//! Sources: the kernel's Documentation/bpf/standardization/instruction-set.rst; `struct bpf_cgroup_dev_ctx` in bpf(2)'s
//! header linux/bpf.h.

use super::devices::{Access, Kind, Rule};

/// The kernel's encoding: operation, registers (target low, source high), jump distance, constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub operation: u8,
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

/// `BPF_LDX | BPF_MEM | BPF_W`: target = the u32 at source + offset.
const LOAD: u8 = 0x61;
/// `BPF_ALU | BPF_AND | BPF_K`, on 32 bits as all that follow.
const AND: u8 = 0x54;
/// `BPF_ALU | BPF_RSH | BPF_K`.
const SHIFT_RIGHT: u8 = 0x74;
/// `BPF_ALU | BPF_MOV | BPF_K`.
const MOVE: u8 = 0xb4;
/// `BPF_ALU | BPF_MOV | BPF_X`.
const COPY: u8 = 0xbc;
/// `BPF_JMP32 | BPF_JNE | BPF_K`.
const JUMP_UNLESS_EQUAL: u8 = 0x56;
/// `BPF_JMP32 | BPF_JEQ | BPF_K`.
const JUMP_IF_EQUAL: u8 = 0x16;
/// `BPF_JMP | BPF_EXIT`: returns register 0.
const EXIT: u8 = 0x95;

/// Registers: the answer, the context; then what was asked for.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const UNDECIDED: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// `BPF_DEVCG_DEV_BLOCK` and `BPF_DEVCG_DEV_CHAR`.
fn kind_number(kind: Kind) -> i32 {
    match kind {
        Kind::Block => 1,
        Kind::Char => 2,
    }
}

pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    // The context: kind in the low and access in the high half of a word; major; minor.
    let mut program = vec![
        load(UNDECIDED, 0),
        copy(KIND, UNDECIDED),
        on(AND, KIND, 0xffff),
        on(SHIFT_RIGHT, UNDECIDED, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev() {
        if rule.is_whole() {
            // The verifier refuses what can never be reached.
            program.extend(answer(rule.allow));
            return program;
        }
        program.extend(ask(rule));
    }
    program.extend(answer(true));
    program
}

fn ask(rule: &Rule) -> Vec<Instruction> {
    let bits = rule.access.0 & Access::ALL.0;
    let mut decide = if rule.allow {
        vec![on(AND, UNDECIDED, !bits as i32), jump(JUMP_UNLESS_EQUAL, UNDECIDED, 0, 2)]
    } else {
        vec![copy(SCRATCH, UNDECIDED), on(AND, SCRATCH, bits as i32), jump(JUMP_IF_EQUAL, SCRATCH, 0, 2)]
    };
    decide.extend(answer(rule.allow));
    let conditions = [
        (KIND, rule.kind.map(kind_number)),
        (MAJOR, rule.major.map(|major| major as i32)),
        (MINOR, rule.minor.map(|minor| minor as i32)),
    ];
    // From the last, for each jumps over those behind it as well.
    let mut block = decide;
    for (register, wanted) in conditions.into_iter().rev() {
        if let Some(wanted) = wanted {
            block.insert(0, jump(JUMP_UNLESS_EQUAL, register, wanted, block.len() as i16));
        }
    }
    block
}

fn answer(allow: bool) -> [Instruction; 2] {
    [on(MOVE, ANSWER, allow.into()), on(EXIT, 0, 0)]
}

fn load(target: u8, offset: i16) -> Instruction {
    Instruction { operation: LOAD, registers: target | CONTEXT << 4, offset, immediate: 0 }
}

fn copy(target: u8, source: u8) -> Instruction {
    Instruction { operation: COPY, registers: target | source << 4, offset: 0, immediate: 0 }
}

fn on(operation: u8, target: u8, immediate: i32) -> Instruction {
    Instruction { operation, registers: target, offset: 0, immediate }
}

fn jump(operation: u8, register: u8, immediate: i32, offset: i16) -> Instruction {
    Instruction { operation, registers: register, offset, immediate }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cgroup::devices::rules, sys};

    /// What is asked of the kernel.
    struct Question {
        kind: Kind,
        access: u32,
        major: u32,
        minor: u32,
    }

    /// The part of the machine that [`program`] uses.
    fn run(program: &[Instruction], question: &Question) -> bool {
        let context = [question.access << 16 | kind_number(question.kind) as u32, question.major, question.minor];
        let mut registers = [0u32; 7];
        let mut next = 0;
        loop {
            let Instruction { operation, registers: named, offset, immediate } = program[next];
            let (target, source) = (usize::from(named & 15), usize::from(named >> 4));
            let immediate = immediate as u32;
            next += 1;
            let jumps = match operation {
                LOAD => {
                    registers[target] = context[offset as usize / 4];
                    false
                }
                AND => {
                    registers[target] &= immediate;
                    false
                }
                SHIFT_RIGHT => {
                    registers[target] >>= immediate;
                    false
                }
                MOVE => {
                    registers[target] = immediate;
                    false
                }
                COPY => {
                    registers[target] = registers[source];
                    false
                }
                JUMP_UNLESS_EQUAL => registers[target] != immediate,
                JUMP_IF_EQUAL => registers[target] == immediate,
                EXIT => return registers[usize::from(ANSWER)] != 0,
                other => panic!("operation {other:#x} is not known"),
            };
            if jumps {
                next += offset as usize;
            }
        }
    }

    fn of(json: &str) -> Vec<Instruction> {
        program(&rules(&serde_json::from_str::<Vec<_>>(json).unwrap()).unwrap())
    }

    fn allows(program: &[Instruction], kind: Kind, number: (u32, u32), access: Access) -> bool {
        run(program, &Question { kind, access: access.0, major: number.0, minor: number.1 })
    }

    const READ_WRITE: Access = Access(6);

    #[test]
    fn after_a_denial_of_all_only_what_is_named_may_be_opened() {
        let json = r#"[{"allow": false}, {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"},
                       {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "w"}]"#;
        let program = of(json);
        assert!(allows(&program, Kind::Char, (1, 3), READ_WRITE), "a default");
        assert!(allows(&program, Kind::Char, (136, 7), READ_WRITE), "any minor number");
        assert!(allows(&program, Kind::Block, (8, 0), READ_WRITE), "two rules together");
        assert!(allows(&program, Kind::Block, (8, 1), Access::MAKE));
        assert!(!allows(&program, Kind::Block, (8, 1), Access::READ));
        assert!(!allows(&program, Kind::Char, (8, 0), Access::READ), "another kind");
        assert!(!allows(&program, Kind::Block, (9, 0), Access::READ), "another major number");
    }

    #[test]
    fn a_later_rule_wins_for_the_access_it_names() {
        let json = r#"[{"allow": false}, {"allow": true, "type": "c", "major": 10, "access": "rw"},
                       {"allow": false, "type": "c", "major": 10, "minor": 200, "access": "w"}]"#;
        let program = of(json);
        assert!(allows(&program, Kind::Char, (10, 200), Access::READ));
        assert!(!allows(&program, Kind::Char, (10, 200), Access::WRITE));
        assert!(!allows(&program, Kind::Char, (10, 200), READ_WRITE));
        assert!(allows(&program, Kind::Char, (10, 201), READ_WRITE));
    }

    #[test]
    fn without_a_denial_of_all_what_no_rule_names_is_allowed() {
        let program = of(r#"[{"allow": false, "type": "a", "major": 8, "access": "rw"}]"#);
        assert!(allows(&program, Kind::Char, (1, 11), READ_WRITE));
        assert!(!allows(&program, Kind::Block, (8, 3), Access::READ));
        assert!(!allows(&program, Kind::Char, (8, 3), Access::READ));
        assert!(allows(&program, Kind::Block, (8, 3), Access::MAKE));
    }

    #[test]
    fn the_kernel_takes_every_such_program() {
        let configs = [
            r#"[{"allow": true}]"#,
            r#"[{"allow": false}]"#,
            r#"[{"allow": true}, {"allow": false}, {"allow": true, "type": "c", "major": 4294967295, "access": "r"}]"#,
            r#"[{"allow": false, "type": "b"}, {"allow": false, "access": "m"}, {"allow": true, "major": 1}]"#,
            r#"[{"allow": false}, {"allow": false, "type": "c", "major": 10, "minor": 200, "access": "rw"}]"#,
        ];
        for config in configs {
            sys::load_device_program(&of(config)).unwrap_or_else(|error| panic!("{config}: {error}"));
        }
    }
}
