//! Where the kernel enters the program, before the C library's own beginning.
//!
//! A program that puts processes into containers executes itself anew through a read-only mount (`cli/own_file.rs`).
//! What the C library does at a start, half a millisecond where a hypervisor answers CPUID, would be done for nothing
//! before that. So the same four system calls are made here first; when any of them fails, the program goes on as if
//! nothing had been tried, tries again there, and tells what is wrong.
//!
//! In assembly, for nothing is relocated yet: whatever a compiler calls, be it for copying bytes or for a check in a debug
//! build, may lead nowhere.

use std::arch::global_asm;

use nix::libc;
use roster_runtime::sys::{MOUNT_ATTR_NODEV, MOUNT_ATTR_RDONLY};

/// Bytes of `struct statfs`, and where its flags are.
const STATFS: usize = 120;
const STATFS_FLAGS: usize = 80;
const ST_RDONLY: usize = 1;
/// "run\0", the first half of "create\0\0", "exec".
const RUN: u32 = u32::from_le_bytes(*b"run\0");
const CREA: u32 = u32::from_le_bytes(*b"crea");
const TE: u32 = u32::from_le_bytes(*b"te\0\0");
const EXEC: u32 = u32::from_le_bytes(*b"exec");

// The stack is as the kernel leaves it: the number of arguments, they, a null, the environment. The C library's `_start`
// finds it, and rdx, as they were.
global_asm!(
    ".globl roster_entry",
    "roster_entry:",
    "mov rbx, rsp",
    "mov rbp, rdx",
    "sub rsp, {statfs}",
    // Is an argument the name of a command that puts processes into containers?
    "lea r12, [rbx + 8]", // the arguments
    "mov r13, r12",
    "2:",
    "mov rsi, [r13]",
    "test rsi, rsi",
    "jz 9f",
    "add r13, 8",
    // The bytes one after the other: the last argument may end where the memory does.
    "xor eax, eax",
    "xor ecx, ecx",
    "xor edx, edx", // the first four bytes, then, in r8, the others
    "xor r8d, r8d",
    "3:",
    "movzx eax, byte ptr [rsi]",
    "test eax, eax",
    "jz 4f",
    "cmp ecx, 64",
    "jae 2b",
    "cmp ecx, 32",
    "jae 5f",
    "shl eax, cl",
    "or edx, eax",
    "jmp 6f",
    "5:",
    "shl eax, cl", // by what is left of 32
    "or r8d, eax",
    "6:",
    "inc rsi",
    "add ecx, 8",
    "jmp 3b",
    "4:",
    "cmp edx, {run}",
    "je 7f",
    "cmp edx, {exec}",
    "je 7f",
    "cmp edx, {crea}",
    "jne 2b",
    "cmp r8d, {te}",
    "jne 2b",
    "jmp 8f",
    "7:",
    "test r8d, r8d",
    "jnz 2b",
    // Is the file on a read-only mount already?
    "8:",
    "lea rdi, [rip + 20f]",
    "mov rsi, rsp",
    "mov eax, {statfs_call}",
    "syscall",
    "test rax, rax",
    "jnz 9f",
    "test qword ptr [rsp + {statfs_flags}], {read_only}",
    "jnz 9f",
    // A copy of its mount.
    "mov edi, {here}",
    "lea rsi, [rip + 20f]",
    "mov edx, {clone}",
    "mov eax, {open_tree}",
    "syscall",
    "test rax, rax",
    "js 9f",
    "mov r14, rax",
    // Read-only.
    "mov qword ptr [rsp], {attributes}",
    "mov qword ptr [rsp + 8], 0",
    "mov qword ptr [rsp + 16], 0",
    "mov qword ptr [rsp + 24], 0",
    "mov rdi, r14",
    "lea rsi, [rip + 21f]",
    "mov edx, {empty_path}",
    "mov r10, rsp",
    "mov r8d, 32",
    "mov eax, {mount_setattr}",
    "syscall",
    "test rax, rax",
    "jnz 10f",
    // /proc/self/fd/NUMBER, from its end.
    "lea rdi, [rsp + 63]",
    "mov byte ptr [rdi], 0",
    "mov eax, r14d",
    "mov ecx, 10",
    "11:",
    "xor edx, edx",
    "div ecx",
    "add dl, '0'",
    "dec rdi",
    "mov [rdi], dl",
    "test eax, eax",
    "jnz 11b",
    "sub rdi, 14",
    "mov rax, [rip + 22f]",
    "mov [rdi], rax",
    "mov rax, [rip + 22f + 6]",
    "mov [rdi + 6], rax",
    "mov rsi, r12",
    "mov rdx, [rbx]",
    "lea rdx, [r12 + 8 * rdx + 8]", // the environment
    "mov eax, {execve}",
    "syscall",
    "10:",
    "mov rdi, r14",
    "mov eax, {close}",
    "syscall",
    "9:",
    "mov rsp, rbx",
    "mov rdx, rbp",
    "jmp _start",
    ".pushsection .rodata.roster_entry, \"a\"",
    "20: .asciz \"/proc/self/exe\"",
    "21: .asciz \"\"",
    "22: .ascii \"/proc/self/fd/\"",
    ".popsection",
    statfs = const STATFS + 8,
    statfs_flags = const STATFS_FLAGS,
    read_only = const ST_RDONLY,
    run = const RUN,
    exec = const EXEC,
    crea = const CREA,
    te = const TE,
    attributes = const MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV,
    here = const libc::AT_FDCWD,
    clone = const libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC,
    empty_path = const libc::AT_EMPTY_PATH,
    statfs_call = const libc::SYS_statfs,
    open_tree = const libc::SYS_open_tree,
    mount_setattr = const libc::SYS_mount_setattr,
    execve = const libc::SYS_execve,
    close = const libc::SYS_close,
);
